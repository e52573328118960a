"""The native engine writes within its own ring and entry, whatever places and memory it is given.

Also run under the sanitizers, by `tools/sanitize`.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmrec import _engine
from shmrec.extension import EXTENSION
from shmrec.layout import CONTROL, ENTRY, LOSSES, SLOT, WORD, Geometry, SegmentState

from .arena import Arena, events_in
from .conftest import wait_until
from .native import SANITIZED, a_writer, rebind

if EXTENSION is None:
    pytest.skip(f"no native engine: {_engine.refusal('native')}", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]


# Places that are not ours.

INTEGERS = st.integers(-(1 << 70), 1 << 70) | st.integers(-64, 20_000)
PLACES = st.sampled_from([0, 8, 64, 128, 4096, 8192, 16384]) | st.integers(0, 3000).map(
    lambda n: n * WORD
)


@settings(max_examples=400, deadline=None)
@given(
    places=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("entry", "ring", "slot_size", "slots"), INTEGERS | PLACES),
    ),
    size=st.integers(0, 40_000),
)
def test_a_binding_is_within_its_memory_or_refused(places: dict[str, int], size: int) -> None:
    assert EXTENSION is not None
    canary = 4096
    memory = bytearray(b"\xa5" * (size + 2 * canary))
    view = memoryview(memory)[canary : canary + size]
    writer = EXTENSION.Writer()
    try:
        writer.bind(view, None, **places)
    except (ValueError, TypeError, OverflowError):
        assert not writer.bound
    else:
        assert set(places) == {"entry", "ring", "slot_size", "slots"}
        for n in range(50):
            writer.instant("event", n=n, pad="x" * n)
            writer.begin("open")
        writer.unbind()
    inside = {
        place
        for start, length in (
            (places.get("entry", 0), ENTRY.size),
            (places.get("ring", 0), places.get("slot_size", 0) * places.get("slots", 0)),
        )
        for place in range(max(0, start), min(max(0, start + length), size))
    }
    written = {at - canary for at, byte in enumerate(memory) if byte != 0xA5}
    assert written <= inside


@pytest.mark.parametrize(
    "places",
    [
        {"entry": -8},
        {"ring": -8},
        {"slots": 0},
        {"slots": -1},
        {"slot_size": 0},
        {"slot_size": SLOT.size},
        {"slot_size": -512},
        {"entry": 4},
        {"ring": 12},
        {"slot_size": 508},
        {"slots": 1 << 62},
        {"slot_size": 1 << 62},
        {"entry": (1 << 63) - 8},
        {"ring": (1 << 63) - 8},
    ],
    ids=str,
)
def test_a_place_that_is_refused(places: dict[str, int]) -> None:
    arena = Arena()
    writer = a_writer(arena)
    before = bytes(arena.memory)
    with pytest.raises(ValueError, match="not within the memory, or not aligned"):
        rebind(writer, arena, **places)
    assert not writer.bound
    writer.instant("nowhere")
    assert bytes(arena.memory) == before
    rebind(writer, arena)
    writer.instant("there")
    assert [event.name for event in events_in(arena.reader())] == ["there"]


def test_memory_that_is_refused() -> None:
    arena = Arena()
    writer = a_writer(arena)
    memory: Any
    for memory in (None, 7, "text", [1]):
        with pytest.raises(TypeError):
            writer.bind(memory, None, entry=0, ring=0, slot_size=512, slots=1)
    for memory in (bytes(1 << 16), memoryview(bytearray(1 << 17))[::2]):
        with pytest.raises((BufferError, ValueError)):
            writer.bind(memory, None, entry=4096, ring=8192, slot_size=512, slots=1)
    with pytest.raises(ValueError, match="not aligned"):
        writer.bind(
            memoryview(bytearray(1 << 16))[1:], None, entry=4096, ring=8192, slot_size=512, slots=1
        )


def test_memory_is_held_as_long_as_it_is_used() -> None:
    arena = Arena()
    writer = a_writer(arena)
    arena.words.release()
    with pytest.raises(BufferError):
        arena.view.release()
    writer.instant("held")
    writer.unbind()
    arena.view.release()


BUFFERS = """
import sys
from shmrec import _native
from tests.arena import Arena

class Memory:
    def __init__(self, arena): self.arena, self.meddle = arena, None
    def __buffer__(self, flags): return memoryview(self.arena.memory)
    def __release_buffer__(self, view):
        meddle, self.meddle = self.meddle, None
        if meddle: meddle()
        view.release()

def bind(writer, memory, arena):
    entry, ring = arena.entry, arena.geometry.ring(0)
    writer.bind(memory, None, entry=entry, ring=ring, slot_size=512, slots=4)

for _ in range(50):
    arena = Arena()
    writer, memory = _native.Writer(), Memory(arena)
    for meddle in (writer.unbind, lambda: bind(writer, Memory(arena), arena), writer.forget):
        for call in (writer.unbind, lambda: bind(writer, memory, arena)):
            bind(writer, memory, arena)
            memory.meddle = meddle
            call()
            writer.instant("x")
            memory.meddle = None
            writer.unbind()
    assert sys.getrefcount(memory) == 2, sys.getrefcount(memory)
