"""What changed between two snapshots of one recording.

Runs in tools. Reads the files' events once each and prints nothing; the same two files always
give the same answer. The older snapshot is `before`, whichever is named first.

Within one run a producer is the same if its identity is, and a span if its producer and id are.
Two runs have neither in common: producers are then paired by label and by their place among
those of that label, which says how the runs differ and not what became of anybody.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shmrec.decoder import OpenSpan
from shmrec.errors import NotComparableError
from shmrec.events import END
from shmrec.manifest import ENDED, FACTS, Producer
from shmrec.snapshot_file import Snapshot
from shmrec.stillness import Stillness, find_stillness

__all__ = ["Change", "Comparison", "EndedSpans", "Facts", "NameChange", "SpanChange", "compare"]

CAME: Final = "came"
WENT: Final = "went"
DIED: Final = "died"
LEFT: Final = "left"
STAYED: Final = "stayed"

STILL: Final = "still"
NEW: Final = "new"
FINISHED: Final = "finished"

_END: Final = END.name
_SECOND: Final = 1_000_000_000
_LONGEST_NS: Final = (1 << 63) - 1


@dataclass(frozen=True)
class SpanChange:
    """A span that was open in one of the snapshots, or in both.

    `what` is still, new or finished. `age_ns` is its age in the later snapshot that has it open,
    `earlier_ns` in the earlier one, 0 if it is new. `took_ns` is how long it took in all, None if
    it is open, or its end is in neither snapshot.
    """

    what: str
    span: OpenSpan
    age_ns: int
    earlier_ns: int = 0
    took_ns: int | None = None


@dataclass(frozen=True)
class Facts:
    """The newest row of what the kernel said of a process: as FACTS, None where it said nothing.

    `busy` is the share of one processor that it used between the two rows.
    """

    rss: tuple[int | None, int | None] = (None, None)
    threads: tuple[int | None, int | None] = (None, None)
    files: tuple[int | None, int | None] = (None, None)
    state: tuple[str | None, str | None] = (None, None)
    busy: float | None = None

    def __bool__(self) -> bool:
        return self.rss != (None, None) or self.state != (None, None)


@dataclass(frozen=True)
class Change:
    """One producer, as the two snapshots have it; at least one of them does.

    `what` is came, went (only the earlier one has it: its ring has another owner since), died,
    left (detached, or exited with 0), or stayed as it was, alive or not. Rates are events a
    second: `rate_before` and `rate_after` of what each snapshot holds of it, `rate_between` of
    all it recorded meanwhile; None where that cannot be told. `losses` are those that were added.
    """

    what: str
    before: Producer | None
    after: Producer | None
    rate_before: float | None = None
    rate_after: float | None = None
    rate_between: float | None = None
    losses: dict[str, int] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    spans: list[SpanChange] = field(default_factory=list)
    threads: list[Stillness] = field(default_factory=list)

    @property
    def producer(self) -> Producer:
        """The newest that is known of it."""
        found = self.after or self.before
        assert found is not None
        return found


@dataclass(frozen=True)
class EndedSpans:
    """The ended spans of one name: how many, how long they took; all 0 where there were none."""

    count: int = 0
    median_ns: int = 0
    most_ns: int = 0
    total_ns: int = 0


@dataclass(frozen=True)
class NameChange:
    """The spans of one name that ended in each snapshot.

    In `after`, within one run, only those that the earlier one does not have.
    """

    name: str
    before: EndedSpans
    after: EndedSpans


@dataclass(frozen=True)
class Comparison:
    """Two snapshots of one recording; times in nanoseconds.

    `swapped` says that they were given the newer first. `same_run` is whether both are of one run
    of the recording. `suppressed` are snapshots that limits forbade meanwhile, by trigger.
    """

    before: Snapshot
    after: Snapshot
    swapped: bool
    same_run: bool
    elapsed_ns: int
    changes: list[Change]
    names: list[NameChange]
    suppressed: dict[str, int]


def compare(first: Snapshot, second: Snapshot) -> Comparison:
    """What changed from the older of the two to the newer.

    Raises `NotComparableError` if they are of different recordings, or the same snapshot.
    """
    same_run = _check(first, second)
    # Within a run the monotonic clock is one; between two the machine may have been started anew.
    clock = "taken_mono_ns" if same_run else "taken_wall_ns"
    swapped = getattr(second.header, clock) < getattr(first.header, clock)
    before, after = (second, first) if swapped else (first, second)
    elapsed = getattr(after.header, clock) - getattr(before.header, clock)
    pairs = _paired(before.producers, after.producers, same_run)
    was_open = {
        (now.index, span.span)
        for then, now in pairs
        if then is not None and now is not None and same_run
        for span in then.open_spans
    }
    then, now = _Ends(), _Ends(was_open)
    then.read(before)
    now.read(after, _heard(pairs) if same_run else {})
    reader = _Reader(before, after, same_run, now.took)
    return Comparison(
        before,
        after,
        swapped,
        same_run,
        elapsed,
        [reader.change(*pair) for pair in pairs],
        _name_changes(then, now),
        _grown(before.header.suppressed, after.header.suppressed) if same_run else {},
    )


def _check(first: Snapshot, second: Snapshot) -> bool:
    """Whether both are of one run."""
    one, other = first.header, second.header
    for each in (first, second):
        if not each.header.recording:
            raise NotComparableError(
                f"{each.path} has no header that can be read: it does not say what it is of"
            )
    if one.recording != other.recording:
        raise NotComparableError(
            f"{first.path} is of recording {one.recording!r}, {second.path} of "
            f"{other.recording!r}: only two snapshots of one recording can be compared"
        )
    same_run = bool(one.run_id) and one.run_id == other.run_id
    if one.run_id == other.run_id and one.taken_mono_ns == other.taken_mono_ns:
        raise NotComparableError(
            f"{first.path} and {second.path} are the same snapshot: name two that were taken one "
            "after the other"
        )
    return same_run


def _paired(
    before: list[Producer], after: list[Producer], same_run: bool
) -> list[tuple[Producer | None, Producer | None]]:
    """Each producer with what it was before: in the later one's order, then those that went."""

    def key(producer: Producer) -> object:
        if not same_run:
            return producer.label
        return producer.identity or (producer.pid, producer.start_ticks, producer.incarnation)

    waiting: dict[object, deque[Producer]] = {}
    for producer in sorted(before, key=lambda each: each.index):
        waiting.setdefault(key(producer), deque()).append(producer)
    found: list[tuple[Producer | None, Producer | None]] = []
    for producer in sorted(after, key=lambda each: each.index):
        those = waiting.get(key(producer))
        found.append((those.popleft() if those else None, producer))
    left = sorted((each for those in waiting.values() for each in those), key=lambda p: p.index)
    return [*found, *((each, None) for each in left)]


