"""The Trace Event format, as chrome://tracing has it and many others read it.

Runs in ``shmrec-dump export``. Slices are pairs of B and E, which nest on each thread; families of
overlapping spans are threads of their own, for not every reader knows asynchronous events. Times
are microseconds of CLOCK_MONOTONIC, with three digits behind the point.

Invariants:

- It is one valid JSON object of ASCII, one event a line; numbers beyond a double's are texts.
- Nothing but B and E makes slices. The E of a slice has its name, and of arguments only what the
  end brought: chrome://tracing complains of one that both have. Where both are of one time, it has
  those of its B and none besides, for speedscope finds such a pair by them.
- No name or argument is one that Firefox Profiler takes for something of its own.
"""

from __future__ import annotations

from typing import Any, Final

from shmrec.exporting import Out, Source, slice_name, stack_texts
from shmrec.plain import doubled, dumps, plain, text
from shmrec.slices import Item, Process, Slice, Track
from shmrec.tracks import Timeline

__all__ = ["BINARY", "HELP", "SUFFIXES", "export"]

HELP: Final = "Trace Events, for chrome://tracing, Firefox Profiler, others"
SUFFIXES: Final = (".json", ".chrome.json", ".trace.json")
BINARY: Final = False

_TAKEN: Final = frozenset(
    (
        "CpuProfile",
        "Profile",
        "ProfileChunk",
        "Screenshot",
        "ScriptCatchup",
        "TracingStartedInBrowser",
    )
)
"""Names by which Firefox Profiler knows events of Chrome's; it fails where these lack something."""

_ROOT_PID: Final = (1 << 31) - 1
"""The process that stands for the snapshot itself."""


def export(source: Source, out: Out) -> None:
    """Write the object."""
    timeline = source.timeline
    header = timeline.snapshot.header
    about = {
        "recording": header.recording,
        "reason": header.reason,
        "host": header.host,
        "taken_monotonic_ns": timeline.taken_ns,
        "taken_wall_ns": timeline.wall_ns(timeline.taken_ns),
        "shmrec": header.version,
    }
    out.write(b'{"displayTimeUnit": "ns", "otherData": ')
    out.write(_encoded(about))
    out.write(b', "traceEvents": [')
    _Writer(timeline, out).write()
    out.write(b"\n]}\n")


def _encoded(value: Any) -> bytes:
    return dumps(doubled(plain(value))).encode("ascii")


def _begin_args(shown: Slice) -> dict[str, Any]:
    if shown.stack is None:
        return shown.args
    return {**shown.args, "stack": stack_texts(shown.stack)}


class _Writer:
    def __init__(self, timeline: Timeline, out: Out) -> None:
        self._timeline = timeline
        self._out = out
        self._first = True
        self._told: set[Track] = set()
        self._links: set[int] = set()

    def write(self) -> None:
        """The events."""
        self._about(_ROOT_PID, 0, "process_name", name="shmrec snapshot")
        self._about(_ROOT_PID, 0, "process_sort_index", sort_index=-1)
        self._about(_ROOT_PID, _ROOT_PID, "thread_name", name="snapshot")
        for process in self._timeline.processes:
            self._process(process)
        for item in self._timeline.items():
            self._item(item)

    def _item(self, item: Item) -> None:
        process, track = item.process, item.track
        if track is not None and track not in self._told:
            self._track(track)
        pid = process.pid if process is not None else _ROOT_PID
        tid = track.number if track is not None else pid
        args = item.args
        if item.stack is not None:
            args = {**args, "stack": stack_texts(item.stack)}
        if item.kind == "begin":
            assert item.slice is not None
            self._begin(item, item.slice, pid, tid)
        elif item.kind == "end":
            assert item.slice is not None
            self._end(item, item.slice, pid, tid)
        elif item.kind == "counter":
            self._event(
                "C",
                item.time_ns,
                pid,
                tid,
                name=item.name,
                cat="counter",
                args={"value": float(item.value)},
            )
        else:
            scope = "t" if track is not None else "p" if process is not None else "g"
            self._event(
                "i", item.time_ns, pid, tid, name=item.name, cat=item.kind, s=scope, args=args
            )

    def _begin(self, item: Item, begun: Slice, pid: int, tid: int) -> None:
        name, args = slice_name(begun), _begin_args(begun)
        self._event("B", item.time_ns, pid, tid, name=name, cat="span", args=args)
        for link in begun.links:
            self._links.add(link)
            self._event("s", item.time_ns, pid, tid, name="parent", cat="flow", id=link)
        if begun.link in self._links:
            self._event(
                "f", item.time_ns, pid, tid, name="parent", cat="flow", id=begun.link, bp="e"
            )

    def _end(self, item: Item, ended: Slice, pid: int, tid: int) -> None:
        name = slice_name(ended)
        args = {**item.args, "shmrec.end": "lost"} if ended.lost else item.args
        if ended.begin_ns == ended.end_ns:
            if args:
                self._event("i", item.time_ns, pid, tid, name=name, cat="end", s="t", args=args)
            args = _begin_args(ended)
        self._event("E", item.time_ns, pid, tid, name=name, cat="span", args=args)

    def _process(self, process: Process) -> None:
        self._about(process.pid, 0, "process_name", name=text(process.name))
        # chrome://tracing takes a comma for the end of a label.
        state = text(process.state).replace(",", ";")
        self._about(process.pid, 0, "process_labels", labels=state)
        self._about(process.pid, 0, "process_sort_index", sort_index=process.place)
        for track in process.threads:
            self._track(track)
        if all(track.number != process.pid for track in process.threads):
            self._about(process.pid, process.pid, "thread_name", name="process")

    def _track(self, track: Track) -> None:
        self._told.add(track)
        name = text(track.name)
        if track.family:
            lane = f" {track.lane + 1}" if track.lane else ""
            name = f"{name}{lane} ({text(track.thread_name) or f'thread {track.thread}'})"
        self._about(track.process.pid, track.number, "thread_name", name=name)
        self._about(
            track.process.pid, track.number, "thread_sort_index", sort_index=len(self._told)
        )

    def _about(self, pid: int, tid: int, what: str, **args: Any) -> None:
        self._line({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args})

    def _event(
        self, phase: str, time_ns: int, pid: int, tid: int, *, name: str, **rest: Any
    ) -> None:
        """An event; its time is written by hand, for a double would round it."""
        if name in _TAKEN:
            name += f" ({rest['cat']})"
        event = doubled(plain({"ph": phase, "pid": pid, "tid": tid, "name": name, **rest}))
        data = event.get("args", {}).get("data")
        # What is called so is a map to Firefox Profiler.
        if data is not None and not isinstance(data, dict):
            event["args"]["data"] = {"value": data}
        line = dumps(event)
        self._put(f'{line[:-1]}, "ts": {time_ns // 1000}.{time_ns % 1000:03}}}')

    def _line(self, value: dict[str, Any]) -> None:
        self._put(dumps(doubled(plain(value))))

    def _put(self, line: str) -> None:
        self._out.write((f"\n{line}" if self._first else f",\n{line}").encode("ascii"))
        self._first = False
