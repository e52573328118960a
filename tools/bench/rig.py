"""A recording of real processes to measure: its collector, and producers that can be added.

A producer is this file run as a program: it fills its ring, says so, and stays idle until its
standard input ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import shmrec
from shmrec.segment import open_segment

_READY = "ready"
_FILLER = "x" * 200
_numbers = itertools.count(1)


class Rig:
    """A running recording; use as a context manager."""

    def __init__(self, directory: Path, *, size: int, producers: int) -> None:
        self._name = f"bench-{os.getpid()}-{next(_numbers)}"
        self._size = size
        self._producers: list[subprocess.Popen[str]] = []
        self.directory = directory
        # One ring more for this process. Nothing may be too old to be kept.
        self.flight = shmrec.FlightRecorder(
            self._name, directory=directory, size=size, period=1e6, max_producers=producers + 1
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
        self.flight.stop()

    @property
    def collector(self) -> int:
        """The collector's pid."""
        with open_segment(self._name, writable=False) as segment:
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
                [sys.executable, __file__, self._name, bytes_each],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._producers.append(process)
            fresh.append(process)
        for process in fresh:
            assert process.stdout is not None
            if process.stdout.readline().strip() != _READY:
                raise RuntimeError(f"producer {process.pid} could not join: see its messages")


@contextlib.contextmanager
def attached(directory: Path) -> Iterator[shmrec.Recorder]:
    """This process's recorder in a recording of its own."""
    with Rig(directory, size=2 << 20, producers=1) as rig:
        yield rig.flight.recorder


def _produce(name: str, size: int) -> None:
    warnings.simplefilter("error")
    recorder = shmrec.attach(name, label="bench", required=True)
    instant = recorder.instant
    instant("started")
    # Every event takes more than its filler, so the ring has wrapped at the end.
    for number in range(size // len(_FILLER) + 1):
        instant("request", n=number, path=_FILLER)
    print(_READY, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _produce(sys.argv[1], int(sys.argv[2]))
