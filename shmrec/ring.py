"""The read side of a ring: consistent copies of what a producer may be overwriting.

Runs in the collector and in tools. The other half of the protocol is `batch` and `writer`; whose
the ring is stands in its `entry`.

Invariants: nothing in the segment is believed before it has been checked against the
geometry; a batch is handed out only if its slot still carried its number, and no newer batch
for that slot had been announced by ``opening``, *after* its bytes were copied. A scan reads
the slots' headers field by field, each field of the whole ring in one pass, and believes a
header by the same rule: its number before and after all of its other fields. Where the order
of loads matters, `fence.acquire` stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from shmrec import fence
from shmrec.entry import EntryReader
from shmrec.layout import COUNT_SHIFT, ENTRY, SIZE_MASK, SLOT, WORD, Geometry

if TYPE_CHECKING:
    from shmrec.segment import Segment  # what reads a ring needs no shared memory of its own

__all__ = ["Batch", "BatchView", "Head", "RingReader", "Scan", "readers"]

_NUMBER, _GENERATION, _START, _COMMITTED, _FIRST, _FLAGS = (
    SLOT.word(name) for name in ("number", "generation", "start_ns", "committed", "first", "flags")
)
_SCANNED: Final = (_GENERATION, _START, _COMMITTED, _FIRST, _FLAGS)
_IMPLAUSIBLE: Final = 1 << 62
_NOTHING: Final = -1


@dataclass(slots=True)
class Head:
    """A batch's header, checked. `size` and `count` are what was committed when read."""

    number: int
    generation: int
    start_ns: int
    size: int
    count: int
    first: int
    flags: int
    offset: int


@dataclass(slots=True)
class Batch:
    """A batch's header and a private copy of its payload."""

    head: Head
    payload: bytes


@dataclass(slots=True)
class BatchView:
    """A batch's header and a copy of its payload in memory that the reader's caller owns."""

    head: Head
    payload: memoryview


@dataclass(slots=True)
class Scan:
    """The batches of a ring, oldest first, and what was wrong with the slots left out."""

    heads: list[Head]
    damage: list[str] = field(default_factory=list)


