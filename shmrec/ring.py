"""The read side of a ring: consistent copies of what a producer may be overwriting.

Runs in the collector and in tools. The other half of the protocol is `batch` and `writer`.

Invariants: nothing in the segment is believed before it has been checked against the
geometry; a batch is handed out only if its slot still carried its number, and no newer batch
for that slot had been announced by ``opening``, *after* its bytes were copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shmrec.layout import (
    COUNT_SHIFT,
    ENGINES,
    ENTRY,
    LABEL_BYTES,
    LOSSES,
    LOST_AT_MOST,
    SIZE_MASK,
    SLOT,
    WORD,
    EntryState,
    Geometry,
)

__all__ = ["Batch", "Entry", "Head", "RingReader"]

_NUMBER, _GENERATION, _START, _COMMITTED, _FIRST, _FLAGS = (
    SLOT.word(name) for name in ("number", "generation", "start_ns", "committed", "first", "flags")
)
_IMPLAUSIBLE: Final = 1 << 62


@dataclass(slots=True)
class Entry:
    """A producer entry as it was at one moment. Times are CLOCK_MONOTONIC nanoseconds."""

    index: int
    incarnation: int
    state: int
    pid: int
    start_ticks: int
    attached_ns: int
    detached_ns: int
    engine: str
    fenced: bool
    identity: str
    label: str
    writing: int
    opening: int
    closed_generation: int
    losses: dict[str, int]
    settled: int
    ended_ns: int

    @property
    def attached(self) -> bool:
        """Whether the producer says it is still there."""
        return self.state == EntryState.LIVE


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
class Scan:
    """The batches of a ring, oldest first, and what was wrong with the slots left out."""

    heads: list[Head]
    damage: list[str] = field(default_factory=list)


class RingReader:
    """Reads one producer's entry and ring; `words` and `view` index like the segment's."""

    def __init__(self, view: Any, words: Any, geometry: Geometry, index: int) -> None:
        self._view = view
        self._words = words
        self._geometry = geometry
        self.index: Final = index
        self._entry: Final = geometry.entry(index)
        self._opening: Final = ENTRY.word("opening", self._entry)

    def _word(self, name: str) -> int:
        word: int = self._words[ENTRY.word(name, self._entry)]
        return word

    def incarnation(self) -> int:
        """How often the ring has been claimed; changes when another producer takes it."""
        return self._word("incarnation")

    def progress(self) -> tuple[int, int, int]:
        """`writing`, `closed_generation`, and the newest batch's generation (0: none)."""
        writing = self._word("writing")
        closed = self._word("closed_generation")
        opening = self._words[self._opening]
        newest = 0
        if 0 < opening < _IMPLAUSIBLE:
            base = self._slot(opening) // WORD
            if self._words[base + _NUMBER] == opening:
                newest = self._words[base + _GENERATION]
        return writing, closed, newest

    def entry(self) -> Entry:
        """A copy of the producer's entry."""
        view, at = self._view, self._entry
        first = ENTRY.word("losses", at)
        losses = self._words[first : first + len(LOSSES)]
        engine = self._word("engine")
        label = bytes(view[ENTRY.bytes_at("label", at)]).split(b"\0", 1)[0]
        return Entry(
            index=self.index,
            incarnation=self._word("incarnation"),
            state=self._word("state"),
            pid=self._word("pid"),
            start_ticks=self._word("start_ticks"),
            attached_ns=self._word("attached_ns"),
            detached_ns=self._word("detached_ns"),
            engine=ENGINES[engine] if 0 < engine < len(ENGINES) else "unknown",
            fenced=self._word("fenced") == 1,
            identity=bytes(view[ENTRY.bytes_at("identity", at)]).hex(),
            label=label[:LABEL_BYTES].decode("utf-8", "replace"),
            writing=self._word("writing"),
            opening=self._word("opening"),
            closed_generation=self._word("closed_generation"),
            losses={
                cause: min(count, LOST_AT_MOST) for cause, count in zip(LOSSES, losses, strict=True)
            },
            settled=self._word("settled"),
            ended_ns=self._word("ended_ns"),
        )

    def _slot(self, number: int) -> int:
        geometry = self._geometry
        return geometry.ring(self.index) + (number - 1) % geometry.slots * geometry.slot_size

    def scan(self) -> Scan:
        """The headers of all batches in the ring, in order of their numbers."""
        geometry, words = self._geometry, self._words
        scan = Scan([])
        opening = words[self._opening]
        if opening >= _IMPLAUSIBLE:
            scan.damage.append(f"ring {self.index}: newest batch number {opening} is implausible")
            return scan
        for number in range(max(1, opening - geometry.slots + 1), opening + 1):
            offset = self._slot(number)
            base = offset // WORD
            found = words[base + _NUMBER]
            if found == 0 or found > opening:
                continue  # Being reset, of an earlier producer, or lapped since we looked.
            if found != number:
                if found < number and number <= opening - 1:
                    scan.damage.append(f"batch {number}: its slot holds number {found}")
                continue
            committed = words[base + _COMMITTED]
            head = Head(
                number=number,
                generation=words[base + _GENERATION],
                start_ns=words[base + _START],
                size=committed & SIZE_MASK,
                count=committed >> COUNT_SHIFT,
                first=words[base + _FIRST],
                flags=words[base + _FLAGS],
                offset=offset,
            )
            if words[base + _NUMBER] != number or words[self._opening] >= number + geometry.slots:
                continue
            wrong = self._wrong(head)
            if wrong:
                scan.damage.append(f"batch {number}: {wrong}")
            else:
                scan.heads.append(head)
        return scan

    def _wrong(self, head: Head) -> str:
        if head.size > self._geometry.payload_size:
            return f"{head.size} committed bytes are more than a slot holds"
        if head.count > head.size:
            return f"{head.count} events in {head.size} bytes"
        if max(head.generation, head.start_ns, head.first) >= _IMPLAUSIBLE:
            return "generation, time or event number is implausible"
        return ""

    def copy(self, head: Head) -> Batch | None:
        """The batch's committed bytes as of now, or None if it has been overwritten.

        The committed length is read again, so that the copy is as new as can be.
        """
        words = self._words
        base = head.offset // WORD
        committed = words[base + _COMMITTED]
        flags = words[base + _FLAGS]
        size, count = committed & SIZE_MASK, committed >> COUNT_SHIFT
        if size > self._geometry.payload_size or count > size:
            return None
        start = head.offset + SLOT.size
        payload = bytes(self._view[start : start + size])
        if words[self._opening] >= head.number + self._geometry.slots:
            return None
        if words[base + _NUMBER] != head.number:
            return None
        head.size, head.count, head.flags = size, count, flags
        return Batch(head, payload)

    def recorded(self, heads: Sequence[Head]) -> int:
        """Events recorded since the producer attached, as far as its ring tells."""
        return heads[-1].first + heads[-1].count if heads else 0
