"""Taking a snapshot: what it holds in memory at a time, and what it does without a disk."""

from __future__ import annotations

import resource
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmrec
from shmrec import capture
from shmrec.capture import CaptureStopped, Order
from shmrec.errors import RequestFailedError
from shmrec.layout import ENTRY, EntryState, Geometry
from shmrec.ring import RingReader, Scan
from shmrec.segment import Segment, create, open_segment
from shmrec.writer import Writer

from .conftest import snapshots

RING = 256 * 1024


def filled(made: Segment, index: int) -> None:
    """Claim the ring and wrap it."""
    geometry = made.geometry
    entry = geometry.entry(index)
    made.words[ENTRY.word("incarnation", entry)] = 1
    made.words[ENTRY.word("state", entry)] = EntryState.LIVE
    writer = Writer()
    writer.bind(
        made.view,
        made.words,
        entry=entry,
        ring=geometry.ring(index),
        slot_size=geometry.slot_size,
        slots=geometry.slots,
    )
    for n in range(2 * RING // 1000):
        writer.instant("event", n=n, ring=index, pad="x" * 1000)


@pytest.fixture
def made(recording_name: str) -> Iterator[Callable[[int], Segment]]:
    opened: list[Segment] = []

    def make(producers: int) -> Segment:
        opened.append(
            create(
                recording_name,
                Geometry.of(RING, producers),
                keep_size=RING,
                keep_period_ns=1 << 60,
                collected=True,
            )
        )
        opened[-1].set_word("generation", 1)
        for index in range(producers):
            filled(opened[-1], index)
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def peak(segment: Segment, directory: Path) -> tuple[int, Path]:
    """The most that a snapshot holds in private memory, in bytes, and the snapshot."""
    order = Order(directory=directory, size=RING, period_ns=1 << 60)
    # Once before, for what is loaded at the first time.
    capture.take_cold(segment, order).unlink()
    tracemalloc.start()
    try:
        path = capture.take_cold(segment, order)
        return tracemalloc.get_traced_memory()[1], path
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("producers", [1, 12])
def test_a_snapshot_holds_one_ring_at_a_time(
    made: Callable[[int], Segment], tmp_path: Path, producers: int
) -> None:
    held, path = peak(made(producers), tmp_path)
    assert path.stat().st_size > 0.9 * RING * producers
    # Besides: msgpack's own buffer, and what is as large for one ring as for many.
    assert held < 1.2 * RING + (256 << 10)
    read = shmrec.read(path)
    assert not read.damage
    for index in range(producers):
        kept = [event.args["n"] for event in read.events(producers={index})]
        assert kept == list(range(kept[0], 2 * RING // 1000))


@pytest.mark.parametrize("began", [(1 << 64) - 1, 0])
def test_cold_memory_with_an_implausible_clock_is_written_all_the_same(
    made: Callable[[int], Segment], tmp_path: Path, began: int
) -> None:
    segment = made(1)
    segment.set_word("created_wall_ns", began)
    segment.set_word("created_mono_ns", (1 << 64) - 1 - began)
    path = capture.take_cold(segment, Order(directory=tmp_path, size=RING, period_ns=1 << 60))
    header = shmrec.read(path).header
    assert abs(header.taken_wall_ns - time.time_ns()) < 3_600_000_000_000


def test_of_a_producer_that_laps_the_scan_the_newest_batch_is_kept_and_all_is_counted(
    tmp_path: Path, made: Callable[[int], Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = made(1)
    scan, calls = RingReader.scan, 0

    def lapped(reader: RingReader) -> Scan:
        nonlocal calls
        calls += 1
        # After those that find the last sign of life and choose the generations.
        return Scan([]) if calls == 3 else scan(reader)

    monkeypatch.setattr(RingReader, "scan", lapped)
    order = Order(directory=tmp_path, size=RING, period_ns=1 << 60)
    snapshot = shmrec.read(capture.take_cold(segment, order))
    [producer] = snapshot.producers
    assert producer.recorded == 2 * RING // 1000
    assert snapshot.batches == 1
    kept = [event.args["n"] for event in snapshot.events() if event.kind == "instant"]
    assert kept[-1] == producer.recorded - 1
    assert producer.recorded == len(kept) + producer.trimmed + producer.losses["overwritten"]


def test_a_stop_is_obeyed_at_every_batch_and_leaves_no_file(
    made: Callable[[int], Segment], tmp_path: Path
) -> None:
    segment = made(2)
    looks = 0
    while True:
        looks += 1
        left = iter(range(looks))
        # True at the last of so many looks.
        order = Order(
            directory=tmp_path,
            size=RING,
            period_ns=1 << 60,
            stop=lambda left=left: next(left, None) is None,  # type: ignore[misc]
        )
        try:
            path = capture.take_cold(segment, order)
        except CaptureStopped:
            assert not list(tmp_path.iterdir())
        else:
            break
    assert looks > 2 * segment.geometry.slots
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_in_mid_snapshot_is_told_and_harms_nothing(
    recording_name: str, tmp_path: Path
) -> None:
    flight = shmrec.FlightRecorder(recording_name, directory=tmp_path, size=RING, period=1e6)
    flight.start()
    try:
        older = flight.snapshot("older")
        content = older.read_bytes()
        for n in range(2 * RING // 1000):
            flight.recorder.instant("event", n=n, pad="x" * 1000)
        with open_segment(recording_name, writable=False) as segment:
            collector = segment.collector()
        assert collector is not None
        # Python ignores SIGXFSZ: to the collector it looks like a disk with no more room.
        room = 100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        unlimited = resource.prlimit(collector, resource.RLIMIT_FSIZE, room)
        with pytest.raises(RequestFailedError, match=r"File too large; the older ones are unt"):
            flight.snapshot("too much")
        assert snapshots(tmp_path) == [older]
        assert older.read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == [older.name]
        resource.prlimit(collector, resource.RLIMIT_FSIZE, unlimited)
        assert not shmrec.read(flight.snapshot("again")).damage
    finally:
        flight.stop()


def test_a_disk_that_takes_long_is_said_and_one_that_does_not_is_not(
    made: Callable[[int], Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    segment = made(1)
    capture.take(segment, Order(tmp_path, warn=said.append))
    assert said == []
    monkeypatch.setattr(capture, "_SLOW_NS", 0)
    path = capture.take(segment, Order(tmp_path, warn=said.append))
    [line] = said
    assert line.startswith(f"writing {path} took 0.")
    assert "that disk is slow" in line
