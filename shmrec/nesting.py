"""The spans of one producer, followed event by event, and which of them nest.

Runs in whoever reads a snapshot, once before anything is shown of it: where a span belongs
depends on how it ends. Events are followed twice, by a `Survey` now and by `tracks` when they are
shown; both are `Follower`s, so that they number the spans alike.

A span gets its number, its ordinal, when it begins, those that are open at the beginning of the
history first. Whether spans cross is a matter of the events' order, not of times.

Invariants:

- Memory is some 17 bytes for each span, whatever they are called, and bounded beyond that.
- Spans of a thread that do not cross another one of it end in the reverse order of their
  beginnings.
- Each that has begun ends: by its end, by `lost`, or it is open when the history ends.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from shmrec.decoder import Event, OpenSpan, decode
from shmrec.events import BEGIN, COUNTER, END
from shmrec.layout import SlotFlag
from shmrec.lineage import Lineage
from shmrec.manifest import Producer
from shmrec.snapshot_file import Snapshot

__all__ = ["STILL_OPEN", "Follower", "Orphan", "Survey", "resumptions"]

STILL_OPEN: Final = (1 << 63) - 1
"""The end, in a survey, of a span that has none."""
ORPHANS: Final = 1 << 16
"""Ends without beginnings, of a producer, that are shown as spans."""
_LONGEST: Final = (1 << 63) - 1


class Resumption(NamedTuple):
    """A batch before which something is missing: when it began, which spans were open then.

    Not `whole`: more may have been.
    """

    start_ns: int
    open: list[OpenSpan]
    whole: bool


def resumptions(snapshot: Snapshot, producer: Producer) -> list[Resumption]:
    """The oldest batch of a producer's history, and those behind gaps in it."""
    found = []
    before = 0
    for batch in snapshot.raw_batches(producer):
        head = batch.head
        follows, before = 0 < before == head.number - 1, head.number
        if follows:
            continue
        decoded = decode(
            batch.payload, start_ns=head.start_ns, generation=head.generation, flags=head.flags
        )
        next(iter(decoded), None)
        opened = sorted(decoded.preamble, key=lambda span: (span.start_ns, span.span))
        whole = not head.flags & SlotFlag.PARTIAL_PREAMBLE
        found.append(Resumption(head.start_ns, opened, whole))
    return found


class Follower:
    """Follows a producer's events. What is made of them, `began` and the others say."""

    def __init__(self, resumed: list[Resumption]) -> None:
        self._gaps = deque(resumed[1:])
        self._open: dict[int, tuple[int, int]] = {}
        self.initial = deque(resumed[0].open if resumed else ())
        """Spans that were open at the beginning, and have not begun here yet."""
        self.begun = 0
        self.orphans = 0

    def open_initial(self) -> None:
        """Begin the first of `initial`."""
        span = self.initial.popleft()
        self._begin(span)

    def follow(self, event: Event) -> None:
        """The producer's next event."""
        while self.initial:
            self.open_initial()
        while self._gaps and event.time_ns >= self._gaps[0].start_ns:
            self._resume(self._gaps.popleft())
        kind = event.kind
        if kind == BEGIN.name:
            if event.span in self._open:
                self.lost(*self._open.pop(event.span))
            self._open[event.span] = self.begun, event.thread
            self.begun += 1
            self.began(self.begun - 1, event, event.time_ns)
        elif kind == END.name:
            found = self._open.pop(event.span, None)
            if found is not None:
                self.ended(*found, event)
            else:
                self.orphans += 1
                self.orphan(self.orphans - 1, event)
        else:
            self.other(event)

    def end_history(self, still_open: set[int]) -> None:
        """There are no more events; spans that are not `still_open` have lost their ends."""
        while self.initial:
            self.open_initial()
        left = list(self._open.items())
        self._open.clear()
        for span, found in reversed(left):
            if span in still_open:
                self.left_open(*found)
            else:
                self.lost(*found)

    def _begin(self, span: OpenSpan) -> None:
        if span.span in self._open:
            self.lost(*self._open.pop(span.span))
        self._open[span.span] = self.begun, span.thread
        self.begun += 1
        self.began(self.begun - 1, span, span.start_ns)

    def _resume(self, resumed: Resumption) -> None:
        known = {span.span for span in resumed.open}
        if resumed.whole:
            for span in [each for each in reversed(self._open) if each not in known]:
                self.lost(*self._open.pop(span))
        for opened in resumed.open:
            if opened.span not in self._open:
                self._begin(opened)

    def began(self, ordinal: int, span: Event | OpenSpan, time_ns: int) -> None:
        """A span has begun, then or, where that was overwritten, earlier than it was heard of."""

    def ended(self, ordinal: int, thread: int, event: Event) -> None:
        """It has ended; `thread` is where it had begun."""

    def lost(self, ordinal: int, thread: int) -> None:
        """It has ended, and when is not known: its end is missing."""

    def left_open(self, ordinal: int, thread: int) -> None:
        """It was open when the history ended."""

    def orphan(self, number: int, event: Event) -> None:
        """An end whose beginning is missing everywhere."""

    def other(self, event: Event) -> None:
        """Any other event."""


