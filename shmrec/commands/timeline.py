"""Events and open spans as lines of text.

Runs in the command-line tools, for as many lines as there are events: no layout, no tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from shmrec.commands.screen import Part
from shmrec.commands.wording import age, arguments, clock, counted, safe, span_named, thread_said
from shmrec.decoder import Event, OpenSpan
from shmrec.events import BEGIN, COUNTER, END, EXCEPTION, LOG
from shmrec.follow import DAMAGE, DIED, DOUBTED, GAP, JOINED, LEFT, Note

__all__ = [
    "event_line",
    "event_parts",
    "inside_of",
    "log_style",
    "newest_first",
    "note_line",
    "process_named",
    "thread_of",
]

_STYLES: Final = {EXCEPTION.name: "bad", BEGIN.name: "good", END.name: "dim", COUNTER.name: "warn"}

_NOTES: Final = {
    JOINED: "joined",
    LEFT: "left in order",
    DIED: "ended without leaving",
    DAMAGE: "cannot be read",
    DOUBTED: "its count of batches is not to be believed",
}

# By Python's `logging`: from that number on, in the style.
_LEVELS: Final = (("bad", 40), ("warn", 30), ("", 20), ("dim", 0))
_LEVEL_NUMBERS: Final = {"CRITICAL": 50, "ERROR": 40, "WARNING": 30, "INFO": 20, "DEBUG": 10}


def _style(event: Event) -> str:
    """The style of an event's kind; of a log's, that of its level."""
    if event.kind != LOG.name:
        return _STYLES.get(event.kind, "")
    return log_style(event.args or {})


def log_style(args: dict[str, Any]) -> str:
    """The style of a log record, by its level."""
    level = args.get("levelno", _LEVEL_NUMBERS.get(str(args.get("level")), 20))
    if not isinstance(level, int):
        return ""
    return next((style for style, least in _LEVELS if level >= least), "")


def event_parts(event: Event, limit: int = 0) -> list[Part]:
    """What happened: kind, name, duration or value, arguments (cut to `limit` characters)."""
    parts: list[Part] = [
        (f"{event.kind:<9} ", _style(event)),
        (safe(event.name), "name"),
    ]
    if event.duration_ns is not None:
        parts.append(f" took {age(event.duration_ns)}")
    if event.kind == COUNTER.name:
        parts.append(f" = {safe(event.value)}")
    if event.args:
        parts.append(f"  {arguments(event.args, limit)}")
    return parts


def event_line(wall_ns: int, event: Event, wide: int, between: str = "  ") -> list[Part]:
    """A line of a timeline; processes have so wide a column, `between` follows the time."""
    return [
        (clock(wall_ns), "dim"),
        between,
        f"{process_named(event.pid, event.label):<{wide}}  ",
        (f"{safe(event.thread_name) or event.thread:<12}  ", "dim"),
        *event_parts(event),
    ]


def note_line(wall_ns: int, note: Note, wide: int, lost: int) -> list[Part]:
    """What is said between the events of a recording; `lost` are so many of all gaps so far."""
    said = _NOTES.get(note.kind, note.kind)
    if note.kind == GAP:
        said = f"{counted(note.lost, 'event')} overwritten before they could be read"
        said += f", {lost:,} so far" if lost > note.lost else ""
    return [
        (clock(wall_ns), "dim"),
        f"  {process_named(note.pid, note.label):<{wide}}  ",
        (f"-- {said}{': ' if note.text else ''}{safe(note.text)}", "warn"),
    ]


def process_named(pid: int, label: str) -> str:
    """A process in a column."""
    return f"{safe(label)}[{pid}]"


def newest_first(spans: Iterable[OpenSpan]) -> list[OpenSpan]:
    """The spans by how recently they began: the innermost first, where they are nested."""
    return sorted(spans, key=lambda span: (span.start_ns, span.span), reverse=True)


def inside_of(span: OpenSpan, limit: int = 0) -> str:
    """The span for a column of a table; its arguments cut to `limit` characters."""
    return span_named(span.name, span.args, limit, gap="  ")


def thread_of(span: OpenSpan) -> str:
    """The thread's name, or its number where it has none."""
    return thread_said(span.thread_name, span.thread)
