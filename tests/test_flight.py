"""`FlightRecorder`: the behaviours of Go's flight recorder, across processes."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import shmrec
from shmrec import layout, recorder
from shmrec.errors import (
    AlreadyStartedError,
    CollectorError,
    CollectorRunningError,
    NotStartedError,
    RecordingNameError,
    SnapshotActiveError,
)
from shmrec.segment import open_segment

from .conftest import Script, leftovers, snapshots, wait_until

Start = Callable[..., shmrec.FlightRecorder]


@pytest.fixture
def start(recording_name: str, tmp_path: Path) -> Start:
    def make(**options: object) -> shmrec.FlightRecorder:
        flight = shmrec.FlightRecorder(recording_name, directory=tmp_path, **options)  # type: ignore[arg-type]
        flight.start()
        return flight

    return make


def written(flight: shmrec.FlightRecorder, tmp_path: Path) -> shmrec.Snapshot:
    """What `write_to` writes, read back."""
    path = tmp_path / "written"
    with open(path, "wb") as file:
        total = flight.write_to(file)
    assert path.stat().st_size == total
    return shmrec.read(path)


def test_a_recorder_is_enabled_between_start_and_stop_only(
    recording_name: str, tmp_path: Path
) -> None:
    flight = shmrec.FlightRecorder(recording_name, directory=tmp_path)
    assert not flight.enabled
    flight.start()
    assert flight.enabled
    assert recorder.default.attached
    flight.stop()
    assert not flight.enabled
    assert not recorder.default.attached
    assert not leftovers(recording_name)


def test_starting_twice_raises_and_leaves_it_running(start: Start) -> None:
    flight = start()
    with pytest.raises(AlreadyStartedError):
        flight.start()
    assert flight.enabled
    flight.stop()


def test_stopping_twice_raises(start: Start) -> None:
    flight = start()
    flight.stop()
    with pytest.raises(NotStartedError):
        flight.stop()


def test_write_to_when_stopped_raises_and_writes_nothing(start: Start) -> None:
    flight = start()
    flight.stop()
    file = io.BytesIO()
    with pytest.raises(NotStartedError):
        flight.write_to(file)
    assert file.getvalue() == b""
    with pytest.raises(NotStartedError):
        flight.snapshot()


def test_it_starts_and_stops_five_times_over(start: Start, tmp_path: Path) -> None:
    flight = start()
    for n in range(5):
        shmrec.instant("round", n=n)
        snapshot = written(flight, tmp_path)
        assert [event.args["n"] for event in snapshot] == [n]
        flight.stop()
        flight.start()
    flight.stop()
    assert not leftovers(flight.name)


def test_what_was_recorded_just_before_write_to_is_in_it(start: Start, tmp_path: Path) -> None:
    flight = start()
    for n in range(30):
        shmrec.instant("just", n=n)
        last = [event.args["n"] for event in written(flight, tmp_path)][-1]
        assert last == n
    flight.stop()


def test_two_writes_at_once_both_succeed_or_say_that_one_is_active(start: Start) -> None:
    flight = start()
    files = [io.BytesIO() for _ in range(40)]
    refused: list[io.BytesIO] = []
    failed: list[BaseException] = []
    ready = threading.Barrier(len(files))

    def write(file: io.BytesIO) -> None:
        ready.wait()
        try:
            assert flight.write_to(file) == len(file.getvalue()) > 0
        except SnapshotActiveError:
            refused.append(file)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(refused) < len(files)
    assert all(file.getvalue() == b"" for file in refused)
    assert all(file.getvalue() for file in files if file not in refused)
    flight.stop()


def test_a_failing_write_surfaces_and_leaves_the_recorder_usable(
    start: Start, tmp_path: Path
) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    flight = start()
    shmrec.instant("before")
    with pytest.raises(OSError, match="No space"):
        flight.write_to(Full())
    assert [event.name for event in written(flight, tmp_path)] == ["before"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    flight.stop()


def test_size_and_period_apply_at_the_next_start(start: Start) -> None:
    flight = start(size=128 * 1024, period=5.0)
    flight.set_size(1024 * 1024)
    flight.set_period(1.0)
    with open_segment(flight.name) as segment:
        assert segment.geometry.ring_size == 128 * 1024
        assert segment.word("keep_period_ns") == 5_000_000_000
    flight.stop()
    flight.start()
    with open_segment(flight.name) as segment:
        assert segment.geometry.ring_size == 1024 * 1024
        assert segment.word("keep_period_ns") == 1_000_000_000
    flight.stop()


def test_a_ring_never_has_fewer_than_four_slots(start: Start) -> None:
    flight = start(size=0)
    with open_segment(flight.name) as segment:
        assert segment.geometry.slots == layout.MINIMUM_SLOTS == 4
    flight.stop()


def test_size_bounds_what_a_snapshot_keeps(start: Start, tmp_path: Path) -> None:
    size = 8 * layout.SLOT_SIZE
    flight = start(size=size)
    for n in range(20_000):
        shmrec.instant("fill", n=n, text="x" * 30)
    snapshot = written(flight, tmp_path)
    assert size // 2 < snapshot.size < size + 4096
    [producer] = snapshot.producers
    assert producer.events + producer.losses["overwritten"] == producer.recorded == 20_000
    numbers = [event.args["n"] for event in snapshot]
    assert numbers == list(range(20_000 - producer.events, 20_000))
    flight.stop()


ANOTHER = """
import sys, shmrec
shmrec.attach(sys.argv[1], label="other", required=True)
shmrec.instant("old-of-other")
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("limit", [{"period": 0}, {"size": 0}], ids=["period", "size"])
def test_a_limit_of_zero_leaves_the_newest_generation_and_every_newest_batch(
    start: Start, tmp_path: Path, script: Callable[..., Script], limit: dict[str, int]
) -> None:
    flight = start(**limit)
    other = script(ANOTHER, flight.name)
    assert other.line() == "ready"
    with open_segment(flight.name, writable=False) as segment:
        # Events in three generations, the newest of them last.
        for n in range(3):
            shmrec.instant("mine", n=n)
            generation = segment.word("generation")
            wait_until(lambda g=generation: segment.word("generation") > g)  # type: ignore[misc]
        shmrec.instant("mine", n="last")
    snapshot = written(flight, tmp_path)
    mine = [event for event in snapshot if event.name == "mine"]
    assert [event.args["n"] for event in mine] == ["last"]
    assert snapshot.header.generations == [mine[0].generation]
    assert [event.name for event in snapshot if event.label == "other"] == ["old-of-other"]
    trimmed = {producer.label: producer.trimmed for producer in snapshot.producers}
    assert trimmed["other"] == 0
    assert trimmed[snapshot.producers[0].label] == 3
    flight.stop()