def _heard(pairs: list[tuple[Producer | None, Producer | None]]) -> dict[int, int]:
    """When the earlier snapshot had last heard of those that the later one has, by their index.

    Its own moment would not do: it may be a little later than what was copied.
    """
    return {now.index: then.newest_ns for then, now in pairs if then and now}


class _Ends:
    """The durations of ended spans by name, and of certain ones by producer and id."""

    def __init__(self, wanted: set[tuple[int, int]] | None = None) -> None:
        self.took: dict[tuple[int, int], int] = {}
        self.lasted: dict[str, array[int]] = {}
        self._wanted = wanted or set()

    def read(self, snapshot: Snapshot, heard: Mapping[int, int] | None = None) -> None:
        """Take a snapshot's; of the producers in `heard` only what came after that moment."""
        heard = heard or {}
        for run in snapshot.runs(ordered=False):
            since = heard.get(run[0].producer, 0)
            for event in run:
                if event.kind != _END or event.time_ns <= since:
                    continue
                # A number that no array holds is nobody's duration.
                duration = min(max(event.duration_ns or 0, 0), _LONGEST_NS)
                self.lasted.setdefault(event.name, array("q")).append(duration)
                if (event.producer, event.span) in self._wanted:
                    self.took[event.producer, event.span] = duration

    def named(self, name: str) -> EndedSpans:
        lasted = sorted(self.lasted.get(name, ()))
        if not lasted:
            return EndedSpans()
        middle = len(lasted) // 2
        median = (lasted[middle] + lasted[~middle]) // 2
        return EndedSpans(len(lasted), median, lasted[-1], sum(lasted))


