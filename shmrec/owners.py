"""Whose the rings are in a snapshot: those who had them when it began.

Runs in the collector, and cold in `recover`. Who has left may have his ring claimed by another
process at any moment, also while the snapshot is being taken. What he recorded before it was
asked for is in the snapshot all the same, or counted: so it is remembered who was there, how far
he had come, and which batches are his.

Invariants: an entry is believed only if it was one owner's from the first word to the last, and
what was read of a ring only if its owner was still the same afterwards; batch numbers go on when a
ring changes hands, so that a number tells whose a batch is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shmrec.entry import Entry
from shmrec.ring import Head, RingReader

__all__ = ["Owner", "Owners"]

_ATTEMPTS: Final = 8
_NEWEST: Final = 2
"""Of a producer that stands still between two batches, the older one of these is whole."""


@dataclass(slots=True)
class Owner:
    """Who has a ring, as he was last seen: his newest batch, and the events up to its end."""

    reader: RingReader
    entry: Entry
    number: int
    recorded: int


class Owners:
    """The owners of these rings; iterate to get them in the order of their rings."""

    def __init__(self, rings: Sequence[RingReader]) -> None:
        self._rings = rings
        self._owners: dict[int, Owner] = {}

    def look(self) -> dict[int, tuple[RingReader, Entry]]:
        """Who has a ring now, by its index.

        Whoever has one for the first time is added, and who was there already is brought up to
        date; who has lost his to another stays in its place.
        """
        present = {}
        for reader in self._rings:
            owner = _owner(reader)
            if owner is None:
                continue
            index, known = reader.index, self._owners.get(reader.index)
            present[index] = reader, owner.entry
            if known is None or known.entry.incarnation == owner.entry.incarnation:
                self._owners[index] = owner
        return present

    def __iter__(self) -> Iterator[Owner]:
        return iter([self._owners[index] for index in sorted(self._owners)])


def _owner(reader: RingReader) -> Owner | None:
    for _ in range(_ATTEMPTS if reader.incarnation() else 0):
        entry = reader.owner()
        if entry is None:
            continue
        heads: list[Head] = []
        for _ in range(_ATTEMPTS if entry.opening else 0):
            # A fast one may lap even this.
            heads = reader.newest(_NEWEST)
            if heads:
                break
        if reader.owned_by(entry):
            number = heads[-1].number if heads else entry.opening
            return Owner(reader, entry, number, reader.recorded(heads))
    return None
