"""Rings that this process has joined by hand, on a clock that is set by hand."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator

from shmrec import process
from shmrec._engine import Engine, choose
from shmrec.layout import ENTRY, SLOT, SLOT_SIZE, EntryState, Geometry
from shmrec.ring import RingReader, readers
from shmrec.segment import Segment, create

SECOND = 1_000_000_000


class Rings:
    """A segment with producers that are all this process, on a clock that is set by hand."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.now = 100 * SECOND
        self.engines: dict[int, Engine] = {}
        self.counts: Counter[int] = Counter()
        """Events by ring, of whoever has it now."""

    def join(self, index: int, label: str = "w", pid: int = 0) -> Engine:
        """A new producer in that ring."""
        words, geometry = self.segment.words, self.segment.geometry
        entry = geometry.entry(index)
        where = ENTRY.bytes_at("label", entry)
        self.segment.view[where] = label.encode().ljust(where.stop - where.start, b"\0")
        for slot in range(geometry.slots):
            words[SLOT.word("number", geometry.ring(index) + slot * SLOT_SIZE)] = 0
        values = {
            "incarnation": words[ENTRY.word("incarnation", entry)] + 1,
            "pid": pid or os.getpid(),
            "start_ticks": process.start_ticks(os.getpid()),
            "attached_ns": self.now,
            "state": EntryState.LIVE,
        }
        for name, value in values.items():
            words[ENTRY.word(name, entry)] = value
        writer = choose(None)[1](clock=lambda: self.now)
        writer.bind(
            self.segment.view,
            words,
            entry=entry,
            ring=geometry.ring(index),
            slot_size=geometry.slot_size,
            slots=geometry.slots,
        )
        if index in self.engines:
            self.engines[index].unbind()
        self.engines[index] = writer
        self.counts[index] = 0
        return writer

    def put(self, index: int, name: str, after: int = 1000, **args: object) -> None:
        """An instant, so many nanoseconds after what was recorded before it."""
        self.now += after
        self.engines[index].instant(name, **args)
        self.counts[index] += 1

    def set(self, index: int, **values: int) -> None:
        for name, value in values.items():
            self.segment.words[ENTRY.word(name, self.segment.geometry.entry(index))] = value

    def reader(self, index: int) -> RingReader:
        return readers(self.segment)[index]


@contextlib.contextmanager
def joined(name: str, producers: int = 3, slots: int = 4) -> Iterator[Rings]:
    """A segment of that name with rings to join."""
    geometry = Geometry.of(slots * SLOT_SIZE, producers)
    with create(name, geometry, keep_size=0, keep_period_ns=0) as segment:
        rings = Rings(segment)
        try:
            yield rings
        finally:
            for engine in rings.engines.values():
                engine.unbind()
