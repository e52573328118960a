"""The writer against the reader over a plain bytearray, step by step.

A step is a store or a load of shared memory; copying bytes is two. The ring is small, so that
a few hundred events reset, fill, seal and lap every slot many times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from shmrec.layout import ENTRY, SlotFlag
from shmrec.ring import Batch, BatchView

from .arena import Arena, Baton, batches, events_in, events_of, numbered

EVENTS = 120


def check_run(numbers: list[int], acknowledged: int) -> None:
    """What is seen is a gapless run that reaches at least the last acknowledged event."""
    if not numbers:
        assert acknowledged < 0
        return
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[-1] in (acknowledged, acknowledged + 1)


def test_a_reader_at_every_step_of_the_writer_sees_whole_events_and_all_acknowledged_ones() -> None:
    arena = Arena()
    reader = arena.reader()
    acknowledged = -1
    checks = 0

    def look() -> None:
        nonlocal checks
        checks += 1
        seen = events_in(reader)
        # A slot being reset is the one whose events are lost next: the rest is gapless.
        check_run([event.args["n"] for event in seen], acknowledged)

    writer = arena.writer(look)
    for name, n in numbered(EVENTS):
        if n % 17 == 0:
            arena.set_generation(2 + n)
        writer.instant(name, n=n, pad="x" * 50)
        acknowledged = n
    assert arena.word("opening") > 3 * arena.geometry.slots
    assert checks > 8 * EVENTS


def test_a_killed_writer_leaves_every_acknowledged_event_whichever_step_it_died_at() -> None:
    class Killed(BaseException):
        pass

    def run(stop_at: int) -> bool:
        arena = Arena()
        acknowledged = -1
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1
            if steps >= stop_at:
                raise Killed

        try:
            writer = arena.writer(step)
            for name, n in numbered(40):
                if n in (7, 23):
                    arena.set_generation(1 + n)
                writer.instant(name, n=n, pad="x" * 40)
                acknowledged = n
        except Killed:
            check_run([event.args["n"] for event in events_in(arena.reader())], acknowledged)
            return True
        return False

    stop_at = 1
    while run(stop_at):
        stop_at += 1
    assert stop_at > 300


@pytest.mark.parametrize("pace", [1, 2, 3, 5, 8, 13, 40, 150, 400])
def test_a_writer_that_moves_between_any_two_loads_never_tears_what_the_reader_gives(
    pace: int,
) -> None:
    arena = Arena()
    generation_of: dict[int, int] = {}

    def work(step: Callable[[], None]) -> None:
        writer = arena.writer(step)
        for name, n in numbered(400):
            if n % 29 == 0:
                arena.set_generation(1 + n // 29)
            generation_of[n] = 1 + n // 29
            writer.instant(name, n=n)

    baton = Baton(work)
    reader = arena.reader(lambda: baton.advance(pace))
    passes = 0
    try:
        while not baton.done:
            passes += 1
            last = -1
            for batch in batches(reader):
                numbers = [event.args["n"] for event in events_of(batch)]
                assert numbers == list(range(batch.head.first, batch.head.first + len(numbers)))
                assert {generation_of[n] for n in numbers} <= {batch.head.generation}
                if numbers:
                    assert numbers[0] > last
                    last = numbers[-1]
    finally:
        baton.finish()
    assert passes
    assert [event.args["n"] for event in events_in(arena.reader())][-1] == 399


@pytest.mark.parametrize("pace", [1, 2, 3, 5, 8, 13, 40, 150, 400])
def test_what_is_copied_into_a_room_is_whole_however_the_writer_moves(pace: int) -> None:
    arena = Arena()

    def work(step: Callable[[], None]) -> None:
        writer = arena.writer(step)
        for name, n in numbered(400):
            writer.instant(name, n=n)

    baton = Baton(work)
    reader = arena.reader(lambda: baton.advance(pace))
    # Of some batches it takes the whole, of some nothing.
    room = memoryview(bytearray(300))
    lent = elsewhere = 0
    try:
        while not baton.done:
            for head in reader.scan().heads:
                copy = reader.copy_into(head, room)
                if copy is None:
                    continue
                lent += isinstance(copy, BatchView)
                elsewhere += isinstance(copy, Batch)
                numbers = [
                    event.args["n"] for event in events_of(Batch(copy.head, bytes(copy.payload)))
                ]
                assert numbers == list(range(copy.head.first, copy.head.first + len(numbers)))
    finally:
        baton.finish()
    seen = [reader.copy_into(head, room) for head in reader.scan().heads]
    assert lent + len([copy for copy in seen if isinstance(copy, BatchView)])
    assert elsewhere + len([copy for copy in seen if isinstance(copy, Batch)])
    assert all(len(copy.payload) <= len(room) for copy in seen if isinstance(copy, BatchView))


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("pace", [1, 2, 3, 5, 8])
def test_the_fields_of_a_header_are_of_one_batch_however_the_writer_moves(
    pace: int, newest: bool
) -> None:
    arena = Arena()

    def work(step: Callable[[], None]) -> None:
        writer = arena.writer(step)
        for name, n in numbered(600):
            arena.set_generation(1 + n // 3)
            writer.instant(name, n=n, pad="x" * 60)

    baton = Baton(work)
    reader = arena.reader(lambda: baton.advance(pace))
    fields: dict[int, tuple[int, int, int]] = {}
    try:
        while not baton.done:
            heads = reader.newest(4) if newest else reader.scan().heads
            for head in heads:
                found = head.generation, head.start_ns, head.first
                assert fields.setdefault(head.number, found) == found
            for older, newer in itertools.pairwise(heads):
                assert older.number < newer.number
                assert older.start_ns < newer.start_ns
                assert older.first + older.count <= newer.first
    finally:
        baton.finish()
    assert fields


def test_the_newest_batches_are_those_at_the_end_of_all() -> None:
    arena = Arena()
    reader = arena.reader()
    writer = arena.writer()
    assert reader.newest(3) == []
    for name, n in numbered(200):
        writer.instant(name, n=n, pad="x" * 60)
        heads = reader.scan().heads
        for count in (1, 3, 4, 100):
            assert reader.newest(count) == heads[-count:]
    arena.words[ENTRY.word("opening", arena.entry)] = 1 << 62
    assert reader.newest(3) == []


def test_a_batch_that_was_lapped_is_not_given() -> None:
    arena = Arena()
    writer = arena.writer()
    writer.instant("first", n=0)
    reader = arena.reader()
    [head] = reader.scan().heads
    for n in range(500):
        writer.instant("more", n=n)
    assert reader.copy(head) is None
    assert reader.copy_into(head, memoryview(bytearray(4096))) is None


def claimed_anew_at(step: int, *, into: bool) -> bool:
    """Read a ring that is reset right before that load; False if there is no such load."""
    arena = Arena()
    writer = arena.writer()
    for n in range(5):
        arena.set_generation(1 + n)
        writer.instant("old", n=n)
    loads = 0

    def load() -> None:
        nonlocal loads
        loads += 1
        if loads == step:
            # As an attacher does it: no newest batch, and no numbers.
            arena.words[ENTRY.word("opening", arena.entry)] = 0
            start = arena.geometry.ring(0)
            arena.view[start : start + arena.geometry.ring_size] = bytes(arena.geometry.ring_size)

    reader = arena.reader(load)
    heads = reader.scan().heads
    assert all(head.start_ns and head.generation for head in heads)
    room = memoryview(bytearray(512))
    for head in heads:
        gone = loads >= step
        copy = reader.copy_into(head, room) if into else reader.copy(head)
        assert copy is None or not gone
        assert copy is None or events_of(Batch(copy.head, bytes(copy.payload)))
    return loads >= step


@pytest.mark.parametrize("into", [False, True])
def test_of_a_ring_that_is_claimed_anew_in_the_middle_nothing_is_given(into: bool) -> None:
    step = 1
    while claimed_anew_at(step, into=into):
        step += 1
    assert step > 20


def test_a_batch_is_sealed_when_the_next_one_is_opened_and_marks_its_generations_end() -> None:
    arena = Arena()
    writer = arena.writer()
    writer.instant("a", n=0)
    arena.set_generation(2)
    writer.instant("b", n=1)
    old, new = batches(arena.reader())
    assert old.head.flags == SlotFlag.SEALED | SlotFlag.END_OF_GENERATION
    assert new.head.flags == 0
    assert (old.head.generation, new.head.generation) == (1, 2)
    assert arena.word("closed_generation") == 1


def test_a_completed_generation_never_gains_an_event() -> None:
    arena = Arena(slots=8)
    sizes: dict[int, int] = {}
    closed = 0

    def look() -> None:
        nonlocal closed
        closed = max(closed, arena.word("closed_generation"))
        for batch in batches(arena.reader()):
            if batch.head.generation <= closed:
                known = sizes.setdefault(batch.head.number, batch.head.size)
                assert batch.head.size == known

    writer = arena.writer(look)
    for name, n in numbered(60):
        arena.set_generation(1 + n // 5)
        writer.instant(name, n=n)
    assert len(sizes) > 8


def test_writing_is_odd_exactly_while_a_record_is_under_way() -> None:
    arena = Arena()
    seen: set[int] = set()
    writer = arena.writer(lambda: seen.add(arena.word("writing") % 2))
    assert arena.word("writing") % 2 == 0
    writer.instant("a")
    assert arena.word("writing") % 2 == 0
    assert seen == {0, 1}


def test_the_generation_is_loaded_after_writing_became_odd() -> None:
    arena = Arena()

    def step() -> None:
        # The collector's half, at every step: advance, then look.
        if arena.word("writing") % 2 == 0:
            arena.set_generation(5)

    writer = arena.writer(step)
    writer.instant("a")
    assert [batch.head.generation for batch in batches(arena.reader())] == [5]
