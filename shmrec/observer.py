"""A recording's producers looked at again and again: what they are inside of, how fast they are.

Runs in tools. Reads the segment and ``/proc``; asks nobody, flushes nothing, writes nothing. The
clock is passed in.

Bounded however large the rings are: of each ring a few words are read at every look, and batches
are decoded only of producers that have recorded since, at most `BATCHES_A_LOOK` in all. Who got no
turn is shown as it was, as of `looked_ns`, and is first at the next look; how much it recorded is
known all the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from shmrec import process
from shmrec.doubting import DoubtingReader, doubting_readers
from shmrec.ending import Ending
from shmrec.live import (
    LIVING,
    NEWEST,
    LappedError,
    LiveProducer,
    States,
    ending_of,
    overwritten,
)
from shmrec.segment import Segment

__all__ = ["BATCHES_A_LOOK", "Observer", "Sighting"]

BATCHES_A_LOOK: Final = 64
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_AT_MOST: Final = 1 << 62


@dataclass
class Sighting(LiveProducer):
    """A producer at a look.

    `rate` in events a second and `cpu` in percent of a processor are since the look before, None
    at the first. `rss` in bytes and `threads` are 0 of one that does not live. Its open spans are
    those of `looked_ns`. Where its ring lies about how many batches there are, all is of what the
    slots hold, and the first line of `damage` says so.
    """

    rate: float | None = None
    cpu: float | None = None
    rss: int = 0
    threads: int = 0
    looked_ns: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """Which producer it is, from one look to the next."""
        return self.entry.index, self.entry.incarnation


@dataclass
class _Known:
    """Of a producer, at the last look."""

    incarnation: int
    mark: tuple[int, int] = (-1, -1)
    ending: Ending | None = None
    looked_ns: int = 0
    recorded: int = 0
    counted_ns: int = 0
    ticks: int = -1
    notes: tuple[str, ...] = ()


class Observer:
    """Looks at the producers of one segment."""

    def __init__(self, segment: Segment) -> None:
        self._readers: Final = doubting_readers(segment)
        self._states: Final = States(segment)
        self._known: dict[int, _Known] = {}
        self._late: list[int] = []

    def look(self, now: int) -> list[Sighting]:
        """Every producer that joined and whose ring nobody has taken over, by ring."""
        claimed = [reader.index for reader in self._readers if reader.incarnation()]
        self._known = {index: self._known[index] for index in claimed if index in self._known}
        left, late = BATCHES_A_LOOK, list[int]()
        found: dict[int, Sighting] = {}
        for index in dict.fromkeys([*self._late, *claimed]):
            reader = self._readers[index]
            known = self._known.get(index)
            incarnation = reader.incarnation()
            if known is None or known.incarnation != incarnation:
                known = self._known[index] = _Known(incarnation)
            mark = reader.mark()
            if mark != known.mark:
                if left > 0:
                    left -= self._read(reader, known, mark, now)
                else:
                    late.append(index)
            sighting = self._sighting(reader, known, now)
            if sighting.entry.incarnation == reader.incarnation() == known.incarnation:
                found[index] = sighting
        self._late = late
        return [found[index] for index in sorted(found)]

    @staticmethod
    def _read(reader: DoubtingReader, known: _Known, mark: tuple[int, int], now: int) -> int:
        """See what it is inside of; returns how many batches that may have taken."""
        notes: list[str] = []
        try:
            known.ending, heads = ending_of(reader, notes)
        except LappedError:
            # Too fast for this once: it is as it was, and looked at again.
            return NEWEST
        known.mark, known.looked_ns, known.notes = mark, now, tuple(notes)
        return NEWEST if known.ending.partial else min(2, max(1, len(heads)))

    def _sighting(self, reader: DoubtingReader, known: _Known, now: int) -> Sighting:
        entry = reader.entry()
        seen = process.stat(entry.pid)
        state = self._states.of(entry, seen)
        ending = known.ending or Ending()
        _, newest = reader.announced()
        heads = reader.following(newest, 1).heads if newest else []
        recorded = min(reader.recorded(heads), _AT_MOST) if heads else known.recorded
        sighting = Sighting(
            entry,
            state,
            overwritten=overwritten(reader),
            recorded=recorded,
            newest_ns=ending.newest_ns,
            open_spans=ending.open_spans,
            partial=ending.partial,
            damage=[*filter(None, [reader.doubt]), *known.notes],
            looked_ns=known.looked_ns,
        )
        passed = now - known.counted_ns
        if known.counted_ns and passed > 0:
            sighting.rate = max(0, recorded - known.recorded) * 1e9 / passed
        living = state in LIVING and seen is not None
        if living and seen is not None:
            sighting.rss, sighting.threads = seen.resident_pages * _PAGE, seen.threads
            if known.ticks >= 0 and known.counted_ns and passed > 0:
                used = (seen.processor_ticks - known.ticks) * _TICK_NS
                sighting.cpu = max(0, used) * 100 / passed
        known.ticks = seen.processor_ticks if living and seen is not None else -1
        known.recorded, known.counted_ns = recorded, now
        return sighting
