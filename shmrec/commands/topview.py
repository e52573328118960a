"""What `top` shows: which producers, in what order, in which columns, and what keys do to that.

Runs in ``shmrec-dump top``. Nothing here touches a terminal: `View.press` takes a key, `rows` and
`frame` make text of what was seen. All of it went through `wording.safe`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from shmrec import live
from shmrec.commands.screen import Part
from shmrec.commands.timeline import inside_of, process_named, thread_of
from shmrec.commands.wording import age, safe, size
from shmrec.decoder import OpenSpan
from shmrec.findings import REQUEST
from shmrec.observer import Sighting
from shmrec.process import task_said, tasks

__all__ = ["COLUMNS", "SORTS", "Column", "Row", "View", "disbelieved", "rows"]

_ARGUMENTS: Final = 120
_THREADS: Final = 64
"""Threads of one process that are shown."""
_STYLES: Final = {live.RUNNING: "good", live.STOPPED: "warn", live.DEAD: "bad"}
_LONG: Final = 1_000_000_000


class Column(NamedTuple):
    """A column: its heading, which ends in ``>`` where it is set to the right.

    `cells`: how wide it is at least; 0 where it shares what the others leave. Where there is no
    room for all, the one with the highest `rank` goes first.
    """

    heading: str
    cells: int
    rank: int


COLUMNS: Final = (
    Column("pid>", 7, 0),
    Column("label", 12, 1),
    Column("state", 8, 2),
    Column("ev/s>", 6, 3),
    Column("cpu>", 4, 6),
    Column("rss>", 8, 4),
    Column("lost>", 4, 7),
    Column("last event>", 10, 8),
    Column("oldest request", 0, 0),
    Column("for>", 7, 0),
    Column("inside of", 0, 5),
    Column("for>", 7, 5),
)


class Row(NamedTuple):
    """A line of the table, and the producer that it is of; `head` where it is its first."""

    key: tuple[int, int]
    head: bool
    cells: list[Part]


def _oldest(sighting: Sighting) -> OpenSpan | None:
    """The oldest open request; of one that has none, the oldest open span."""
    spans = sighting.open_spans
    named = [span for span in spans if span.name == REQUEST] or spans
    return min(named, key=lambda span: span.start_ns, default=None)


def _innermost(sighting: Sighting, oldest: OpenSpan) -> OpenSpan:
    """What the same thread is inside of."""
    spans = [span for span in sighting.open_spans if span.thread == oldest.thread]
    return max(spans, key=lambda span: (span.start_ns, span.span))


def _began(sighting: Sighting) -> int:
    oldest = _oldest(sighting)
    return oldest.start_ns if oldest is not None else 1 << 63


SORTS: Final[dict[str, Callable[[Sighting], Any]]] = {
    "oldest": lambda each: (each.state not in live.LIVING, _began(each)),
    "rate": lambda each: -(each.rate or 0.0),
    "cpu": lambda each: -(each.cpu or 0.0),
    "rss": lambda each: -each.rss,
    "lost": lambda each: -sum(each.entry.losses.values()),
    "silent": lambda each: each.newest_ns or 1 << 63,
    "pid": lambda each: each.entry.pid,
    "label": lambda each: (each.entry.label, each.entry.pid),
}
"""What comes first, by the order's name."""
_SORTED: Final = ("oldest", "rate", "cpu", "rss", "lost", "silent", "pid", "label")


@dataclass
class View:
    """What a person chose to see."""

    sort: str = "oldest"
    reverse: bool = False
    needle: str = ""
    everything: bool = False
    typing: bool = False
    helping: bool = False
    paused: bool = False
    selected: tuple[int, int] | None = None
    expanded: set[tuple[int, int]] = field(default_factory=set)
    all_expanded: bool = False
    over: bool = False
    """Whether to leave."""
    snapshot: bool = False
    """Whether one is wanted; whoever takes it takes this back."""

    def chosen(self, sightings: Sequence[Sighting]) -> list[Sighting]:
        """Those to be shown, in order."""
        needle = self.needle.casefold()
        found = [
            each
            for each in sightings
            if (self.everything or each.state != live.DETACHED)
            and (not needle or any(needle in text.casefold() for text in _texts(each)))
        ]
        found.sort(key=lambda each: each.entry.index)
        return sorted(found, key=SORTS[self.sort], reverse=self.reverse)

    def opened(self, key: tuple[int, int]) -> bool:
        """Whether the producer's threads are shown."""
        return self.all_expanded != (key in self.expanded)

    def press(self, key: str, shown: Sequence[tuple[int, int]], page: int) -> None:
        """Take a key: one character or a name; `shown` are the producers as they stand."""
        if self.typing:
            self._type(key)
        elif self.helping:
            self.helping = False
        elif key in ("up", "down", "page up", "page down", "home", "end", "k", "j"):
            self._move(key, shown, page)
        elif key in ("<", ">", "left", "right"):
            step = 1 if key in (">", "right") else -1
            place = (_SORTED.index(self.sort) + step) % len(_SORTED)
            self.sort = _SORTED[place]
        elif key in ("enter", " "):
            if self.selected in shown and self.selected is not None:
                self.expanded ^= {self.selected}
        elif key == "a":
            self.all_expanded, self.expanded = not self.all_expanded, set()
        elif key == "escape":
            self.needle = ""
        else:
            self._switch(key)

    def _switch(self, key: str) -> None:
        match key:
            case "q":
                self.over = True
            case "s":
                self.snapshot = True
            case "r":
                self.reverse = not self.reverse
            case "d":
                self.everything = not self.everything
            case "p":
                self.paused = not self.paused
            case "/":
                self.typing = True
            case "?" | "h":
                self.helping = True

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.typing, self.needle = False, ""
        elif key == "backspace":
            self.needle = self.needle[:-1]
        elif key == "clear":
            self.needle = ""
        elif len(key) == 1 and key.isprintable():
            self.needle += key

    def _move(self, key: str, shown: Sequence[tuple[int, int]], page: int) -> None:
        if not shown:
            return
        place = shown.index(self.selected) if self.selected in shown else -1
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -page, "page down": page}
        to = {"home": 0, "end": len(shown) - 1}.get(key, place + steps.get(key, 0))
        self.selected = shown[min(max(to, 0), len(shown) - 1)]