def test_period_bounds_the_age_of_what_is_kept(start: Start, tmp_path: Path) -> None:
    flight = start(period=1.5)
    first = time.monotonic_ns()
    shmrec.instant("old")
    # A generation lasts a second: the one of "old" must lie beyond the period as a whole.
    wait_until(lambda: time.monotonic_ns() - first > 4_000_000_000)
    shmrec.instant("new")
    snapshot = written(flight, tmp_path)
    assert [event.name for event in snapshot] == ["new"]
    assert snapshot.producers[0].trimmed == 1
    flight.stop()


def test_children_join_through_the_environment(
    start: Start, tmp_path: Path, script: Callable[..., Script]
) -> None:
    flight = start()
    assert os.environ[recorder.ENVIRONMENT] == flight.name
    child = script(
        "import shmrec, sys; shmrec.attach(label='child', required=True);"
        "shmrec.instant('hi'); print('ready', flush=True); sys.stdin.readline()"
    )
    assert child.line() == "ready"
    snapshot = written(flight, tmp_path)
    assert [(e.label, e.name) for e in snapshot] == [("child", "hi")]
    assert {p.pid for p in snapshot.producers} == {os.getpid(), child.pid}
    flight.stop()
    assert recorder.ENVIRONMENT not in os.environ


def test_snapshots_have_the_name_that_says_what_they_are(start: Start, tmp_path: Path) -> None:
    flight = start()
    paths = [flight.snapshot("Slow checkout!"), flight.snapshot("Slow checkout!")]
    assert paths == snapshots(tmp_path)
    for path in paths:
        assert path.name.startswith(f"{flight.name}-2")
        assert "Z-slow-checkout-" in path.name
        assert path.stat().st_mode & 0o777 == 0o600
    assert shmrec.read(paths[0]).header.reason == "Slow checkout!"
    flight.stop()


def test_a_name_in_use_is_refused(start: Start, tmp_path: Path) -> None:
    flight = start()
    with pytest.raises(CollectorRunningError, match="already has a collector, pid"):
        shmrec.FlightRecorder(flight.name, directory=tmp_path).start()
    assert flight.enabled
    flight.stop()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a" * 49, ".hidden", "a b", "a\n", "é"])
def test_names_are_validated(name: str) -> None:
    with pytest.raises(RecordingNameError):
        shmrec.FlightRecorder(name)


@pytest.mark.parametrize(
    "options", [{"size": -1}, {"period": -1.0}, {"period": float("nan")}, {"max_producers": 0}]
)
def test_limits_are_validated(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        shmrec.FlightRecorder("x", **options)  # type: ignore[arg-type]


def test_the_memory_may_be_a_file(start: Start, tmp_path: Path, recording_name: str) -> None:
    memory = tmp_path / "memory"
    flight = start(path=memory)
    assert memory.stat().st_mode & 0o777 == 0o600
    assert not leftovers(recording_name)
    shmrec.instant("in-a-file")
    assert [event.name for event in written(flight, tmp_path)] == ["in-a-file"]
    flight.stop()
    assert not memory.exists()


def test_the_default_recorder_serves_the_module_functions_again_after_a_stop(
    start: Start, tmp_path: Path
) -> None:
    flight = start()
    flight.stop()
    shmrec.instant("nobody listens")
    flight.start()
    shmrec.instant("somebody does")
    assert [event.name for event in written(flight, tmp_path)] == ["somebody does"]
    flight.stop()


@pytest.mark.parametrize(
    ("raised", "why"),
    [(OSError(errno.EMFILE, "Too many open files"), "Too many"), (MemoryError(), "out of memory")],
    ids=["descriptors", "memory"],
)
def test_who_can_start_no_program_gets_one_clear_error(
    recording_name: str, monkeypatch: pytest.MonkeyPatch, raised: Exception, why: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(subprocess, "Popen", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CollectorError, match=f"cannot start a collector: {why}"):
        shmrec.FlightRecorder(recording_name).start()
    assert os.listdir("/proc/self/fd") == before
