"""A process that scribbles on the segment: what others wrote is found all the same, and told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import shmrec
from shmrec import capture, ledger, live
from shmrec._engine import choose
from shmrec.capture import Order
from shmrec.collector import Collector
from shmrec.control_block import ControlBlock
from shmrec.errors import LayoutMismatchError
from shmrec.layout import CONTROL, ENTRY, SLOT, SLOT_SIZE, EntryState, Geometry, SlotFlag
from shmrec.ring import RingReader
from shmrec.segment import Segment, create, open_segment
from shmrec.takeover import Settings
from tools.stress.scribbling import SPARING

LIAR, HONEST = 0, 1
SLOTS = 8


class World:
    """A recording that this process serves, with a liar and an honest producer."""

    def __init__(self, segment: Segment, directory: Path) -> None:
        self.segment = segment
        self.directory = directory
        self.generations()
        self.writers = [self._writer(LIAR), self._writer(HONEST)]
        self.steps = 0

    def _writer(self, index: int) -> Any:
        geometry, words = self.segment.geometry, self.segment.words
        entry = geometry.entry(index)
        for name, value in {
            "incarnation": 1,
            "state": EntryState.LIVE,
            "pid": 1,
            "attached_ns": time.monotonic_ns(),
        }.items():
            words[ENTRY.word(name, entry)] = value
        writer = choose(None)[1]()
        writer.bind(
            self.segment.view,
            words,
            entry=entry,
            ring=geometry.ring(index),
            slot_size=geometry.slot_size,
            slots=geometry.slots,
        )
        return writer

    def generations(self, count: int = 1) -> None:
        for _ in range(count):
            ledger.advance(self.segment)

    def record(self, count: int = 100) -> None:
        for writer in self.writers:
            for n in range(self.steps, self.steps + count):
                writer.instant("step", n=n)
        self.steps += count

    def reader(self, index: int) -> RingReader:
        return RingReader(self.segment.view, self.segment.words, self.segment.geometry, index)

    def slot(self, index: int, number: int) -> int:
        geometry = self.segment.geometry
        return geometry.ring(index) + (number - 1) % geometry.slots * geometry.slot_size

    def lie(self, index: int, number: int, /, **words: int) -> None:
        """Overwrite words of a batch's header."""
        for name, value in words.items():
            self.segment.words[SLOT.word(name, self.slot(index, number))] = value

    def taken(self, *, cold: bool = False, period_ns: int = 1 << 60) -> shmrec.Snapshot:
        order = Order(self.directory, size=1 << 30, period_ns=period_ns, deadline_ns=10**7)
        return shmrec.read((capture.take_cold if cold else capture.take)(self.segment, order))

    def found(self, snapshot: shmrec.Snapshot, index: int = HONEST) -> list[int]:
        return [each.args["n"] for each in snapshot.events(producers={index})]


@pytest.fixture
def world(recording_name: str, tmp_path: Path) -> Iterator[World]:
    geometry = Geometry.of(SLOTS * SLOT_SIZE, 3)
    with create(
        recording_name, geometry, keep_size=1 << 30, keep_period_ns=1 << 60, collected=True
    ) as made:
        world = World(made, tmp_path)
        yield world
        for writer in world.writers:
            writer.unbind()


@pytest.mark.parametrize("cold", [False, True], ids=["flushed", "cold"])
@pytest.mark.parametrize("kind", sorted(SPARING))
def test_what_others_wrote_is_found(world: World, kind: str, cold: bool) -> None:
    control = ControlBlock(world.segment)
    random = Random(kind)
    world.record()
    for _ in range(3):
        world.generations()
        world.record()
        SPARING[kind](world.segment, random, LIAR)
        world.record()
        control.restore()
        live.producers(world.segment)
        snapshot = world.taken(cold=cold, period_ns=3600 * 10**9)
        assert world.found(snapshot) == list(range(world.steps))
        assert snapshot.verify() or not snapshot.damage


# Lies about time and generation, which decide what a snapshot keeps of everybody.


@pytest.mark.parametrize("cold", [False, True], ids=["flushed", "cold"])
@pytest.mark.parametrize("start", [1, 1 << 61])
def test_a_liars_times_make_nobody_elses_history_old(world: World, start: int, cold: bool) -> None:
    for _ in range(3):
        world.record()
        world.generations()
    world.record()
    for number in range(1, 5):
        world.lie(LIAR, number, start_ns=start)
    if cold:
        # Who reads cold has nothing but what is in the memory.
        world.segment.own.began.clear()
        world.segment.own.generation = 0
    snapshot = world.taken(cold=cold, period_ns=3600 * 10**9)
    assert world.found(snapshot) == list(range(world.steps))