class RingReader(EntryReader):
    """Reads one producer's entry and ring; `words` and `view` index like the segment's."""

    def __init__(self, view: Any, words: Any, geometry: Geometry, index: int) -> None:
        super().__init__(view, words, geometry, index)
        self._opening: Final = ENTRY.word("opening", self._entry)
        # Once: a snapshot asks for them some thousand times.
        self._ring: Final = geometry.ring(index)
        self._slots: Final = geometry.slots
        self._slot_size: Final = geometry.slot_size
        self._end: Final = self._ring + geometry.ring_size
        self._payload_size: Final = geometry.payload_size
        self._disbelieved = _NOTHING
        self._believed = 0

    def progress(self) -> tuple[int, int, int]:
        """`writing`, `closed_generation`, and the newest batch's generation (0: none)."""
        writing = self._word("writing")  # step: look-writing
        closed = self._word("closed_generation")  # step: look-closed
        opening = self._words[self._opening]
        newest = 0
        if 0 < opening < _IMPLAUSIBLE:
            base = self._slot(opening) // WORD
            if self._words[base + _NUMBER] == opening:
                fence.acquire()
                newest = self._words[base + _GENERATION]  # step: look-newest
        # What is read of the ring from here on is at least as new as this evidence.
        fence.acquire()
        return writing, closed, newest

    def mark(self) -> tuple[int, int]:
        """Changes with every event: the newest batch's number, and its committed word."""
        opening = self._words[self._opening]
        if not 0 < opening < _IMPLAUSIBLE:
            return 0, 0
        return opening, self._words[self._slot(opening) // WORD + _COMMITTED]

    def _slot(self, number: int) -> int:
        return self._ring + (number - 1) % self._slots * self._slot_size

    def _column(self, field: int) -> list[int]:
        """One field of all slots, in the order of the slots."""
        first, end, step = self._ring // WORD + field, self._end // WORD, self._slot_size // WORD
        column: list[int] = self._words[first:end:step].tolist()
        return column

    def scan(self) -> Scan:
        """The headers of all batches in the ring, in order of their numbers."""
        slots = self._slots
        scan = Scan([])
        opening = self._words[self._opening]  # step: scan-opening
        # The number first and last: a header is of one batch if it stayed the same meanwhile.
        fence.acquire()
        numbers = self._column(_NUMBER)  # step: scan-numbers
        fence.acquire()
        columns = [numbers, *map(self._column, _SCANNED)]  # step: scan-fields
        fence.acquire()
        columns.append(self._column(_NUMBER))  # step: scan-again
        after = self._words[self._opening]  # step: scan-lapped
        top = self._top(numbers)
        self._disbelieved = _NOTHING
        if top and not opening - 1 <= top <= after:
            # The batches themselves know better: only this word is lost.
            self._disbelieved, self._believed = after, top
            scan.damage.append(
                f"ring {self.index}: newest batch number {after} contradicts its batches, whose "
                f"newest is {top}"
            )
            opening = after = top
        elif opening >= _IMPLAUSIBLE:
            scan.damage.append(f"ring {self.index}: newest batch number {opening} is implausible")
            return scan
        lapped = after - slots
        oldest = max(1, opening - slots + 1)
        rows = list(zip(*columns, range(self._ring, self._end, self._slot_size), strict=True))
        split = (oldest - 1) % slots
        rows = rows[split:] + rows[:split]
        for number, row in zip(range(oldest, opening + 1), rows, strict=False):
            found, generation, start_ns, committed, first, flags, still, offset = row
            if found != number:
                # None or a higher one: being reset, of an earlier producer, or lapped since.
                if (0 < found < number < opening) or found > after:
                    scan.damage.append(f"batch {number}: its slot holds number {found}")
                continue
            if still != number or number <= lapped:
                continue
            size, count = committed & SIZE_MASK, committed >> COUNT_SHIFT
            head = Head(number, generation, start_ns, size, count, first, flags, offset)
            wrong = self._wrong(head)
            if wrong:
                scan.damage.append(f"batch {number}: {wrong}")
            else:
                scan.heads.append(head)
        return scan

    def _top(self, numbers: Sequence[int]) -> int:
        """The newest batch by what the slots' numbers say; most decide if they disagree."""
        slots = self._slots
        found = sorted(
            number
            for slot, number in enumerate(numbers)
            if 0 < number < _IMPLAUSIBLE and (number - 1) % slots == slot
        )
        best, top, first = 0, 0, 0
        for last, number in enumerate(found):
            while found[first] <= number - slots:
                first += 1
            if last - first >= best:
                best, top = last - first, number
        return top

    def _announced(self) -> int:
        """The newest batch's number, unless it has been seen to be a lie."""
        opening: int = self._words[self._opening]
        return self._believed if opening == self._disbelieved else opening

    def newest(self, count: int) -> list[Head]:
        """As `scan`, of the newest so many batches: costs no more where the ring is large."""
        opening = self._words[self._opening]
        if opening >= _IMPLAUSIBLE:
            return []
        return self.following(max(1, opening - min(count, self._slots) + 1), count).heads

    def following(self, number: int, count: int) -> Scan:
        """As `scan`, of at most so many batches from that number on that were announced."""
        scan = Scan([])
        words, opening = self._words, self._words[self._opening]
        if opening >= _IMPLAUSIBLE:
            scan.damage.append(f"ring {self.index}: newest batch number {opening} is implausible")
            return scan
        for each in range(number, min(opening, number + count - 1) + 1):
            offset = self._slot(each)
            base = offset // WORD
            fence.acquire()
            if words[base + _NUMBER] != each:
                continue
            fence.acquire()
            generation, start_ns, committed, first, flags = [words[base + at] for at in _SCANNED]
            fence.acquire()
            lapped = words[self._opening] - self._slots
            if words[base + _NUMBER] != each or each <= lapped:
                continue
            size, events = committed & SIZE_MASK, committed >> COUNT_SHIFT
            head = Head(each, generation, start_ns, size, events, first, flags, offset)
            wrong = self._wrong(head)
            if wrong:
                scan.damage.append(f"batch {each}: {wrong}")
            else:
                scan.heads.append(head)
        return scan

    def announced(self) -> tuple[int, int]:
        """The numbers of the oldest and the newest batch that may be in the ring; 0, 0: none."""
        opening = self._words[self._opening]
        if not 0 < opening < _IMPLAUSIBLE:
            return 0, 0
        return max(1, opening - self._slots + 1), opening

    def _wrong(self, head: Head) -> str:
        if head.size > self._payload_size:
            return f"{head.size} committed bytes are more than a slot holds"
        if head.count > head.size:
            return f"{head.count} events in {head.size} bytes"
        # Of a generation that never was: its producer found that in the control block.
        if head.start_ns | head.first >= _IMPLAUSIBLE:
            return "time or event number is implausible"
        return ""

    def copy(self, head: Head) -> Batch | None:
        """The batch's committed bytes as of now, or None if it has been overwritten.

        The committed length is read again, so that the copy is as new as can be.
        """
        renewed = self._renewed(head)
        if renewed is None:
            return None
        size, count, flags = renewed
        start = head.offset + SLOT.size
        payload = bytes(self._view[start : start + size])  # step: copy-payload
        if not self._still_there(head):
            return None
        head.size, head.count, head.flags = size, count, flags
        return Batch(head, payload)

    def copy_into(self, head: Head, room: memoryview) -> BatchView | Batch | None:
        """As `copy`, but into the beginning of `room`, if it has room enough."""
        renewed = self._renewed(head)
        if renewed is None:
            return None
        size, count, flags = renewed
        start = head.offset + SLOT.size
        payload = room[:size]
        if len(payload) < size:
            return self.copy(head)
        payload[:] = self._view[start : start + size]  # step: copy-payload
        if not self._still_there(head):
            return None
        head.size, head.count, head.flags = size, count, flags
        return BatchView(head, payload)

    def _renewed(self, head: Head) -> tuple[int, int, int] | None:
        """The batch's committed bytes and events and its flags as of now, checked."""
        base = head.offset // WORD
        committed = self._words[base + _COMMITTED]  # step: copy-committed
        flags = self._words[base + _FLAGS]
        size, count = committed & SIZE_MASK, committed >> COUNT_SHIFT
        if size > self._payload_size or count > size:
            return None
        fence.acquire()
        return size, count, flags

    def _still_there(self, head: Head) -> bool:
        """Whether what was copied before this call was the batch's."""
        fence.acquire()
        if self._announced() >= head.number + self._slots:  # step: copy-opening
            return False
        found: int = self._words[head.offset // WORD + _NUMBER]  # step: copy-number
        return found == head.number

    def recorded(self, heads: Sequence[Head]) -> int:
        """Events recorded since the producer attached, as far as its ring tells."""
        return heads[-1].first + heads[-1].count if heads else 0


def readers(segment: Segment) -> list[RingReader]:
    """One for each of the segment's rings, claimed or not, in their order."""
    geometry = segment.geometry
    return [
        RingReader(segment.view, segment.words, geometry, index)
        for index in range(geometry.producers)
    ]
