"""The timeline's data: every slice, mark and curve of a snapshot, in columns for a script.

Runs in ``shmrec-dump report``. What comes of it is one JSON value, compressed::

    {"end", "at": ns, "wall_ms", "names": [text], "texts": [text],
     "processes": [{"title", "bad", "rows": first, "count"}],
     "rows": [{"process", "title", "depth", "begins", "lengths", "names", "texts",
               "flags"}],
     "marks": [[ns, process or -1, kind, text]],
     "curves": [{"process", "name", "times", "values"}],
     "durations": [{"name", "count", "bins": [[bits of ns, count]]}]}

Times are nanoseconds since the timeline's beginning, whose wall clock is `wall_ms`; those of a
column are differences to the one before. `texts` are arguments in words, by place, -1 for none.

Invariants:

- Rows hold slices that do not overlap, in the order of their beginnings.
- Memory is bounded by the numbers of slices (33 bytes each), and by `_TEXTS` and `_NAMES`.
"""

from __future__ import annotations

import base64
import json
import zlib
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from shmrec.commands.stack_lines import call
from shmrec.commands.timeline import log_style
from shmrec.commands.wording import age, arguments, counted, safe, thread_said, who
from shmrec.events import EXCEPTION, LOG
from shmrec.survey import Durations
from shmrec.tracks import Item, Process, Slice, Timeline, Track

__all__ = ["Distribution", "Drawing", "Slow", "draw"]

_DEPTHS: Final = 24
"""Rows a track has; what lies deeper is drawn on the last one that has room."""
_NAMES: Final = 1 << 14
_TEXTS: Final = 1 << 16
_TEXT_CHARACTERS: Final = 160
_MARKS: Final = 20_000
_CURVES: Final = 256
_POINTS: Final = 4_096
_DISTRIBUTIONS: Final = 24
_SLOWEST: Final = 20
_OTHER: Final = "(another name)"
_IN_FLIGHT, _LOST, _ERROR = 1, 2, 4


@dataclass
class Row:
    """A line of slices that do not overlap."""

    process: int
    title: str
    depth: int
    begins: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    names: array[int] = field(default_factory=lambda: array("l"))
    texts: array[int] = field(default_factory=lambda: array("l"))
    flags: bytearray = field(default_factory=bytearray)