@pytest.mark.parametrize("word", [0, 1, 1 << 20, (1 << 62) - 1, (1 << 64) - 1])
def test_events_of_a_generation_that_never_was_are_kept(world: World, word: int) -> None:
    world.generations(5)
    world.record()
    world.segment.set_word("generation", word)
    world.record()
    world.generations()
    world.record()
    world.generations(3)
    world.record()
    snapshot = world.taken()
    assert world.found(snapshot) == list(range(world.steps))
    assert snapshot.header.generation < 1 << 21


def test_a_ledger_that_lies_ages_nobody(world: World) -> None:
    for _ in range(5):
        world.record()
        world.generations()
    first = CONTROL.word("ledger")
    for at in range(first, first + 256, 2):
        world.segment.words[at], world.segment.words[at + 1] = (at - first) // 2, 1
    world.record()
    snapshot = world.taken(period_ns=3600 * 10**9)
    assert world.found(snapshot) == list(range(world.steps))


# Poisoned batches are skipped one by one.


@pytest.mark.parametrize("word", [0, 1, 3, 1 << 40, (1 << 64) - 1])
def test_a_ring_is_read_whatever_its_newest_batch_is_said_to_be(world: World, word: int) -> None:
    for _ in range(6):
        world.record()
        world.generations()
    world.segment.words[ENTRY.word("opening", world.segment.geometry.entry(HONEST))] = word
    snapshot = world.taken()
    assert world.found(snapshot) == list(range(world.steps))
    assert f"number {word} contradicts its batches" in snapshot.producers[HONEST].damage[0]


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"committed": 1 << 31}, "2147483648 committed bytes are more than a slot holds"),
        ({"committed": 9 << 32 | 1}, "9 events in 1 bytes"),
        ({"start_ns": 1 << 63}, "implausible"),
        ({"first": (1 << 64) - 1}, "implausible"),
        ({"number": 2}, "its slot holds number 2"),
        ({"number": 3 + 80 * SLOTS}, "its slot holds number 643"),
    ],
)
def test_one_poisoned_batch_is_named_and_the_others_are_read(
    world: World, lie: dict[str, int], said: str
) -> None:
    for _ in range(6):
        world.record()
        world.generations()
    world.lie(HONEST, 3, **lie)
    snapshot = world.taken()
    assert world.found(snapshot) == [n for n in range(600) if not 200 <= n < 300]
    (note,) = snapshot.producers[HONEST].damage
    assert note.startswith("batch 3: ")
    assert said in note


# The control block.


def test_a_control_block_is_put_back(world: World) -> None:
    control = ControlBlock(world.segment)
    before = bytes(world.segment.view[: CONTROL.size])
    assert not control.restore()
    for at in (0, 5, 21, CONTROL.word("state"), CONTROL.word("collector_pid")):
        world.segment.words[at] ^= 0xFF
        with pytest.raises(LayoutMismatchError) if at < 9 else pytest.MonkeyPatch.context():
            open_segment(world.segment.name).close()
        assert control.restore()
        assert bytes(world.segment.view[: CONTROL.size]) == before
    assert control.restored == 5
    open_segment(world.segment.name).close()


def test_a_collector_says_that_it_was_overwritten_and_goes_on(
    recording_name: str, tmp_path: Path
) -> None:
    said: list[str] = []
    with create(
        recording_name, Geometry.of(0, 1), keep_size=0, keep_period_ns=0, collected=True
    ) as made:
        collector = Collector(made, Settings(recording_name, tmp_path, log=said.append))
        for _ in range(3):
            made.view[:64] = b"\xff" * 64
            collector._look_at_memory()
        assert made.collector() is not None
        collector.stop()
        collector.run()
    (line,) = said
    assert "was overwritten by a process that has it open: put back (1 so far)" in line


def test_a_flag_of_a_batch_that_lies_costs_no_more_than_it_has(world: World) -> None:
    world.record()
    world.lie(LIAR, 1, flags=SlotFlag.PARTIAL_PREAMBLE | 1 << 60)
    snapshot = world.taken()
    assert snapshot.producers[LIAR].spans_missing
