"""The snapshot file, and reading one; `file_writer` writes it. Runs wherever snapshots are read.

Not called ``snapshot``: importing a module of that name would put it in the place of the
function ``shmrec.snapshot``.

A file is a magic and then frames, declared in `layout`; a frame's value is one of::

    [HEADER, {recording, reason, trigger, taken_mono_ns, taken_wall_ns, generation, ...}]
    [PRODUCER, {index, pid, label, state, evidence, cause, losses, ...}]
    [BATCH, producer index, number, generation, start_ns, first, count, flags, payload]
    [STACK, producer index, {kind, taken_ns, text, cut, note, idents}]
    [TRAILER, {producers, batches, events}]

A producer's frame comes before its batches and stacks, the trailer last. Readers skip kinds
and keys that they do not know, so that later versions may add some. Whatever is in a file is
hostile until checked: lengths before allocation, types before use. A damaged frame is named and
skipped, and the frames around it are read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

from shmrec import layout
from shmrec.bulk import Runs
from shmrec.counters import fact_runs
from shmrec.decoder import Event
from shmrec.ending import SPANS, SPANS_IN_ALL, find_ending
from shmrec.errors import DamagedFileError, NoSuchSnapshotError
from shmrec.frame_values import (
    HEADER_KEYS,
    VALUE_ERRORS,
    fill,
    producer_of,
    stack_of,
    unpack,
)
from shmrec.frames import frames
from shmrec.layout import Frame
from shmrec.manifest import Cause, Header, Producer, Stack
from shmrec.merging import merged, run_size
from shmrec.ring import Batch, Head

__all__ = [
    "Cause",
    "Header",
    "Producer",
    "Snapshot",
    "Stack",
    "Watch",
    "read",
]

Watch: TypeAlias = Callable[[int], object]
"""Told of so many bytes more that were read."""

_NOTES_LIMIT: Final = 100
_STACKS_LIMIT: Final = 16
_STACKS_BYTES: Final = 64 << 20
"""Of all stacks together: those of a thousand producers, as large as they can be."""
_IDENT_BYTES: Final = 150
"""What one of a stack's idents takes in memory, about."""
_TOO_MANY: Final = "more producers than there can be: the others are left out"


@dataclass(slots=True)
class _Where:
    """A batch in the file: where its frame's value is, and its header."""

    offset: int
    length: int
    number: int
    generation: int
    start_ns: int
    first: int
    count: int
    flags: int