class Distribution(Durations):
    """How long completed spans of one name took; `bins` counts them by the bits of their ns."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name: Final = name
        self.total = 0
        self.bins: Counter[int] = Counter()

    def add(self, ns: int) -> None:
        """One more."""
        super().add(ns)
        self.total += ns
        self.bins[ns.bit_length()] += 1


@dataclass
class Slow:
    """One of the slowest completed spans."""

    length: int
    name: str
    who: str
    begin_ns: int
    text: str


@dataclass
class Drawing:
    """What `draw` found. `data` is base64 of zlib of the JSON; `notes` say what was left out."""

    data: str
    slices: int
    marks: int
    distributions: list[Distribution]
    slowest: list[Slow]
    notes: list[str]


class _Words:
    """Texts by number, of a bounded number; the others are one and the same."""

    def __init__(self, most: int, other: str) -> None:
        self.all: list[str] = []
        self.left_out = 0
        self._most, self._other = most, other
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        found = self._places.get(text)
        if found is None:
            if len(self.all) >= self._most:
                self.left_out += 1
                if not self._other:
                    return -1
                text = self._other
                if text in self._places:
                    return self._places[text]
            found = self._places[text] = len(self.all)
            self.all.append(text)
        return found


def draw(timeline: Timeline) -> Drawing:
    """Go through the snapshot once, and put everything into its column."""
    return _Drawer(timeline).drawing()


class _Drawer:
    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._names = _Words(_NAMES, _OTHER)
        self._texts = _Words(_TEXTS, "")
        self._rows: dict[tuple[int, int], list[Row]] = {}
        self._marks: list[tuple[int, int, str, str]] = []
        self._moments: deque[tuple[int, int, str, str]] = deque(maxlen=_MARKS)
        self._moments_met = 0
        self._curves: dict[tuple[int, str], tuple[array[int], list[float]]] = {}
        self._distributions: dict[str, Distribution] = {}
        self._slowest: list[Slow] = []
        self._slices = 0

    def drawing(self) -> Drawing:
        do: dict[str, Callable[[Item], None]] = {
            "end": self._slice,
            "counter": self._counter,
            "mark": self._mark,
            "instant": self._moment,
            EXCEPTION.name: self._moment,
            LOG.name: self._moment,
        }
        for item in self._timeline.items():
            act = do.get(item.kind)
            if act is not None:
                act(item)
        shown = sorted(self._distributions.values(), key=lambda each: -each.total)
        notes = []
        if left_out := self._moments_met - len(self._moments):
            notes.append(f"{counted(left_out, 'earlier moment')} of the events not drawn")
        if self._texts.left_out:
            notes.append(f"{counted(self._texts.left_out, 'slice')} drawn without arguments")
        return Drawing(
            self._packed(shown[:_DISTRIBUTIONS]),
            self._slices,
            len(self._marks) + len(self._moments),
            shown[:_DISTRIBUTIONS],
            self._slowest,
            notes,
        )

    # Items.

    def _slice(self, item: Item) -> None:
        found = item.slice
        assert found is not None
        begin, length = self._since(found.begin_ns), max(0, found.end_ns - found.begin_ns)
        row = self._row(found.track, found.depth, begin)
        row.begins.append(begin)
        row.lengths.append(length)
        row.names.append(self._names.place(safe(found.name)))
        row.texts.append(self._texts.place(text) if (text := _said(found)) else -1)
        failed = "error" in found.end_args or "exception" in found.end_args
        row.flags.append(_IN_FLIGHT * found.in_flight | _LOST * found.lost | _ERROR * failed)
        self._slices += 1
        if not (found.in_flight or found.lost):
            self._completed(found, length)

    def _completed(self, found: Slice, length: int) -> None:
        distribution = self._distributions.get(found.name)
        if distribution is None:
            if len(self._distributions) >= _NAMES:
                return
            distribution = Distribution(safe(found.name))
            self._distributions[found.name] = distribution
        distribution.add(length)
        slowest = self._slowest
        if len(slowest) < _SLOWEST or length > slowest[-1].length:
            place = bisect_left(slowest, -length, key=lambda each: -each.length)
            producer = found.track.process.producer
            slow = Slow(length, safe(found.name), who(producer), found.begin_ns, _said(found))
            slowest.insert(place, slow)
            del slowest[_SLOWEST:]

    def _counter(self, item: Item) -> None:
        assert item.process is not None
        key = item.process.place, item.name
        if key not in self._curves:
            if len(self._curves) >= _CURVES:
                return
            self._curves[key] = array("q"), []
        times, values = self._curves[key]
        if len(times) >= _POINTS:
            del times[::2], values[::2]
        times.append(self._since(item.time_ns))
        values.append(item.value)

    def _mark(self, item: Item) -> None:
        place = item.process.place if item.process is not None else -1
        kind = "death" if item.process is not None and item.process.died else "mark"
        self._marks.append((self._since(item.time_ns), place, kind, safe(item.name)))

    def _moment(self, item: Item) -> None:
        # The last ones matter most: of too many the oldest go.
        self._moments_met += 1
        assert item.process is not None
        kind = item.kind
        if kind == LOG.name:
            kind = "error" if log_style(item.args) == "bad" else "log"
        text = safe(item.name)
        if item.args:
            text += f"  {arguments(item.args, _TEXT_CHARACTERS)}"
        self._moments.append((self._since(item.time_ns), item.process.place, kind, text))

    def _since(self, time_ns: int) -> int:
        return time_ns - self._timeline.begin_ns

    # Rows.

    def _row(self, track: Track, depth: int, begin: int) -> Row:
        rows = self._rows.setdefault((track.process.place, track.number), [])
        depth = min(depth, _DEPTHS - 1)
        while len(rows) <= depth:
            title = thread_said(track.thread_name, track.thread)
            if track.family:
                title = f"{safe(track.name)} of {title}"
            rows.append(Row(track.process.place, title, len(rows)))
        return rows[depth]

    def _packed(self, distributions: list[Distribution]) -> str:
        timeline = self._timeline
        processes: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for process in timeline.processes:
            mine = [
                row for key, found in self._rows.items() if key[0] == process.place for row in found
            ]
            processes.append(_process(process, len(rows), len(mine)))
            rows += map(_columns, mine)
        whole = {
            "end": self._since(timeline.end_ns),
            "at": self._since(timeline.taken_ns),
            "wall_ms": timeline.wall_ns(timeline.begin_ns) / 1e6,
            "names": self._names.all,
            "texts": self._texts.all,
            "processes": processes,
            "rows": rows,
            "marks": sorted([*self._marks, *self._moments]),
            "curves": [
                {
                    "process": place,
                    "name": safe(name),
                    "times": _differences(times),
                    "values": values,
                }
                for (place, name), (times, values) in self._curves.items()
            ],
            "durations": [
                {"name": each.name, "count": each.count, "bins": sorted(each.bins.items())}
                for each in distributions
            ],
        }
        text = json.dumps(whole, separators=(",", ":"), allow_nan=False)
        return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode("ascii")


def _process(process: Process, first: int, count: int) -> dict[str, Any]:
    return {
        "title": who(process.producer),
        "bad": process.died or process.finding.stalled,
        "rows": first,
        "count": count,
    }


def _columns(row: Row) -> dict[str, Any]:
    # Ends come in their own order, where slices were drawn deeper than there are rows.
    order = sorted(range(len(row.begins)), key=row.begins.__getitem__)
    begins = array("q", (row.begins[place] for place in order))
    return {
        "process": row.process,
        "title": row.title,
        "depth": row.depth,
        "begins": _differences(begins),
        "lengths": [row.lengths[place] for place in order],
        "names": [row.names[place] for place in order],
        "texts": [row.texts[place] for place in order],
        "flags": [row.flags[place] for place in order],
    }


def _differences(times: array[int]) -> list[int]:
    before = 0
    found = []
    for time in times:
        found.append(time - before)
        before = time
    return found


def _said(found: Slice) -> str:
    """A slice's arguments, and what else there is to say of it."""
    args = {**found.args, **found.end_args}
    said = [arguments(args, _TEXT_CHARACTERS)] if args else []
    if found.in_flight:
        said.insert(0, f"in flight for {age(max(0, found.end_ns - found.begin_ns))}")
    if found.lost:
        said.append("its end was lost")
    if found.stack is not None and (frame := found.stack.telling()):
        said.append(f"at {call(frame)}")
    return "; ".join(said)
