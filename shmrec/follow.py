"""A recording's events while they are being recorded, across its producers in time order.

Runs in tools. Reads the segment and ``/proc``; writes nothing, asks nobody, flushes nothing, so
that producers cannot tell whether they are being followed. The clock is passed in, and nothing
here waits: whoever follows calls `poll` again and again.

What it promises, and what not:

- Every event that is in the rings when it is polled comes once, in its producer's order. What a
  producer overwrote before it was read comes as a note, in its place, with the number of events.
  Of a ring that lies about how many batches there are, it is those in whole slots, and a note.
- Events of several producers are in time order as long as none is published later than
  `WINDOW_NS` after its time; so long are events held. One that comes later is handed out as soon
  as it is seen. A time that lies in the future counts as now.
- A poll decodes at most `BATCHES_A_POLL` batches, and at most `HELD` events wait for their turn,
  however large the rings are; `behind` says that more is there already.

What is read is hostile: numbers are checked and bounded, and what cannot be decoded is noted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple

from shmrec.bulk import WHOLE, Runs
from shmrec.decoder import Event
from shmrec.doubting import DoubtingReader, doubting_readers
from shmrec.layout import LOST_AT_MOST, EntryState
from shmrec.live import DEAD, DETACHED, States
from shmrec.ring import Head
from shmrec.segment import Segment

__all__ = ["BATCHES_A_POLL", "HELD", "LOOKED_BACK", "WINDOW_NS", "Follower", "Note"]

WINDOW_NS: Final = 100_000_000
"""How long an event is held, so that earlier ones of other producers come before it."""
BATCHES_A_POLL: Final = 64
HELD: Final = 1 << 17
LOOKED_BACK: Final = 512
"""Batches of a ring gone back where it is not known how many hold what is wanted."""
_STATES_NS: Final = 500_000_000
"""How often the producers' processes are looked at."""

GAP: Final = "gap"
JOINED: Final = "joined"
LEFT: Final = "left"
DIED: Final = "died"
DAMAGE: Final = "damage"
DOUBTED: Final = "doubted"

_key = itemgetter(0)


class Note(NamedTuple):
    """What is to be said between events. `kind` is one of this module's words.

    `lost`: of a gap, how many events were overwritten before they could be read.
    """

    time_ns: int
    kind: str
    pid: int
    label: str
    producer: int
    lost: int = 0
    text: str = ""


@dataclass
class _Place:
    """How far one producer has been read."""

    incarnation: int
    pid: int = 0
    label: str = ""
    number: int = 1
    """The batch that is read next, or on."""
    taken: int = 0
    """Events of that batch that have been read."""
    seen: int | None = None
    """Events that were read or are known to be lost; None: whatever comes first is the first."""
    mark: tuple[int, int] = (0, 0)
    read_ns: int = 0
    """Up to when it has been read, where there is more."""
    behind: bool = False
    gone: bool = False
    doubted: bool = False
    notes: set[str] = field(default_factory=set)