def _name_changes(then: _Ends, now: _Ends) -> list[NameChange]:
    """By the time that was spent in them in all, most first."""
    found = [
        NameChange(name, then.named(name), now.named(name))
        for name in then.lasted.keys() | now.lasted.keys()
    ]
    return sorted(found, key=lambda each: (-each.after.total_ns, -each.before.total_ns, each.name))


@dataclass(frozen=True)
class _Reader:
    """Tells what became of a producer."""

    before: Snapshot
    after: Snapshot
    same_run: bool
    took: dict[tuple[int, int], int]

    def change(self, then: Producer | None, now: Producer | None) -> Change:
        both = then is not None and now is not None and self.same_run
        return Change(
            _what(then, now),
            then,
            now,
            rate_before=_rate(self.before, then),
            rate_after=_rate(self.after, now),
            rate_between=self._rate_between(then, now),
            losses=_grown(then.losses if then and both else {}, now.losses if now else {}),
            facts=self._facts(then, now),
            spans=self._spans(then, now) if self.same_run else [],
            threads=find_stillness(then.stacks, now.stacks) if then and now and both else [],
        )

    def _rate_between(self, then: Producer | None, now: Producer | None) -> float | None:
        if now is None or not self.same_run or (then is not None and then.state in ENDED):
            return None
        since = self.before.header.taken_mono_ns if then is not None else now.attached_ns
        lasted = self.after.reference_ns(now) - since
        recorded = now.recorded - (then.recorded if then is not None else 0)
        return recorded * _SECOND / lasted if lasted > 0 <= recorded else None

    def _spans(self, then: Producer | None, now: Producer | None) -> list[SpanChange]:
        """Those still open, then the new ones, then those that ended; each the oldest first."""
        if now is None or (then is not None and then.state in ENDED):
            return []
        were = {(each.span, each.name): each for each in then.open_spans} if then else {}
        are = {(each.span, each.name): each for each in now.open_spans}
        reference = self.after.reference_ns(now)
        started = self.before.header.taken_mono_ns
        still, new, finished = [], [], []
        for key, span in are.items():
            age = reference - span.start_ns
            if key in were:
                still.append(SpanChange(STILL, span, age, started - span.start_ns))
            else:
                new.append(SpanChange(NEW, span, age))
        for key, span in were.items():
            if key not in are:
                age = started - span.start_ns
                took = self.took.get((now.index, span.span))
                finished.append(SpanChange(FINISHED, span, age, age, took))
        return [*still, *new, *finished]

    def _facts(self, then: Producer | None, now: Producer | None) -> Facts:
        earlier, later = (
            dict(zip(FACTS, producer.facts[-1], strict=True))
            if producer is not None and producer.facts
            else {}
            for producer in (then, now)
        )
        busy = None
        if self.same_run and earlier and later and min(earlier["cpu_ns"], later["cpu_ns"]) >= 0:
            lasted = later["time_ns"] - earlier["time_ns"]
            used = later["cpu_ns"] - earlier["cpu_ns"]
            busy = used / lasted if lasted > 0 <= used else None

        def both(name: str) -> Any:
            return tuple(_known(row.get(name)) for row in (earlier, later))

        return Facts(both("rss"), both("threads"), both("files"), both("state"), busy)


def _what(then: Producer | None, now: Producer | None) -> str:
    if now is None:
        return WENT
    if now.state in ENDED and (then is None or then.state not in ENDED):
        return DIED if now.state == "dead" else LEFT
    return STAYED if then is not None else CAME


def _rate(snapshot: Snapshot, producer: Producer | None) -> float | None:
    """Events a second, over what the snapshot holds of it."""
    if producer is None or not producer.events:
        return None
    lasted = snapshot.reference_ns(producer) - producer.oldest_ns
    return producer.events * _SECOND / lasted if lasted > 0 else None


def _known(value: Any) -> Any:
    """The kernel's word, or None where it gave none."""
    return None if type(value) is int and value < 0 else value


def _grown(then: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """What was added, by cause; the counts come from files."""
    found = {}
    for cause, count in now.items():
        earlier = then.get(cause, 0)
        if type(count) is type(earlier) is int and count > earlier:
            found[str(cause)] = count - earlier
    return found
