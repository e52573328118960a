"""A recording's memory in a plain bytearray, with a writer and a reader over it.

For tests: `Arena` steps a writer store by store, and a reader load by load. Only the python
engine's writer can be stepped; where nothing is stepped the writer is of the engine under test.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from shmrec._engine import Engine, choose
from shmrec.decoder import Event, decode
from shmrec.layout import CONTROL, ENTRY, SIZE_MASK, SLOT, EntryState, Geometry
from shmrec.ring import Batch, RingReader
from shmrec.writer import Writer


class Stepped:
    """Words or bytes that call `step` before every access of theirs."""

    def __init__(self, under: Any, step: Callable[[], None], *, loads: bool, stores: bool) -> None:
        self._under = under
        self._step = step
        self._loads = loads
        self._stores = stores

    def __getitem__(self, key: Any) -> Any:
        if self._loads and isinstance(key, slice) and key.step is not None:
            # A pass over one field of many slots: a load each.
            return _SteppedPass(self._under[key], self._step)
        if self._loads:
            self._step()
        return self._under[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if not self._stores:
            self._under[key] = value
        elif isinstance(key, slice):
            # A copy is not atomic: stop in the middle of it too.
            self._step()
            middle = (key.start + key.stop) // 2
            self._under[key.start : middle] = value[: middle - key.start]
            self._step()
            self._under[middle : key.stop] = value[middle - key.start :]
        else:
            self._step()
            self._under[key] = value


class _SteppedPass:
    """A strided view whose words are loaded one by one."""

    def __init__(self, under: Any, step: Callable[[], None]) -> None:
        self._under = under
        self._step = step

    def tolist(self) -> list[int]:
        loaded = []
        for index in range(len(self._under)):
            self._step()
            loaded.append(self._under[index])
        return loaded


class Arena:
    """One ring in private memory; time is a counter."""

    def __init__(self, slots: int = 4, slot_size: int = 512) -> None:
        self.geometry = Geometry(producers=1, slots=slots, slot_size=slot_size)
        self.memory = bytearray(self.geometry.segment_size)
        self.view = memoryview(self.memory)
        self.words = self.view.cast("Q")
        self.entry = self.geometry.entry(0)
        self.set_generation(1)
        self.words[ENTRY.word("incarnation", self.entry)] = 1
        self.words[ENTRY.word("state", self.entry)] = EntryState.LIVE
        self.now = 1_000_000
        self.steps = 0

    def set_generation(self, generation: int) -> None:
        self.words[CONTROL.word("generation")] = generation

    def clock(self) -> int:
        self.now += 1000
        return self.now

    def writer(self, step: Callable[[], None] | None = None, *, engine: str = "") -> Engine:
        view: Any = self.view
        words: Any = self.words
        if step is None:
            writer = choose(engine or None)[1](clock=self.clock)
        else:
            writer = Writer(clock=self.clock)
            view = Stepped(view, step, loads=False, stores=True)
            words = Stepped(words, step, loads=True, stores=True)
        writer.bind(
            view,
            words,
            entry=self.entry,
            ring=self.geometry.ring(0),
            slot_size=self.geometry.slot_size,
            slots=self.geometry.slots,
        )
        return writer

    def reader(self, step: Callable[[], None] | None = None) -> RingReader:
        view: Any = self.view
        words: Any = self.words
        if step is not None:
            view = Stepped(view, step, loads=True, stores=False)
            words = Stepped(words, step, loads=True, stores=False)
        return RingReader(view, words, self.geometry, 0)

    def word(self, name: str) -> int:
        return self.words[ENTRY.word(name, self.entry)]


def batches(reader: RingReader) -> list[Batch]:
    """Consistent copies of all batches that the ring gives."""
    scan = reader.scan()
    assert not scan.damage
    return [copy for head in scan.heads if (copy := reader.copy(head)) is not None]


def events_of(batch: Batch) -> list[Event]:
    """The batch's events; it must be whole."""
    decoded = decode(
        batch.payload,
        start_ns=batch.head.start_ns,
        generation=batch.head.generation,
        flags=batch.head.flags,
    )
    events = list(decoded)
    assert not decoded.damage
    assert len(events) == batch.head.count
    return events


def events_in(reader: RingReader) -> list[Event]:
    """All events that the ring gives."""
    return [event for batch in batches(reader) for event in events_of(batch)]


class Baton:
    """Runs a writer in a thread that moves only when told to, one step at a time."""

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        self._go = threading.Semaphore(0)
        self._moved = threading.Semaphore(0)
        self._free = False
        self.done = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], None]], None]) -> None:
        try:
            self._go.acquire()
            work(self._step)
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._moved.release()

    def _step(self) -> None:
        if not self._free:
            self._moved.release()
            self._go.acquire()

    def advance(self, steps: int = 1) -> None:
        """Let the writer make so many steps, or end."""
        for _ in range(steps):
            if self.done:
                return
            self._go.release()
            self._moved.acquire()

    def finish(self) -> None:
        """Let the writer run to its end; raises what it raised."""
        self._free = True
        while not self.done:
            self._go.release()
            self._moved.acquire()
        self._thread.join()
        if self.error is not None:
            raise self.error


def numbered(count: int, start: int = 0) -> Iterator[tuple[str, int]]:
    """Names and numbers for events that can be told apart and put in order."""
    for n in range(start, start + count):
        yield f"event-{n % 3}", n


def bytes_left(arena: Arena) -> list[object]:
    """What a reader may see: the producer's words, slot headers, and committed payloads."""
    left: list[object] = [
        arena.words[ENTRY.word(row.name, arena.entry)]
        for row in ENTRY.rows
        if row.writer == "producer" and row.name != "losses"
    ]
    left.append({cause: n for cause, n in arena.reader().entry().losses.items() if n})
    geometry = arena.geometry
    for slot in range(geometry.slots):
        start = geometry.ring(0) + slot * geometry.slot_size
        left.append([arena.words[SLOT.word(row.name, start)] for row in SLOT.rows])
        size = arena.words[SLOT.word("committed", start)] & SIZE_MASK
        assert size <= geometry.payload_size
        left.append(bytes(arena.view[start + SLOT.size : start + SLOT.size + size]))
    return left