class Follower:
    """Follows one segment until its caller closes that.

    Before the first `poll`, one of `from_now`, `back` and `from_the_beginning` says where to begin.
    """

    def __init__(self, segment: Segment, *, window_ns: int = WINDOW_NS) -> None:
        self._readers: Final = doubting_readers(segment)
        self._states: Final = States(segment)
        self._window: Final = window_ns
        self._places: dict[int, _Place] = {}
        self._held: list[tuple[int, Event | Note]] = []
        self._looked = 0
        self._turn = 0
        self.lost = 0
        """Events that were overwritten before they could be read."""
        self.complete_ns = 0
        """Up to then all has been handed out; later ones may have been, too."""

    @property
    def behind(self) -> bool:
        """Whether there was more to read than the last poll took."""
        return any(place.behind for place in self._places.values())

    @property
    def labels(self) -> dict[int, tuple[int, str]]:
        """Process and label of the producers met, by the ring's index."""
        return {index: (place.pid, place.label) for index, place in self._places.items()}

    def from_now(self) -> None:
        """Begin with what comes now."""
        for index, place in self._met():
            reader = self._readers[index]
            place.number = max(1, reader.announced()[1])
            for head in reader.following(place.number, 1).heads:
                place.taken, place.seen = head.count, head.first + head.count

    def back(self, *, count: int | None = None, since_ns: int | None = None) -> None:
        """Begin where each producer's newest `count` events do, or those `since_ns`.

        With neither, `LOOKED_BACK` batches back.
        """
        for index, place in self._met():
            place.number = _beginning(self._readers[index], count, since_ns)

    def from_the_beginning(self) -> None:
        """Begin with the first event of every producer; what is there no more is a gap."""
        for _, place in self._met():
            place.seen = 0

    def _met(self) -> list[tuple[int, _Place]]:
        for index, reader in enumerate(self._readers):
            place = self._meet(index)
            if place is not None:
                # Of one that ended before there is no news.
                place.gone = self._states.of(reader.entry()) in (DEAD, DETACHED)
        return list(self._places.items())

    def poll(self, now: int, *, drain: bool = False) -> list[Event | Note]:
        """What is to be handed out now, in time order.

        `drain` hands out all that has been read, whatever may yet come in between.
        """
        left = BATCHES_A_POLL
        count = len(self._readers)
        turns = [(self._turn + step) % count for step in range(count)]
        self._turn = 0
        for index in turns:
            place = self._joined(index, now)
            if place is None:
                continue
            mark = self._readers[index].mark()
            self._doubt(index, place, now)
            if mark == place.mark and not place.behind:
                continue
            if left <= 0:
                # Until it has its turn nothing newer than what is known of it is handed out.
                place.behind = True
                self._turn = self._turn or index
                continue
            left -= self._read(index, place, now, left)
            if not place.behind:
                place.mark = mark
        if drain or now - self._looked >= _STATES_NS:
            self._looked = now
            self._look(now)
        return self._released(now, drain)

    def _joined(self, index: int, now: int) -> _Place | None:
        """The ring's place, that of a new producer with a note of it."""
        before = self._places.get(index)
        place = self._meet(index)
        if place is not None and place is not before:
            place.seen = 0
            attached = self._readers[index].entry().attached_ns
            self._hold(self._note(attached, JOINED, index, place), now)
        return place

    def _meet(self, index: int) -> _Place | None:
        reader = self._readers[index]
        incarnation = reader.incarnation()
        place = self._places.get(index)
        if not incarnation or (place is not None and place.incarnation == incarnation):
            return place
        entry = reader.entry()
        if entry.state not in (EntryState.LIVE, EntryState.DETACHED):
            # Not quite there yet: its label may still be another's.
            return None
        place = _Place(entry.incarnation, entry.pid, entry.label)
        place.number = max(1, reader.announced()[0])
        self._places[index] = place
        return place

    def _read(self, index: int, place: _Place, now: int, budget: int) -> int:
        """Read on; returns how many batches that took."""
        reader = self._readers[index]
        oldest, newest = reader.announced()
        if not newest:
            place.behind = False
            return 1
        if place.number > newest:
            # It went backwards, which no producer does: what is there now is all there is.
            place.number, place.taken, place.seen = max(1, newest), 0, None
        if place.number < oldest:
            place.number, place.taken = oldest, 0
        last = min(newest, place.number + budget - 1)
        found: list[tuple[int, Event | Note]] = []
        lost = 0
        for head in reader.following(place.number, last - place.number + 1).heads:
            events, gap = self._batch(reader, head, place, index)
            if gap:
                lost += gap
                found.append((head.start_ns, self._note(head.start_ns, GAP, index, place, gap)))
            found += events
        took = max(1, last - place.number + 1)
        place.behind = last < newest
        if place.behind and place.number <= last:
            place.number, place.taken = last + 1, 0
        if reader.incarnation() != place.incarnation:
            return took  # Another process's events may be among these; that one is met next.
        self.lost += lost
        for time_ns, item in found:
            self._held.append((min(time_ns, now), item))
        if found:
            place.read_ns = min(found[-1][0], now)
        return took

    def _batch(
        self, reader: DoubtingReader, head: Head, place: _Place, index: int
    ) -> tuple[list[tuple[int, Event | Note]], int]:
        """What is new of a batch, and how many events before it are lost."""
        taken = place.taken if head.number == place.number else 0
        if head.count == taken and head.number == place.number and place.seen is not None:
            return [], 0
        copy = reader.copy(head)
        if copy is None:
            # Overwritten meanwhile: the next batch's beginning says how much that was.
            return [], 0
        runs = Runs(
            copy.payload,
            start_ns=head.start_ns,
            generation=head.generation,
            flags=head.flags,
            pid=place.pid,
            label=place.label,
            producer=index,
            size=WHOLE,
        )
        events = list(chain.from_iterable(runs))
        start = head.first + taken
        gap = start - place.seen if place.seen is not None else 0
        place.number, place.taken, place.seen = head.number, head.count, head.first + head.count
        new: list[tuple[int, Event | Note]] = [(each.time_ns, each) for each in events[taken:]]
        if runs.damage and runs.damage not in place.notes:
            place.notes = {runs.damage}
            text = f"batch {head.number}: {runs.damage}"
            new.append((head.start_ns, self._note(head.start_ns, DAMAGE, index, place, 0, text)))
        return new, min(max(0, gap), LOST_AT_MOST)

    def _doubt(self, index: int, place: _Place, now: int) -> None:
        """Say that a ring lies about its batches: once, until it tells the truth again."""
        doubt = self._readers[index].doubt
        if doubt and not place.doubted:
            self._hold(self._note(now, DOUBTED, index, place, 0, doubt), now)
        place.doubted = bool(doubt)

    def _look(self, now: int) -> None:
        """Say who has ended since the last look."""
        for index, place in self._places.items():
            if place.gone:
                continue
            entry = self._readers[index].entry()
            if entry.incarnation != place.incarnation:
                continue
            state = self._states.of(entry)
            place.gone = state in (DEAD, DETACHED)
            place.label = entry.label
            if state == DETACHED:
                self._hold(self._note(entry.detached_ns, LEFT, index, place), now)
            elif state == DEAD:
                self._hold(self._note(entry.ended_ns or now, DIED, index, place), now)

    def _hold(self, note: Note, now: int) -> None:
        self._held.append((min(note.time_ns, now), note))

    @staticmethod
    def _note(
        time_ns: int, kind: str, index: int, place: _Place, lost: int = 0, text: str = ""
    ) -> Note:
        return Note(time_ns, kind, place.pid, place.label, index, lost, text)

    def _released(self, now: int, drain: bool) -> list[Event | Note]:
        held = self._held
        held.sort(key=_key)
        until = now - self._window
        for place in self._places.values():
            if place.behind:
                until = min(until, place.read_ns)
        self.complete_ns = until
        ready = len(held)
        if not drain:
            while ready and held[ready - 1][0] > until:
                ready -= 1
        ready = max(ready, len(held) - HELD)
        found = [item for _, item in held[:ready]]
        del held[:ready]
        return found


def _beginning(reader: DoubtingReader, count: int | None, since_ns: int | None) -> int:
    """The number of the batch to begin with, for `Follower.back`."""
    oldest, newest = reader.announced()
    total = -1
    if count is None and since_ns is None:
        return max(1, oldest, newest - LOOKED_BACK + 1)
    for number in range(newest, oldest - 1, -1):
        for head in reader.following(number, 1).heads:
            total = max(total, head.first + head.count)
            if since_ns is not None and head.start_ns <= since_ns:
                return number
            if since_ns is None and count is not None and total - head.first >= count:
                return number
    return max(1, oldest)