print("done")
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__release_buffer__ is of 3.12")
def test_memory_whose_release_meddles_with_the_writer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUFFERS], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# Memory that somebody scribbles on.


class Scribbled:
    """The second of three rings, between canaries, in memory that children may share."""

    CANARY = 4096

    def __init__(self) -> None:
        self.geometry = Geometry(producers=3, slots=4, slot_size=512)
        size = self.geometry.segment_size
        self.memory = mmap.mmap(-1, size + 2 * self.CANARY)
        self.view = memoryview(self.memory)[self.CANARY : self.CANARY + size]
        self.words = self.view.cast("Q")
        self.entry, self.ring = self.geometry.entry(1), self.geometry.ring(1)
        self.words[CONTROL.word("generation")] = 1
        ends = (range(self.CANARY), range(self.CANARY + size, len(self.memory)))
        for at in itertools.chain(*ends):
            self.memory[at] = 0xA5
        slots = range(self.ring, self.ring + 4 * 512, 512)
        regions = [(0, CONTROL.size), (self.entry, ENTRY.size), *((at, SLOT.size) for at in slots)]
        self.targets = [
            word for start, size in regions for word in range(start // WORD, (start + size) // WORD)
        ]

    def bind(self, writer: Any) -> None:
        writer.bind(self.view, self.words, entry=self.entry, ring=self.ring, slot_size=512, slots=4)

    def outside(self) -> list[bytes]:
        """Everything that is not the writer's."""
        entry, ring = self.entry + self.CANARY, self.ring + self.CANARY
        memory = memoryview(self.memory)
        return [
            bytes(memory[:entry]),
            bytes(memory[entry + ENTRY.size : ring]),
            bytes(memory[ring + 4 * 512 :]),
        ]

    def close(self) -> None:
        self.words.release()
        self.view.release()
        self.memory.close()


@pytest.fixture
def scribbled() -> Iterator[Scribbled]:
    found = Scribbled()
    yield found
    found.close()


def garbage(chance: random.Random) -> int:
    edges = (0, 1, (1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 48, SegmentState.CLOSED)
    return chance.choice((*edges, chance.getrandbits(64), chance.getrandbits(16)))


def record_anything(writer: Any, chance: random.Random, spans: list[int]) -> None:
    what = chance.randrange(7)
    if what == 0:
        writer.instant(f"event {chance.randrange(40)}", n=chance.getrandbits(64))
    elif what == 1:
        spans.append(writer.begin("open", pad="x" * chance.randrange(100)))
    elif what == 2 and spans:
        writer.end(spans.pop(chance.randrange(len(spans))))
    elif what == 3:
        with writer.span("span", value={1}):
            writer.counter("depth", chance.random())
    elif what == 4:
        writer.lose(chance.choice(LOSSES), chance.choice((1, -1, (1 << 63) - 1, -(1 << 63))))
    elif what == 5:
        writer.instant("large", pad="x" * 500)
    else:
        writer.instant("plain")


@pytest.mark.parametrize("seed", range(20))
def test_garbage_between_events_does_no_harm(seed: int, scribbled: Scribbled) -> None:
    assert EXTENSION is not None
    chance = random.Random(seed)
    writer = EXTENSION.Writer()
    spans: list[int] = []
    for _ in range(1500):
        for _ in range(chance.randrange(3)):
            scribbled.words[chance.choice(scribbled.targets)] = garbage(chance)
        before = scribbled.outside()
        if not writer.bound:
            scribbled.bind(writer)
        record_anything(writer, chance, spans)
        assert scribbled.outside() == before
    writer.unbind()


def test_garbage_from_another_process_does_no_harm(scribbled: Scribbled) -> None:
    assert EXTENSION is not None
    chance = random.Random(7)
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            while True:
                scribbled.words[chance.choice(scribbled.targets)] = garbage(chance)
        os._exit(1)
    try:
        wait_until(lambda: any(scribbled.words[word] > 1 for word in scribbled.targets[:60]))
        writer = EXTENSION.Writer()
        spans: list[int] = []
        rounds = 0
        for _ in range(5_000 if SANITIZED else 50_000):
            if not writer.bound:
                scribbled.bind(writer)
                rounds += 1
            record_anything(writer, chance, spans)
        assert rounds
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    writer.unbind()
    outside = scribbled.outside()
    # The control block was the other's to scribble on; nothing else was anybody's.
    assert outside[0][: scribbled.CANARY] == b"\xa5" * scribbled.CANARY
    assert set(outside[0][scribbled.CANARY + CONTROL.size :]) == {0}
    assert set(outside[1]) == {0}
    assert outside[2][-scribbled.CANARY :] == b"\xa5" * scribbled.CANARY
    assert set(outside[2][: -scribbled.CANARY]) == {0}
