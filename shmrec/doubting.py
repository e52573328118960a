"""A ring that is read again and again, also where its count of batches is not to be believed.

Runs in tools that watch a recording. A producer keeps the number of its newest batch to itself and
writes it into ``opening`` for readers, so whoever scribbles on that word harms readers alone, until
the next batch. The slots' own numbers decide then, as they do in a snapshot: what is in whole slots
is read, and `doubt` says that the word is a lie.

Invariants: a ring that tells the truth costs three words more at each look; the headers of all
slots are read only where the slots contradict the word, and no payload is for that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import Any, Final

from shmrec.layout import SLOT, WORD, Geometry
from shmrec.ring import Head, RingReader, Scan
from shmrec.segment import Segment

__all__ = ["DoubtingReader", "doubting_readers"]

_NUMBER: Final = SLOT.word("number")
_COMMITTED: Final = SLOT.word("committed")
_IMPLAUSIBLE: Final = 1 << 62
_NONE: Final = -1

_number = attrgetter("number")


class DoubtingReader(RingReader):
    """As `RingReader`; `doubt` is what contradicts the ring's word, empty while nothing does."""

    def __init__(self, view: Any, words: Any, geometry: Geometry, index: int) -> None:
        super().__init__(view, words, geometry, index)
        self.doubt = ""
        self._lie = _NONE
        self._held = 0
        """The newest batch by the slots, where the word is a lie."""
        self._heads: list[Head] = []

    def mark(self) -> tuple[int, int]:
        newest = self._newest()
        if not newest:
            return 0, 0
        return newest, self._words[self._slot(newest) // WORD + _COMMITTED]

    def announced(self) -> tuple[int, int]:
        newest = self._newest()
        return (max(1, newest - self._slots + 1), newest) if newest else (0, 0)

    def newest(self, count: int) -> list[Head]:
        newest = self._newest()
        return self.following(max(1, newest - min(count, self._slots) + 1), count).heads

    def following(self, number: int, count: int) -> Scan:
        newest = self._newest()
        if self.doubt and number + count > newest:
            # All others are finished; this one may have grown.
            newest = self._decided()
        if not self.doubt:
            return super().following(number, count)
        end = min(newest, number + count - 1)
        first = bisect_left(self._heads, number, key=_number)
        return Scan(self._heads[first : bisect_right(self._heads, end, key=_number)])

    def _newest(self) -> int:
        """The newest batch's number; 0: none."""
        opening: int = self._words[self._opening]
        if self._fits(opening):
            return self._trusted(opening)
        if opening == self._lie and self._fits(self._held):
            return self._held
        return self._decided()

    def _fits(self, number: int) -> bool:
        """Whether the slots look as they do when that is the newest batch, or is being opened."""
        if not 0 <= number < _IMPLAUSIBLE or self._holds(number + 1):
            return False
        if number > 1:
            return self._holds(number) or self._holds(number - 1)
        return self._in_slot(1) in (0, number) and not self._in_slot(2)

    def _holds(self, number: int) -> bool:
        return self._in_slot(number) == number

    def _in_slot(self, number: int) -> int:
        """The number in the slot of that batch."""
        found: int = self._words[self._slot(number) // WORD + _NUMBER]
        return found

    def _decided(self) -> int:
        """The newest batch's number by the headers of all slots."""
        opening: int = self._words[self._opening]
        if opening < _IMPLAUSIBLE and not any(self._column(_NUMBER)):
            # Its owner has recorded nothing yet: the number is where the one before him stopped.
            return self._trusted(opening)
        scan = self.scan()
        self._heads = scan.heads
        if self._disbelieved != _NONE:
            self.doubt, self._lie, self._held = scan.damage[0], self._disbelieved, self._believed
            return self._held
        if opening >= _IMPLAUSIBLE:
            self.doubt, self._lie, self._held = scan.damage[0], opening, 0
            return 0
        # The producer went on while it was looked at, or the slots were harmed, not the word.
        return self._trusted(opening)

    def _trusted(self, opening: int) -> int:
        if self.doubt:
            self.doubt, self._heads = "", []
            self._lie = self._disbelieved = _NONE
        return opening


def doubting_readers(segment: Segment) -> list[DoubtingReader]:
    """One for each of the segment's rings, claimed or not, in their order."""
    geometry = segment.geometry
    return [
        DoubtingReader(segment.view, segment.words, geometry, index)
        for index in range(geometry.producers)
    ]
