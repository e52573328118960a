"""A recording of real processes to measure: its collector, and producers that can be added.

A producer is this file run as a program: it fills its ring, says so, and stays idle until it
is told to record so many events flat out, or its standard input ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import shmrec
from shmrec.segment import open_segment

_READY = "ready"
_FILLER = "x" * 200
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Work:
    """What a producer says of the events that it has just recorded, and of all it ever did."""

    pid: int
    cpu_ns: int
    wall_ns: int
    recorded: int


class Rig:
    """A running recording; use as a context manager."""

    def __init__(self, directory: Path, *, size: int, producers: int) -> None:
        self.name = f"bench-{os.getpid()}-{next(_numbers)}"
        self._size = size
        self._producers: list[subprocess.Popen[str]] = []
        # Who has read a byte of it may start: one write lets all of them go at once.
        self._barrier, self._lift = os.pipe()
        self.directory = directory
        # One ring more for this process. Nothing may be too old to be kept.
        self.flight = shmrec.FlightRecorder(
            self.name, directory=directory, size=size, period=1e6, max_producers=producers + 1
        )

    def __enter__(self) -> Rig:
        self.flight.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._producers:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._producers:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        os.close(self._barrier)
        os.close(self._lift)
        self.flight.stop()

    @property
    def collector(self) -> int:
        """The collector's pid."""
        with open_segment(self.name, writable=False) as segment:
            pid = segment.collector()
        if pid is None:
            raise RuntimeError("the collector has ended in the middle of a measurement")
        return pid

    def grow(self, count: int, *, full: bool) -> None:
        """Have `count` producers, with full rings or with all but empty ones."""
        bytes_each = str(self._size if full else 0)
        fresh = []
        while len(self._producers) < count:
            process = subprocess.Popen(
                [sys.executable, __file__, self.name, bytes_each, str(self._barrier)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._barrier],
                text=True,
            )
            self._producers.append(process)
            fresh.append(process)
        for process in fresh:
            if _answer(process) != _READY:
                raise RuntimeError(f"producer {process.pid} could not join: see its messages")

    def record(self, events: int) -> list[Work]:
        """Have every producer record so many events, all from the same moment on."""
        for process in self._producers:
            assert process.stdin is not None
            process.stdin.write(f"{events}\n")
            process.stdin.flush()
        for process in self._producers:
            if _answer(process) != _READY:
                raise RuntimeError(f"producer {process.pid} has ended: see its messages")
        os.write(self._lift, bytes(len(self._producers)))
        done = []
        for process in self._producers:
            figures = _answer(process).split()
            if len(figures) != 3:
                raise RuntimeError(f"producer {process.pid} has ended: see its messages")
            done.append(Work(process.pid, *map(int, figures)))
        return done


def _answer(producer: subprocess.Popen[str]) -> str:
    assert producer.stdout is not None
    return producer.stdout.readline().strip()


@contextlib.contextmanager
def attached(directory: Path) -> Iterator[shmrec.Recorder]:
    """This process's recorder in a recording of its own."""
    with Rig(directory, size=2 << 20, producers=1) as rig:
        yield rig.flight.recorder


def _produce(name: str, size: int, barrier: int) -> None:
    warnings.simplefilter("error")
    recorder = shmrec.attach(name, label="bench", required=True)
    instant = recorder.instant
    instant("started")
    # Every event takes more than its filler, so the ring has wrapped at the end.
    fillers = size // len(_FILLER) + 1
    for number in range(fillers):
        instant("request", n=number, path=_FILLER)
    recorded = 1 + fillers
    print(_READY, flush=True)
    for line in sys.stdin:
        events = int(line)
        print(_READY, flush=True)
        os.read(barrier, 1)
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for number in range(events):
            instant("request", n=number, path="/x")
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        recorded += events
        print(cpu, wall, recorded, flush=True)


if __name__ == "__main__":
    _produce(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
