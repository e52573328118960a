"""A snapshot as what viewers draw: processes, threads, slices that nest, instants, counters.

Runs in whoever shows a snapshot: every exporter, and the report. Use::

    timeline = Timeline(snapshot, forensics.analyse(snapshot))   # goes through the events once
    for process in timeline.processes:         # one a producer: names, threads, moments
        ...
    for item in timeline.items():              # once more; may be called again
        if item.kind == "end":                 # a whole slice: item.slice says all of it
            ...

An `Item` of kind

- ``begin`` and ``end`` is of a `Slice` on a `Track`. Whoever wants whole slices takes the ends:
  begin and end, both times' arguments, depth and parent are in the slice then. Whoever writes
  pairs may rely on it that on each track every end is of the newest slice that is open there.
- ``instant``, ``exception`` and ``log`` are moments on a thread's track, with the event's name.
- ``counter`` is a number of a process at a time; a counter whose value is none is an instant.
- ``stack`` is what a thread that is inside of nothing was executing; ``slice.stack`` of one that
  is in flight is the same.
- ``mark`` is a moment of a process, its death above all, or where `process` is None of the
  snapshot: its trigger, and when it was taken.

A span goes to its thread's track if it crosses no other span of that thread. One that does, a
task's, goes to a track of the `family` of its name: a family has as many tracks (`lane`) as it
has spans at once, made as they are needed, so that `Track`s not seen in `Process.threads` turn
up on the way. A span that names its parent (see `lineage`) goes to the parent's lane if it fits.
Spans that were open when the producer was last heard of end with it, `in_flight`. One that ended
unseen, in a gap, is `lost` and ends where it was last known to be open.

Invariants:

- The same snapshot always gives the same items, in the same order.
- Items are in time order, but for processes whose events in the file are not, which come last, and
  spans that began in gaps. Those of one process never go back in time. All times and numbers
  (pids, thread numbers) are in the ranges that the formats have: see `LATEST`.
- Memory does not grow with the events: 17 bytes for each span (`nesting`), and what is open.
- Names, labels and arguments are as they were recorded: hostile. Whoever shows them escapes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from shmrec.counters import fact_runs
from shmrec.decoder import Event
from shmrec.findings import Finding
from shmrec.forensics import Analysis
from shmrec.lineage import Lineage
from shmrec.nesting import Resumption, Survey, resumptions
from shmrec.placement import Placer
from shmrec.slices import LATEST, MORE_PIDS, PIDS, Item, Process, Slice, Track, moment
from shmrec.snapshot_file import Snapshot

__all__ = ["LATEST", "Item", "Process", "Slice", "Timeline", "Track"]


class Timeline:
    """See the module. `advance` is told how many events have been gone through, a run at a time.

    Raises `DamagedFileError`, here and in `items`, if the file changes meanwhile.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        analysis: Analysis,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.snapshot: Final = snapshot
        self.analysis: Final = analysis
        self.lineage: Final = Lineage()
        self.processes: list[Process] = []
        self._advance = advance
        self._resumed: list[list[Resumption]] = []
        self._surveys: list[Survey] = []
        taken: set[int] = set()
        for place, finding in enumerate(analysis.findings):
            self._add(place, finding, taken)
        self.lineage.settle(
            (process.place, process.producer.pid, survey.spans)
            for process, survey in zip(self.processes, self._surveys, strict=True)
        )
        self.taken_ns: Final = moment(snapshot.header.taken_mono_ns)
        self.begin_ns = min((each.begin_ns for each in self.processes), default=self.taken_ns)
        self.end_ns = max((self.taken_ns, *(each.end_ns for each in self.processes)))

    def wall_ns(self, time_ns: int) -> int:
        """Nanoseconds since the epoch, never before it."""
        return moment(self.snapshot.wall_ns(time_ns))

    def items(self) -> Iterator[Item]:
        """Everything there is to show, in time order."""
        return _Showing(self, self._surveys, self._resumed, self._advance).items()

    def _add(self, place: int, finding: Finding, taken: set[int]) -> None:
        producer = finding.producer
        pid = producer.pid
        if not 0 < pid < PIDS or pid in taken:
            pid = MORE_PIDS + place
        taken.add(pid)
        resumed = resumptions(self.snapshot, producer)
        survey = Survey(place, producer, resumed, self.lineage)
        for run in self.snapshot.runs(producers={producer.index}, ordered=False):
            survey.run(run)
            self._advance(len(run))
        survey.end_history({span.span for span in producer.open_spans})
        process = Process(place, pid, producer, finding, producer.label or f"pid {producer.pid}")
        for thread in sorted(survey.threads, key=lambda each: (each != producer.pid, each)):
            number = thread if 0 < thread < PIDS else PIDS + len(process.threads)
            name = survey.threads[thread]
            process.threads.append(Track(process, number, name, thread, name))
        process.counters = list(survey.counters)
        begins = [each.start_ns for resumption in resumed[:1] for each in resumption.open]
        begins += [each.begin_ns for each in survey.orphaned]
        begins += [producer.oldest_ns or finding.reference_ns]
        process.begin_ns = min(map(moment, begins))
        process.end_ns = max(moment(finding.reference_ns), moment(survey.last_ns))
        self.processes.append(process)
        self._resumed.append(resumed)
        self._surveys.append(survey)