class Snapshot:
    """A snapshot file, opened: small in memory, its events decoded as they are asked for.

    `damage` says in words what is missing or could not be read; empty for an intact file.
    """

    def __init__(self, path: Path, watch: Watch | None = None) -> None:
        self.path: Final = path
        self._watch: Final[Watch] = watch or _nobody
        self.header = Header()
        self.producers: list[Producer] = []
        self.damage: list[str] = []
        self.size = 0
        self._batches: dict[int, list[_Where]] = {}
        self._indexes: set[int] = set()
        self._stacks: dict[int, list[Stack]] = {}
        self._counts: dict[str, Any] | None = None
        self._spans = 0
        self._stack_bytes = 0

    @property
    def complete(self) -> bool:
        """Whether the file is whole and no producer stalled or had unreadable batches."""
        return not self.damage and not any(
            producer.evidence == "stalled" or producer.damage for producer in self.producers
        )

    @property
    def batches(self) -> int:
        """How many batches the file holds."""
        return sum(len(found) for found in self._batches.values())

    def reference_ns(self, producer: Producer) -> int:
        """The moment to which the ages of the producer's open spans are measured."""
        return producer.ended_ns or producer.detached_ns or self.header.taken_mono_ns

    def wall_ns(self, time_ns: int) -> int:
        """CLOCK_MONOTONIC nanoseconds of the recording host as nanoseconds since the epoch."""
        return self.header.taken_wall_ns + time_ns - self.header.taken_mono_ns

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def events(self, *, producers: set[int] | None = None, facts: bool = False) -> Iterator[Event]:
        """The events of all producers, or of those with these indexes, in time order.

        With `facts` also what the kernel said of the processes, as `counters` has it.
        """
        return chain.from_iterable(self.runs(producers=producers, facts=facts))

    def runs(
        self,
        *,
        producers: set[int] | None = None,
        ordered: bool = True,
        facts: bool = False,
        told: Callable[[str], None] = lambda note: None,
    ) -> Iterator[list[Event]]:
        """The same events in lists, which is how to go through many of them fast.

        Not `ordered`, they come producer by producer, which is faster still. `told` is called
        with a sentence for each batch that has not all of its events; `damage` is of the file.
        """
        wanted = [
            producer
            for producer in self.producers
            if producers is None or producer.index in producers
        ]
        size = run_size(len(wanted) if ordered else 1)
        with open(self.path, "rb") as file:
            streams = [self._runs_of(file, producer, size, told=told) for producer in wanted]
            if facts:
                streams += [fact_runs(producer, size) for producer in wanted]
            yield from merged(streams, size) if ordered else chain.from_iterable(streams)

    def last(self, producer: Producer, count: int) -> list[Event]:
        """The producer's newest events, oldest first, from as few batches as hold them."""
        batches = self._batches.get(producer.index, [])
        first, held = len(batches), 0
        while first and held < count:
            first -= 1
            held += batches[first].count
        with open(self.path, "rb") as file:
            runs = self._runs_of(file, producer, run_size(1), first)
            return list(deque(chain.from_iterable(runs), maxlen=count))

    def raw_batches(self, producer: Producer) -> Iterator[Batch]:
        """The producer's batches as they are in the file, by their numbers."""
        with open(self.path, "rb") as file:
            for where in self._batches.get(producer.index, ()):
                payload = self._payload(file, where)
                head = Head(
                    where.number,
                    where.generation,
                    where.start_ns,
                    len(payload),
                    where.count,
                    where.first,
                    where.flags,
                    where.offset,
                )
                yield Batch(head, payload)

    def _runs_of(
        self,
        file: IO[bytes],
        producer: Producer,
        size: int,
        first: int = 0,
        told: Callable[[str], None] = lambda note: None,
    ) -> Iterator[list[Event]]:
        for where in islice(self._batches.get(producer.index, ()), first, None):
            decoded = self._decoded(file, producer, where, size)
            count = 0
            for run in decoded:
                count += len(run)
                yield run
            if decoded.damage or count != where.count:
                wrong = decoded.damage or f"{count} of {where.count} events"
                told(f"pid {producer.pid}, batch {where.number}: {wrong}")

    def _decoded(self, file: IO[bytes], producer: Producer, where: _Where, size: int) -> Runs:
        return Runs(
            self._payload(file, where),
            start_ns=where.start_ns,
            generation=where.generation,
            flags=where.flags,
            pid=producer.pid,
            label=producer.label,
            producer=producer.index,
            size=size,
        )

    def _payload(self, file: IO[bytes], where: _Where) -> bytes:
        packed = os.pread(file.fileno(), where.length, where.offset)
        self._watch(where.length)
        try:
            payload: bytes = unpack(packed)[8]
        except VALUE_ERRORS as error:
            raise DamagedFileError(f"{self.path} was changed while it was being read") from error
        return payload

    def _note(self, text: str) -> None:
        if len(self.damage) < _NOTES_LIMIT:
            self.damage.append(text)

    # Opening.

    def _load(self) -> None:
        with open(self.path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if file.read(len(layout.FILE_MAGIC)) != layout.FILE_MAGIC:
                raise DamagedFileError(f"{self.path} is not a shmrec snapshot")
            seen = 0
            for offset, packed in frames(file, self.size, self._note):
                self._watch(len(packed))
                try:
                    self._take(offset, packed)
                    seen += 1
                except VALUE_ERRORS as error:
                    self._note(f"frame at byte {offset}: unusable: {error}")
            if not seen:
                raise DamagedFileError(f"{self.path}: no frame of this snapshot can be read")
            self._check_counts()
            for producer in self.producers:
                producer.stacks = self._stacks.get(producer.index, [])
                self._work_out(file, producer)
        if not self.header.flushes and self.header.taken_mono_ns:
            self._settle_moment()

    def _settle_moment(self) -> None:
        """Of memory that was read cold, the moment is that of the last event in it.

        Whoever wrote it knew of heartbeats and of batches' beginnings alone.
        """
        newest = max((producer.newest_ns for producer in self.producers), default=0)
        later = max(0, newest - self.header.taken_mono_ns)
        self.header.taken_mono_ns += later
        self.header.taken_wall_ns += later

    def _take(self, offset: int, packed: bytes) -> None:
        value = unpack(packed)
        kind = value[0] if type(value) is list and value else None
        if kind == Frame.BATCH:
            index, number, generation, start_ns, first, count, flags = value[1:8]
            if not all(type(v) is int for v in value[1:8]) or type(value[8]) is not bytes:
                raise ValueError("a batch's fields have wrong types")
            if len(value[8]) > layout.SLOT_SIZE:
                raise ValueError("a batch is larger than a slot")
            where = _Where(offset, len(packed), number, generation, start_ns, first, count, flags)
            self._batches.setdefault(index, []).append(where)
        elif kind == Frame.PRODUCER:
            if len(self.producers) >= layout.MAXIMUM_PRODUCERS:
                raise ValueError(_TOO_MANY)
            producer = producer_of(value[1])
            if producer.index in self._indexes:
                raise ValueError(f"producer {producer.index} is there twice")
            self._indexes.add(producer.index)
            self.producers.append(producer)
        elif kind == Frame.HEADER:
            fill(self.header, value[1], HEADER_KEYS)
            kept = self.header.generations
            self.header.generations = [each for each in kept if type(each) is int]
        elif kind == Frame.STACK:
            self._take_stack(value[1], value[2])
        elif kind == Frame.TRAILER:
            self._counts = dict(value[1])

    def _take_stack(self, index: Any, value: Any) -> None:
        if index not in self._indexes:
            raise ValueError("a stack of no producer before it")
        found = self._stacks.setdefault(index, [])
        if len(found) >= _STACKS_LIMIT:
            raise ValueError(f"producer {index} has more stacks than there can be")
        stack = stack_of(value)
        size = sum(map(len, (stack.kind, stack.text, stack.note))) + _IDENT_BYTES * len(
            stack.idents
        )
        if self._stack_bytes + size > _STACKS_BYTES:
            raise ValueError("more stacks than can be kept in memory: this one is left out")
        self._stack_bytes += size
        found.append(stack)

    def _check_counts(self) -> None:
        if not self.header.recording:
            self._note("the header is missing")
        if self._counts is None:
            self._note("the file ends early: its trailer is missing")
        else:
            found = {"producers": len(self.producers), "batches": self.batches}
            for what, number in found.items():
                if self._counts.get(what) != number:
                    self._note(f"{number} of {self._counts.get(what)} {what} could be read")
        known = {producer.index for producer in self.producers}
        for index in sorted(self._batches.keys() - known):
            if len(self.producers) >= layout.MAXIMUM_PRODUCERS:
                self._note(_TOO_MANY)
                break
            self._note(f"producer {index} is missing, its batches are not")
            self.producers.append(Producer(index=index, label="?", state="unknown"))
        for batches in self._batches.values():
            batches.sort(key=lambda where: where.number)

    def _work_out(self, file: IO[bytes], producer: Producer) -> None:
        """Counts, ends, and the spans open at the end, from as few batches as tell them."""
        batches = self._batches.get(producer.index, [])
        if not batches:
            return
        producer.events = sum(where.count for where in batches)
        producer.oldest_ns = batches[0].start_ns
        limit = min(SPANS, SPANS_IN_ALL - self._spans)
        ending = find_ending(batches, lambda where: self._payload(file, where), limit)
        self._spans += len(ending.open_spans)
        producer.newest_ns = ending.newest_ns
        producer.open_spans = ending.open_spans
        producer.spans_missing = ending.partial
        producer.damage += ending.damage

    def verify(self) -> list[str]:
        """Decode every event; say what is damaged, `damage` included."""
        found = list(self.damage)
        for _ in self.runs(ordered=False, told=found.append):
            pass
        return found[:_NOTES_LIMIT]


def read(path: str | os.PathLike[str], watch: Watch | None = None) -> Snapshot:
    """Open a snapshot file.

    Reads any valid prefix: what is missing is said in ``Snapshot.damage``. Raises
    `NoSuchSnapshotError` if it cannot be opened, `DamagedFileError` if it is no snapshot or
    nothing in it can be read. `watch` is told of bytes as they are read, now and whenever the
    snapshot is gone through.
    """
    snapshot = Snapshot(Path(path), watch)
    try:
        snapshot._load()
    except OSError as error:
        raise NoSuchSnapshotError(f"cannot read {path}: {error.strerror}") from error
    return snapshot


def _nobody(more: int) -> None:
    pass
