"""Copying one ring for a snapshot, and counting what is not in the copy.

Runs in the collector, and cold in `recover`. The producer goes on meanwhile, and may overwrite
what is wished for before it is copied; or leave, and another process take the ring.

Invariants: copies are in the order of their numbers, each found intact after it had been made;
the newest is there whatever happens to the others; recorded, kept, trimmed and overwritten events
always add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shmrec.owners import Owner
from shmrec.ring import Batch, BatchView, Head, RingReader

__all__ = ["Copied", "Room", "copy_ring"]

_ATTEMPTS: Final = 64


class Room:
    """Memory for one ring's copies, used again for the next ring's."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def copies(self, reader: RingReader, heads: Sequence[Head]) -> list[Batch | BatchView]:
        """Copies of the batches that are still there; they last until the next call."""
        wanted = sum(head.size for head in heads)
        if wanted > len(self._memory):
            # Never both at a time: what rings hold differs by a little from one to the next.
            self._memory = bytearray()
            self._memory = bytearray(wanted)
        rest = memoryview(self._memory)
        found: list[Batch | BatchView] = []
        for head in heads:
            # One that has grown since it was seen may have to go elsewhere.
            copy = reader.copy_into(head, rest)
            if copy is not None:
                found.append(copy)
                if isinstance(copy, BatchView):
                    rest = rest[len(copy.payload) :]
        return found


@dataclass(slots=True)
class Copied:
    """What was copied, and what was not; `taken_over` if the ring has another owner by now."""

    copies: list[Batch | BatchView]
    recorded: int
    trimmed: int
    taken_over: bool

    @property
    def overwritten(self) -> int:
        """Events that were recorded and are neither here nor left out on purpose."""
        kept = sum(copy.head.count for copy in self.copies)
        return max(0, self.recorded - kept - self.trimmed)


def copy_ring(
    owner: Owner, room: Room, heads: Sequence[Head], wished: Sequence[Head], slots: int
) -> Copied:
    """Copy those batches of the owner's ring that are `wished`; `heads` are all that were there."""
    reader = owner.reader
    copies = room.copies(reader, wished)
    if not copies or copies[-1].head.number != wished[-1].number:
        # So fast that it lapped us, perhaps within the scan: what there is in any case.
        newest = _newest(reader, copies[-1].head.number if copies else 0)
        if newest is not None:
            copies.append(newest)
    taken_over = not reader.owned_by(owner.entry)  # step: owner-again
    if taken_over:
        # His batches that were still there are his; those behind them may be the other's.
        heads = [head for head in heads if head.number <= owner.number]
        copies = [copy for copy in copies if copy.head.number <= owner.number]
    ends = [copy.head.first + copy.head.count for copy in copies]
    # Else what was seen of him at first may be newer than the cut.
    seen = owner.recorded if taken_over or not copies else 0
    recorded = max([seen, reader.recorded(heads), *ends])
    left = {head.number for head in wished}
    oldest = copies[-1].head.number - slots if copies else 0
    trimmed = sum(head.count for head in heads if head.number not in left and head.number > oldest)
    return Copied(copies, recorded, trimmed, taken_over)


def _newest(reader: RingReader, behind: int) -> Batch | None:
    """A copy of the newest batch, if its number is higher."""
    for _ in range(_ATTEMPTS):
        heads = reader.newest(2)
        if heads and heads[-1].number > behind:
            copy = reader.copy(heads[-1])
            if copy is not None:
                return copy
    return None