@dataclass(slots=True)
class Orphan:
    """A span of which only the end is there: all that it was, but for its arguments."""

    number: int
    begin_ns: int
    span: int
    name: str
    thread: int
    thread_name: str


@dataclass(slots=True)
class _Thread:
    """Of a thread: ordinals of open spans, oldest first, and of those that cross none so far.

    Both may hold spans that have ended; they are passed over at the end of the lists.
    """

    order: list[int] = field(default_factory=list)
    nesting: list[int] = field(default_factory=list)


class Survey(Follower):
    """What there is to know of a producer's spans before they are shown.

    `ends` is, by the ordinal, the place of a span's end among all ends, or `STILL_OPEN`;
    `crossing` is 1 where it crosses another one of its thread; `spans` are the ids. `threads`
    are names by the kernel's ids. `counters` are the names of counters. `disordered`: events go
    back in time, as no producer writes them.
    """

    def __init__(
        self, place: int, producer: Producer, resumed: list[Resumption], lineage: Lineage
    ) -> None:
        super().__init__(resumed)
        self._place = place
        self._pid = producer.pid
        self._lineage = lineage
        self._threads: dict[int, _Thread] = {}
        self._ended = 0
        self.events = 0
        self.last_ns = 0
        self.disordered = False
        self._previous = -_LONGEST
        self.ends: array[int] = array("q")
        self.spans: array[int] = array("q")
        self.crossing = bytearray()
        self.orphaned: list[Orphan] = []
        self.threads: dict[int, str] = {}
        self.counters: dict[str, None] = {}

    def run(self, events: list[Event]) -> None:
        """Some events in their order."""
        for event in events:
            if event.time_ns > self.last_ns:
                self.last_ns = event.time_ns
            if event.time_ns < self._previous:
                self.disordered = True
            self._previous = event.time_ns
            self.follow(event)
        self.events += len(events)

    def began(self, ordinal: int, span: Event | OpenSpan, time_ns: int) -> None:
        self.ends.append(STILL_OPEN)
        self.spans.append(span.span if abs(span.span) <= _LONGEST else -1)
        self.crossing.append(0)
        whose = self._threads.get(span.thread)
        if whose is None:
            whose = self._threads[span.thread] = _Thread()
        whose.order.append(ordinal)
        whose.nesting.append(ordinal)
        self._heard(span.thread, span.thread_name)
        if span.args:
            self._lineage.add((self._place, ordinal), self._pid, span.args)

    def ended(self, ordinal: int, thread: int, event: Event | None) -> None:
        ends, crossing = self.ends, self.crossing
        self._ended += 1
        ends[ordinal] = self._ended
        order, nesting = self._threads[thread].order, self._threads[thread].nesting
        while order and ends[order[-1]] != STILL_OPEN:
            order.pop()
        if order and order[-1] > ordinal:
            # Newer ones of its thread are still open: it crosses them.
            crossing[ordinal] = 1
            while nesting and nesting[-1] > ordinal:
                newer = nesting.pop()
                if ends[newer] == STILL_OPEN:
                    crossing[newer] = 1
        while nesting and ends[nesting[-1]] != STILL_OPEN:
            nesting.pop()

    def lost(self, ordinal: int, thread: int) -> None:
        self.ended(ordinal, thread, None)

    def orphan(self, number: int, event: Event) -> None:
        if number < ORPHANS:
            begun = max(0, event.time_ns - max(0, event.duration_ns or 0))
            self.orphaned.append(
                Orphan(number, begun, event.span, event.name, event.thread, event.thread_name)
            )
        self._heard(event.thread, event.thread_name)

    def other(self, event: Event) -> None:
        if event.kind == COUNTER.name:
            self.counters.setdefault(event.name)
        else:
            self._heard(event.thread, event.thread_name)

    def _heard(self, thread: int, name: Any) -> None:
        if name or thread not in self.threads:
            self.threads[thread] = name
