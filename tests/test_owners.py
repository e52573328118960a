"""A snapshot of rings that are lapped, left and claimed while it is being taken.

Each time the file is held against everything that it promises, by the validator of the trials.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrec import capture, ledger
from shmrec.capture import Order
from shmrec.claim import claim
from shmrec.copying import Room
from shmrec.layout import ENTRY, EntryState, Geometry
from shmrec.ring import Head, RingReader, Scan
from shmrec.segment import Segment, create
from shmrec.writer import Writer
from tools.stress import validator
from tools.stress.validator import Told

EVENTS = 150
LOOK = 4
"""Uses of a ring's reader by which it is known who has the ring, and how far he has come."""
METHODS = ("owner", "owned_by", "newest", "scan", "copy_into", "copy")


class Ring:
    """A recording of one ring, with whoever has it; snapshots of it are taken cold."""

    def __init__(self, name: str, directory: Path) -> None:
        self.directory = directory
        self.segment = self._create(name)
        self.segment.set_word("generation", 1)
        self.writer = Writer()
        self.attach()

    @staticmethod
    def _create(name: str) -> Segment:
        return create(
            name, Geometry.of(0, 1), keep_size=1 << 20, keep_period_ns=1 << 60, collected=True
        )

    def attach(self) -> None:
        self.writer = Writer()
        claim(self.segment, self.writer, "python", "somebody", held=(0,))

    def leave(self) -> None:
        self.writer.unbind()
        at = ENTRY.word("state", self.segment.geometry.entry(0))
        self.segment.words[at] = EntryState.DETACHED

    def record(self, count: int = EVENTS) -> None:
        for n in range(count):
            self.writer.instant("event", n=n, pad="x" * 300)

    def lap(self) -> None:
        """Record until all slots have been used again, and more."""
        geometry = self.segment.geometry
        self.record((geometry.slots + 1) * geometry.slot_size // 300)

    def snapshot(self) -> list[Told]:
        order = Order(directory=self.directory, size=1 << 20, period_ns=1 << 60)
        checked = validator.check(capture.take_cold(self.segment, order))
        assert checked.wrong == []
        return checked.producers


@pytest.fixture
def ring(recording_name: str, tmp_path: Path) -> Iterator[Ring]:
    made = Ring(recording_name, tmp_path)
    yield made
    made.segment.close()


def before(
    monkeypatch: pytest.MonkeyPatch, turn: int, happens: Callable[[], None]
) -> Callable[[], bool]:
    """Have something happen right before the reader of a ring is used for the `turn`-th time.

    The function returned says whether it has happened.
    """
    uses = 0

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: RingReader, *args: Any) -> Any:
            nonlocal uses
            uses += 1
            if uses == turn:
                happens()
            return original(self, *args)

        return method

    for name in METHODS:
        monkeypatch.setattr(RingReader, name, patched(getattr(RingReader, name)))
    return lambda: uses >= turn


def each_turn(
    monkeypatch: pytest.MonkeyPatch, ring: Ring, happens: Callable[[], None]
) -> Iterator[Told | None]:
    """For each use of the ring: the producer in a snapshot during which it `happens` then."""
    turn = 0
    while True:
        turn += 1
        ring.leave()
        ring.attach()
        ring.record()
        with monkeypatch.context() as patch:
            happened = before(patch, turn, happens)
            producers = ring.snapshot()
            if not happened():
                break
        assert len(producers) <= 1
        yield producers[0] if producers else None
    assert turn > 10


