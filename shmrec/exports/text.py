"""Lines of text for people and for grep: the processes, then all that happened, in time order.

Runs in ``shmrec-dump export``. One line an event: time of day in UTC, seconds before the snapshot,
process, track, and what happened, set in as deep as the slice that it happened in. No line holds
a character that drives a terminal, whatever was recorded.
"""

from __future__ import annotations

from typing import Final

from shmrec.exporting import Out, Source, slice_name, stack_texts
from shmrec.phrases import LOST, age, arguments, clock, counted, moment, safe, thread_said
from shmrec.slices import Item, Process, Track
from shmrec.tracks import Timeline

__all__ = ["BINARY", "HELP", "SUFFIXES", "export"]

HELP: Final = "lines to read and to search"
SUFFIXES: Final = (".txt", ".text", ".log")
BINARY: Final = False

_DEEPEST: Final = 20
_KIND: Final = 9
_THREAD: Final = 12


def export(source: Source, out: Out) -> None:
    """Write the lines."""
    timeline = source.timeline
    wide = max((len(_whose(each)) for each in timeline.processes), default=0)
    for line in _head(timeline):
        out.write(f"{line.rstrip()}\n".encode())
    for item in timeline.items():
        out.write(f"{_line(timeline, item, wide).rstrip()}\n".encode())


def _head(timeline: Timeline) -> list[str]:
    header = timeline.snapshot.header
    lines = [
        f"# {safe(header.reason) or 'snapshot'}",
        f"# recording {safe(header.recording)} on {safe(header.host)}, taken "
        f"{moment(header.taken_wall_ns)}",
    ]
    for process in timeline.processes:
        producer = process.producer
        lost = ", ".join(
            f"{counted(count, 'event')} {LOST.get(cause, safe(cause))}"
            for cause, count in producer.losses.items()
            if count
        )
        said = f"# {_whose(process)}  {safe(process.state)}, {counted(producer.events, 'event')}"
        lines.append(f"{said}; lost: {lost}" if lost else said)
    lines += [f"# damaged: {safe(note)}" for note in timeline.snapshot.damage]
    return [*lines, ""]


def _whose(process: Process) -> str:
    return f"{safe(process.producer.label)}[{process.producer.pid}]"


def _where(track: Track) -> str:
    thread = thread_said(track.thread_name, track.thread)
    return f"{thread}/{track.lane + 1}" if track.family else thread


def _line(timeline: Timeline, item: Item, wide: int) -> str:
    before = (item.time_ns - timeline.taken_ns) / 1e9
    whose = _whose(item.process) if item.process is not None else ""
    where = _where(item.track) if item.track is not None else ""
    depth = 0
    if item.slice is not None:
        depth = item.slice.depth + (item.kind not in ("begin", "end"))
    start = f"{clock(timeline.wall_ns(item.time_ns))} {before:+12.6f}  {whose:<{wide}}"
    return f"{start}  {where:<{_THREAD}}  {'  ' * min(depth, _DEEPEST)}{_what(item)}"


def _what(item: Item) -> str:
    shown, kind, name = item.slice, item.kind, safe(item.name)
    rest = f"  {arguments(item.args)}" if item.args else ""
    if kind == "begin" and shown is not None:
        name = safe(slice_name(shown))
        if shown.stack is not None:
            rest += f"  at {safe('; '.join(stack_texts(shown.stack)))}"
    elif kind == "end" and shown is not None:
        took = age(shown.end_ns - shown.begin_ns)
        name = safe(slice_name(shown))
        name += f" lasted {took} so far" if shown.in_flight else f" took {took}"
        name += ", its end is missing" if shown.lost else ""
    elif kind == "counter":
        name += f" = {item.value}"
    elif kind == "stack" and item.stack is not None:
        rest = f"  {safe('; '.join(stack_texts(item.stack)))}"
    return f"{kind:<{_KIND}} {name}{rest}"