class _Moment(NamedTuple):
    """What is known beforehand: when, whether before the events of that time, and what to do."""

    time_ns: int
    before: bool
    happen: Callable[[], list[Item]]


class _Showing:
    """The items of a snapshot, one time."""

    def __init__(
        self,
        timeline: Timeline,
        surveys: list[Survey],
        resumed: list[list[Resumption]],
        advance: Callable[[int], object],
    ) -> None:
        self._timeline = timeline
        self._advance = advance
        self._placers = [
            Placer(process, surveys[process.place], resumed[process.place], timeline.lineage)
            for process in timeline.processes
        ]
        self._of: dict[int, Placer] = {}
        for placer in self._placers:
            self._of.setdefault(placer.process.producer.index, placer)

    def items(self) -> Iterator[Item]:
        moments = deque(sorted(self._moments(), key=lambda each: (each.time_ns, not each.before)))
        placers = self._of
        snapshot = self._timeline.snapshot
        # What goes back in time would lose its order by being merged.
        orderly = {index for index, placer in placers.items() if not placer.disordered}
        for run in snapshot.runs(producers=orderly):
            for event in run:
                while moments and moments[0].time_ns <= event.time_ns:
                    if moments[0].time_ns == event.time_ns and not moments[0].before:
                        break
                    yield from moments.popleft().happen()
                yield from placers[event.producer].show(event)
            self._advance(len(run))
        for each in moments:
            yield from each.happen()
        for index in sorted(placers.keys() - orderly):
            for run in snapshot.runs(producers={index}, ordered=False):
                for event in run:
                    yield from placers[index].show(event)
                self._advance(len(run))
        for placer in self._placers:
            yield from placer.close()

    def _moments(self) -> Iterator[_Moment]:
        for placer in self._placers:
            process = placer.process
            for begun in placer.earlier():
                yield _Moment(moment(begun), True, placer.begin_earlier)
            for fact in _facts(process):
                yield _Moment(moment(fact.time_ns), False, _Shown(_counted(process, fact)))
            stack = process.finding.stack
            if placer.stacks and stack is not None:
                yield _Moment(moment(stack.taken_ns), False, placer.show_stacks)
            yield _Moment(process.end_ns, False, placer.finish)
        header = self._timeline.snapshot.header
        taken, fired = self._timeline.taken_ns, moment(header.triggered_ns)
        said = header.reason or header.trigger or "requested"
        args = {"recording": header.recording, "trigger": header.trigger, "reason": header.reason}
        if 0 < fired < taken:
            yield _Moment(fired, False, _Shown(Item(fired, "mark", f"trigger: {said}", args=args)))
        yield _Moment(taken, False, _Shown(Item(taken, "mark", f"snapshot: {said}", args=args)))


def _facts(process: Process) -> Iterator[Event]:
    for run in fact_runs(process.producer, 1 << 10):
        yield from run


def _counted(process: Process, fact: Event) -> Item:
    return Item(moment(fact.time_ns), "counter", fact.name, process, value=fact.value)


class _Shown:
    """An item that is there already, as something to do."""

    def __init__(self, item: Item) -> None:
        self._item = item

    def __call__(self) -> list[Item]:
        return [self._item]