def _texts(sighting: Sighting) -> list[str]:
    """What a filter looks at."""
    entry = sighting.entry
    spans = [inside_of(span) for span in sighting.open_spans]
    return [str(entry.pid), safe(entry.label), sighting.state, *spans]


def disbelieved(sightings: Sequence[Sighting]) -> list[str]:
    """Of whose ring not all is to be believed, and why: those whose rows bear a mark."""
    return [
        f"! {process_named(each.entry.pid, each.entry.label)}: not all of its ring is to be "
        f"believed: {safe(each.damage[0])}"
        for each in sightings
        if each.damage
    ]


def rows(view: View, sightings: Sequence[Sighting], now_ns: int) -> list[Row]:
    """The lines of the table, of those that are to be shown."""
    found = []
    for sighting in view.chosen(sightings):
        found.append(_row(sighting, now_ns))
        if view.opened(sighting.key):
            found += [Row(sighting.key, False, cells) for cells in _threads(sighting, now_ns)]
    return found


def _row(sighting: Sighting, now_ns: int) -> Row:
    entry = sighting.entry
    living = sighting.state in live.LIVING
    lost = sum(entry.losses.values())
    last = age(max(0, now_ns - sighting.newest_ns)) if sighting.newest_ns else ""
    rate = f"{sighting.rate:,.0f}" if sighting.rate is not None else ""
    cells: list[Part] = [
        (f"!{entry.pid}", "bad") if sighting.damage else str(entry.pid),
        safe(entry.label),
        (sighting.state, _STYLES.get(sighting.state, "dim")),
        rate if living else "",
        f"{sighting.cpu:.0f}%" if sighting.cpu is not None else "",
        size(sighting.rss) if sighting.rss else "",
        (f"{lost:,}" if lost else "", "warn"),
        (last, "dim"),
    ]
    oldest = _oldest(sighting)
    if oldest is None:
        return Row(sighting.key, True, [*cells, ("nothing", "dim"), "", "", ""])
    reference = entry.ended_ns or entry.detached_ns or now_ns
    inside = _innermost(sighting, oldest)
    others = len(sighting.open_spans) - 1 - (inside is not oldest)
    more = f" (+{others}{' or more' * sighting.partial})" if others else ""
    cells += _span(oldest, reference)
    if inside is oldest:
        return Row(sighting.key, True, [*cells, (more.strip(), "dim"), ""])
    named, lasted = _span(inside, reference, more)
    return Row(sighting.key, True, [*cells, named, lasted])


def _span(span: OpenSpan, reference_ns: int, more: str = "") -> list[Part]:
    lasted = max(0, reference_ns - span.start_ns)
    return [
        (inside_of(span, _ARGUMENTS) + more, "name"),
        (age(lasted), "bad" if lasted >= _LONG else ""),
    ]


def _threads(sighting: Sighting, now_ns: int) -> list[list[Part]]:
    """A line for each thread: what it is called, what the kernel says, what it is inside of."""
    reference = sighting.entry.ended_ns or sighting.entry.detached_ns or now_ns
    inside: dict[int, list[OpenSpan]] = {}
    for span in sighting.open_spans:
        inside.setdefault(span.thread, []).append(span)
    living = sighting.state in live.LIVING
    numbers = tasks(sighting.entry.pid) if living else []
    found = []
    for thread in [*inside, *(each for each in sorted(numbers) if each not in inside)][:_THREADS]:
        spans = inside.get(thread, [])
        said = task_said(sighting.entry.pid, thread) if thread in numbers else None
        name = thread_of(spans[0]) if spans else safe(said[0]) if said is not None else ""
        cells: list[Part] = [
            (str(thread), "dim"),
            f"  {name}",
            (_KERNEL.get(said[1], said[1]) if said is not None else "", "dim"),
            *[""] * 5,
        ]
        if not spans:
            found.append([*cells, ("nothing", "dim"), "", "", ""])
            continue
        first = min(spans, key=lambda span: span.start_ns)
        last = max(spans, key=lambda span: (span.start_ns, span.span))
        more = f" (+{len(spans) - 2})" if len(spans) > 2 else ""
        cells += _span(first, reference)
        found.append([*cells, *(_span(last, reference, more) if last is not first else ["", ""])])
    left = len(set(inside) | set(numbers)) - len(found)
    if left > 0:
        found.append(["", (f"  and {left} more", "dim"), *[""] * (len(COLUMNS) - 2)])
    return found


_KERNEL: Final = {
    "R": "runs",
    "S": "waits",
    "D": "disk wait",
    "T": "stopped",
    "t": "traced",
    "I": "idle",
    "Z": "zombie",
    "X": "dead",
}
