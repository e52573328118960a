"""Whose stacks are in a snapshot: whoever a person names, and whom the configuration says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmrec

from .conftest import Script, noticed, snapshots, wait_until
from .dumping import dump, failure

PRODUCER = """
import sys, shmrec
shmrec.attach(label="worker", required=True)
def waiting():
    print("in", flush=True)
    sys.stdin.readline()
waiting()
"""


@pytest.fixture
def workers(script: Callable[..., Script]) -> Callable[[str], tuple[Script, Script]]:
    def start(name: str) -> tuple[Script, Script]:
        pair = (
            script(PRODUCER, env={"SHMREC_RECORDING": name}),
            script(PRODUCER, env={"SHMREC_RECORDING": name}),
        )
        for each in pair:
            assert each.line() == "in"
        noticed(name)
        return pair

    return start


@pytest.fixture
def flight(recording_name: str, tmp_path: Path) -> Iterator[shmrec.FlightRecorder]:
    with shmrec.FlightRecorder(recording_name, directory=tmp_path) as started:
        yield started


def dumped(path: Path | str) -> set[int]:
    """The processes whose stacks are in the snapshot, as their own function shows."""
    return {
        producer.pid
        for producer in shmrec.read(path).producers
        if any(" in waiting\n" in stack.text for stack in producer.stacks)
    }


Workers = Callable[[str], tuple[Script, Script]]


def test_a_person_gets_those_that_were_asked_for(
    flight: shmrec.FlightRecorder, workers: Workers, tmp_path: Path
) -> None:
    one, other = workers(flight.name)
    assert dumped(dump("snapshot", flight.name).stdout.strip()) == set()
    assert dumped(dump("snapshot", flight.name, f"--stacks={one.pid}").stdout.strip()) == {one.pid}
    everybody = {one.pid, other.pid}
    assert dumped(dump("snapshot", flight.name, "--stacks").stdout.strip()) == everybody
    dump("snapshot", flight.name, "--stacks", "-o", tmp_path / "x.shmrec")
    assert dumped(tmp_path / "x.shmrec") == everybody
    said = failure("snapshot", flight.name, f"--stacks={os.getppid()}")
    assert f"no process {os.getppid()} in recording" in said
    assert "'x' is no process" in failure("snapshot", flight.name, "--stacks=x", check=2)


def test_so_does_a_program(flight: shmrec.FlightRecorder, workers: Workers) -> None:
    one, other = workers(flight.name)
    assert dumped(flight.snapshot()) == set()
    assert dumped(flight.snapshot(stacks=other.pid)) == {other.pid}
    assert dumped(flight.snapshot(stacks=True)) == {one.pid, other.pid}


@pytest.mark.parametrize(("stacks", "taken"), [("suspects", False), ("all", True), ("none", False)])
def test_the_survivors_of_a_death_where_that_is_configured(
    recording_name: str, tmp_path: Path, workers: Workers, stacks: str, taken: bool
) -> None:
    with shmrec.FlightRecorder(recording_name, directory=tmp_path, stacks=stacks):
        one, other = workers(recording_name)
        one.kill(signal.SIGSEGV)
        wait_until(lambda: snapshots(tmp_path, "death"))
        # The dead one's own was written as it died.
        assert dumped(snapshots(tmp_path, "death")[0]) == {one.pid} | (
            {other.pid} if taken else set()
        )