def test_who_has_left_and_whose_ring_is_claimed_meanwhile_is_told_of(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claimed() -> None:
        ring.leave()
        ring.attach()
        ring.record(3)

    kept = set()
    for turn, producer in enumerate(each_turn(monkeypatch, ring, claimed)):
        assert producer is not None
        if turn == 0:
            assert producer.fields["recorded"] == 3, "it was the other's before anybody looked"
        elif producer.fields["recorded"] != 3:
            assert producer.fields["recorded"] == EVENTS
            assert len(producer.events) + producer.missing == EVENTS
            kept.add(len(producer.events))
        else:
            assert turn < LOOK, "it had been looked at, and its events are not counted"
    assert {0, EVENTS} < kept


@pytest.mark.parametrize("advances", [1, 2])
def test_a_ring_that_changes_hands_between_two_flushes_is_still_his_who_had_it_first(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, advances: int
) -> None:
    ring.record()
    advance, calls = ledger.advance, 0

    def claimed(segment: Segment) -> int:
        nonlocal calls
        calls += 1
        if calls == advances:
            ring.leave()
            ring.attach()
            ring.record(3)
        return advance(segment)

    monkeypatch.setattr(ledger, "advance", claimed)
    order = Order(directory=ring.directory, size=1 << 20, period_ns=1 << 60)
    checked = validator.check(capture.take(ring.segment, order))
    [producer] = checked.producers
    assert checked.wrong == []
    # Before the first flush nobody had looked.
    assert producer.fields["recorded"] == (3 if advances == 1 else EVENTS)


def test_who_loses_his_ring_to_one_that_is_still_claiming_it_is_told_of(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    urandom = os.urandom

    def killed(size: int) -> bytes:
        # Between taking the numbers off the old batches and saying that the ring has another.
        raise KeyboardInterrupt

    def claiming() -> None:
        ring.leave()
        monkeypatch.setattr(os, "urandom", killed)
        with pytest.raises(KeyboardInterrupt):
            ring.attach()
        monkeypatch.setattr(os, "urandom", urandom)
        at = ring.segment.geometry.entry(0)
        # An exception gives the ring back; who is killed does not.
        ring.segment.words[ENTRY.word("state", at)] = EntryState.CLAIMING

    counts = []
    for producer in each_turn(monkeypatch, ring, claiming):
        counts.append(producer.fields["recorded"] if producer else None)
    # Before it was looked at nobody can know; from then on all is counted.
    assert counts[0] is None
    known = counts.index(EVENTS)
    assert known == LOOK
    assert counts[known:] == [EVENTS] * (len(counts) - known)


@pytest.mark.parametrize("events", [90, 400])
def test_what_is_lapped_before_it_is_copied_was_overwritten_not_trimmed(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    """Two batches of them, or all."""
    for producer in each_turn(monkeypatch, ring, lambda: ring.record(events)):
        assert producer is not None
        assert producer.fields["trimmed"] == 0
        assert producer.events
        assert producer.fields["recorded"] == len(producer.events) + producer.missing


def test_of_one_that_goes_on_lapping_the_newest_batch_is_got_in_the_end(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.record()
    copies, newest, laps = Room.copies, RingReader.newest, 0

    def lapped(room: Room, reader: RingReader, heads: list[Head]) -> Any:
        ring.lap()
        return copies(room, reader, heads)

    def lapped_again(reader: RingReader, count: int) -> list[Head]:
        nonlocal laps
        found = newest(reader, count)
        laps += 1
        if 1 < laps < 20:
            ring.lap()
        return found

    monkeypatch.setattr(Room, "copies", lapped)
    monkeypatch.setattr(RingReader, "newest", lapped_again)
    [producer] = ring.snapshot()
    assert laps >= 20
    assert len(producer.batches) == 1
    assert producer.fields["trimmed"] == 0


def test_what_the_limits_leave_out_is_trimmed_and_what_is_lapped_meanwhile_is_not(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    for generation in (2, 3):
        ring.record(20)
        ring.segment.set_word("generation", generation)
    ring.record(1)
    order = Order(directory=ring.directory)
    checked = validator.check(capture.take_cold(ring.segment, order))
    [producer] = checked.producers
    assert checked.wrong == []
    assert producer.fields["trimmed"] == 40
    scan, calls = RingReader.scan, 0

    def lapped(reader: RingReader) -> Scan:
        nonlocal calls
        found = scan(reader)
        calls += 1
        if calls == 3:
            ring.lap()
        return found

    monkeypatch.setattr(RingReader, "scan", lapped)
    checked = validator.check(capture.take_cold(ring.segment, order))
    [producer] = checked.producers
    assert checked.wrong == []
    assert producer.fields["trimmed"] == 0
    assert producer.missing == producer.fields["recorded"] - len(producer.events)


def test_what_came_after_the_cut_is_not_counted_as_recorded(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.record(20)
    advance = ledger.advance

    def recorded_behind(segment: Segment) -> int:
        old = advance(segment)
        ring.record(5)
        return old

    monkeypatch.setattr(ledger, "advance", recorded_behind)
    order = Order(directory=ring.directory, size=1 << 20, period_ns=1 << 60)
    checked = validator.check(capture.take(ring.segment, order))
    [producer] = checked.producers
    assert checked.wrong == []
    assert producer.fields["recorded"] == len(producer.events) == 20
