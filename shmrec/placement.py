"""Puts a producer's spans on tracks, in the second pass over its events.

Runs in whoever shows a snapshot, under `tracks`. What `nesting.Survey` has found out tells at a
span's beginning whether it crosses others and in which order spans end.

Invariants:

- On each track every end is of the newest slice that is open there.
- Items of one process never go back in time, whatever the file holds.
- A file that is not the one surveyed raises `DamagedFileError`.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Any, Final

from shmrec.decoder import Event, OpenSpan
from shmrec.errors import DamagedFileError
from shmrec.events import COUNTER
from shmrec.lineage import Key, Lineage
from shmrec.manifest import ENDED
from shmrec.nesting import ORPHANS, STILL_OPEN, Follower, Orphan, Resumption, Survey
from shmrec.slices import LANES_FROM, Item, Process, Slice, Track, moment
from shmrec.stack_text import ThreadStack

__all__ = ["Placer"]

_NUMBERS: Final = (int, float)


class Placer(Follower):
    """Of one process. What is called by `tracks` returns what there is to show."""

    def __init__(
        self, process: Process, survey: Survey, resumed: list[Resumption], lineage: Lineage
    ) -> None:
        super().__init__(resumed)
        self.process: Final = process
        self.disordered: Final = survey.disordered
        self._survey = survey
        self._lineage = lineage
        self._out: list[Item] = []
        self._now = 0
        self._left = survey.events
        self._closed = False
        self._slices: dict[int, Slice] = {}
        self._orphans: dict[int, Slice] = {}
        self._early = deque(
            sorted(survey.orphaned, key=lambda orphan: (orphan.begin_ns, orphan.number))
        )
        self._threads: dict[int, Track] = {}
        for track in process.threads:
            self._threads[track.thread] = track
            track.open.clear()
        self._lanes: dict[tuple[int, str], list[Track]] = {}
        self._free: dict[tuple[int, str], list[int]] = {}
        self._next_number = LANES_FROM
        self._innermost: dict[int, ThreadStack] = {}
        self.stacks: Final[list[tuple[int, ThreadStack]]] = []
        """Of threads that are inside of nothing."""
        for thread in process.finding.threads:
            if thread.stack is not None and thread.spans:
                self._innermost[thread.spans[0].span] = thread.stack
            elif thread.stack is not None:
                self.stacks.append((thread.thread, thread.stack))

    def earlier(self) -> list[int]:
        """When the spans began whose beginnings are not among the events."""
        return [span.start_ns for span in self.initial] + [each.begin_ns for each in self._early]

    def begin_earlier(self) -> list[Item]:
        """The next of these begins."""
        initial, early = self.initial, self._early
        if initial and not (early and early[0].begin_ns < initial[0].start_ns):
            self.open_initial()
        elif early:
            self._begin_orphan(early.popleft())
        return self._shown()

    def show(self, event: Event) -> list[Item]:
        """Its next event."""
        self._left -= 1
        self.follow(event)
        return self._shown()

    def show_stacks(self) -> list[Item]:
        """What those threads were executing that are inside of nothing."""
        stack = self.process.finding.stack
        when = moment(stack.taken_ns) if stack is not None else self._now
        for thread, calls in self.stacks:
            track = self._threads.get(thread)
            if track is not None:
                self._out.append(Item(when, "stack", "stack", self.process, track, stack=calls))
        return self._shown()

    def finish(self) -> list[Item]:
        """Its history ends, unless there are events to come all the same."""
        return self.close() if self._left <= 0 else []

    def close(self) -> list[Item]:
        """Its history ends, if it has not yet."""
        if self._closed:
            return []
        self._closed = True
        self._tick(self.process.end_ns)
        while self._early:
            self._begin_orphan(self._early.popleft())
        self.end_history({span.span for span in self.process.producer.open_spans})
        self._mark()
        return self._shown()

    def _mark(self) -> None:
        producer = self.process.producer
        if producer.state not in ENDED:
            return
        verdict, cause = self.process.finding.verdict, producer.cause
        args: dict[str, Any] = {"state": producer.state}
        if verdict is not None and self.process.died:
            args |= {"kind": verdict.kind, "evidence": verdict.evidence}
        if cause is not None:
            args |= {"cause": cause.text, "source": cause.source}
        said = verdict.text if verdict is not None else "unknown"
        name = f"death: {said}" if self.process.died else producer.state
        self._add("mark", name, args=args)

    # What `Follower` says of the spans.

    def began(self, ordinal: int, span: Event | OpenSpan, time_ns: int) -> None:
        ends = self._survey.ends
        if ordinal >= len(ends):
            raise self._changed()
        self._tick(time_ns)
        key = self.process.place, ordinal
        parent = self._lineage.parents.get(key)
        track = self._threads.get(span.thread)
        if track is None:
            raise self._changed()
        lane = self._lane_of(parent, ends[ordinal])
        if lane is not None:
            track = lane
        elif self._survey.crossing[ordinal]:
            track = self._lane(track, span.name)
        in_flight = ends[ordinal] == STILL_OPEN
        stack = self._innermost.get(span.span) if in_flight else None
        self._slices[ordinal] = self._put(
            track, key, span.name, span.span, span.args, in_flight, stack
        )

    def ended(self, ordinal: int, thread: int, event: Event) -> None:
        self._tick(event.time_ns)
        found = self._slices.pop(ordinal)
        found.end_args = event.args
        self._end(found)

    def lost(self, ordinal: int, thread: int) -> None:
        # At the last moment of which it is known that it had not ended.
        found = self._slices.pop(ordinal)
        found.lost = True
        self._end(found)

    def left_open(self, ordinal: int, thread: int) -> None:
        self._end(self._slices.pop(ordinal))

    def orphan(self, number: int, event: Event) -> None:
        self._tick(event.time_ns)
        if number >= ORPHANS:
            args = {**event.args, "duration_ns": event.duration_ns}
            self._instant("instant", event, args)
            return
        while number not in self._orphans:
            if not self._early:
                raise self._changed()
            self._begin_orphan(self._early.popleft())
        found = self._orphans.pop(number)
        found.end_args = event.args
        self._end(found)

    def other(self, event: Event) -> None:
        self._tick(event.time_ns)
        if event.kind != COUNTER.name:
            self._instant(event.kind, event, event.args)
        elif type(event.value) in _NUMBERS and math.isfinite(event.value):
            self._out.append(
                Item(self._now, COUNTER.name, event.name, self.process, value=event.value)
            )
        else:
            self._instant("instant", event, {"value": event.value})

    # Tracks.

    def _begin_orphan(self, orphan: Orphan) -> None:
        self._tick(orphan.begin_ns)
        key = self.process.place, len(self._survey.ends) + orphan.number
        track = self._threads.get(orphan.thread)
        if track is None:
            raise self._changed()
        track = self._lane(track, orphan.name)
        self._orphans[orphan.number] = self._put(
            track, key, orphan.name, orphan.span, {}, False, None
        )

    def _lane_of(self, parent: Key | None, end: int) -> Track | None:
        """The lane of a parent of this process, if what ends then fits into it."""
        if parent is None or parent[0] != self.process.place:
            return None
        found = self._slices.get(parent[1])
        if found is None or not found.track.family:
            return None
        newest = found.track.open[-1].key[1]
        # Of two that are open at the end, the newer one ends first.
        fits = newest < len(self._survey.ends) and end <= self._survey.ends[newest]
        return found.track if fits else None

    def _lane(self, thread: Track, family: str) -> Track:
        """A free track of the thread's family of that name."""
        whose = thread.thread, family
        lanes, free = self._lanes.setdefault(whose, []), self._free.setdefault(whose, [])
        if free:
            return lanes[heapq.heappop(free)]
        track = Track(
            self.process,
            self._next_number,
            family,
            thread.thread,
            thread.thread_name,
            family=family or "?",
            lane=len(lanes),
        )
        self._next_number += 1
        lanes.append(track)
        return track

    def _put(
        self,
        track: Track,
        key: Key,
        name: str,
        span: int,
        args: dict[str, Any],
        in_flight: bool,
        stack: ThreadStack | None,
    ) -> Slice:
        above = track.open[-1] if track.open else None
        lineage = self._lineage
        parent = lineage.parents.get(key)
        link = lineage.links.get(key, 0)
        begun = Slice(
            key, name, span, track, self._now, args, len(track.open), in_flight, above,
            parent or (above.key if above is not None else None), link,
            tuple(lineage.outgoing.get(key, ())), stack,
        )  # fmt: skip
        track.open.append(begun)
        self._out.append(Item(self._now, "begin", name, self.process, track, begun, args))
        return begun

    def _end(self, ended: Slice) -> None:
        track = ended.track
        if not track.open or track.open.pop() is not ended:
            raise self._changed()
        ended.end_ns = self._now
        if track.family and not track.open:
            heapq.heappush(self._free[track.thread, track.name], track.lane)
        self._out.append(
            Item(self._now, "end", ended.name, self.process, track, ended, ended.end_args)
        )

    def _instant(self, kind: str, event: Event, args: dict[str, Any]) -> None:
        track = self._threads.get(event.thread)
        above = track.open[-1] if track is not None and track.open else None
        self._out.append(Item(self._now, kind, event.name, self.process, track, above, args))

    def _add(self, kind: str, name: str, args: dict[str, Any]) -> None:
        self._out.append(Item(self._now, kind, name, self.process, args=args))

    def _tick(self, time_ns: int) -> None:
        time_ns = moment(time_ns)
        if time_ns > self._now:
            self._now = time_ns

    def _shown(self) -> list[Item]:
        shown, self._out = self._out, []
        return shown

    def _changed(self) -> DamagedFileError:
        return DamagedFileError("the snapshot was changed while it was being read")
