"""For the tests of the analyser: snapshots made by hand, and what it finds in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from shmrec.forensics import Analysis, analyse
from shmrec.manifest import Header, Producer, Stack
from shmrec.ring import Batch
from shmrec.snapshot_file import read

from .dumping import batch, write_file

SECOND: Final = 1_000_000_000
MIB: Final = 1 << 20
TAKEN: Final = 1000 * SECOND
WALL: Final = 1_790_000_000 * SECOND
MAIN: Final = [1, 0, 4242, "MainThread"]

CRASHED: Final = """Fatal Python error: Segmentation fault

Thread 0x00000000000000b1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/srv/app/pool.py", line 7 in idle

Current thread 0x00000000000000a1 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/srv/app/views.py", line 12 in crash
  File "/srv/.venv/lib/python3.11/site-packages/flask/app.py", line 880 in dispatch_request
"""


def header(**fields: Any) -> Header:
    values: dict[str, Any] = {
        "recording": "web",
        "reason": "slow",
        "trigger": "request",
        "host": "there",
        "taken_mono_ns": TAKEN,
        "taken_wall_ns": WALL,
        "generation": 7,
        "generations": [6, 7],
        "flushes": 2,
        "fenced": True,
        "keep_size": MIB,
        "keep_period_ns": 10 * SECOND,
    }
    return Header(**{**values, **fields})


def header_at(second: int, **fields: Any) -> Header:
    """Of a snapshot taken so long after something, as are others of the same run."""
    times = {"taken_mono_ns": second * SECOND, "taken_wall_ns": WALL + second * SECOND}
    return header(**{"run_id": "one", **times, **fields})


def producer(index: int = 0, **fields: Any) -> Producer:
    values = {"pid": 100 + index, "label": f"w {index}", "state": "running", "evidence": "idle"}
    return Producer(index=index, **{**values, **fields})


def died(index: int = 0, **fields: Any) -> Producer:
    """A producer whose end was noticed when the snapshot was taken."""
    return producer(index, **{"state": "dead", "ended_ns": TAKEN, **fields})


def crash_stack(**fields: Any) -> Stack:
    """A fatal stack whose current thread is 4242, the other 4243."""
    values: dict[str, Any] = {
        "kind": "fatal",
        "taken_ns": TAKEN,
        "text": CRASHED,
        "idents": {0xA1: 4242, 0xB1: 4243},
    }
    return Stack(**{**values, **fields})


def inside(*spans: tuple[str, float, dict[str, Any]], thread: int = 4242) -> list[Batch]:
    """A batch of spans of one thread, outermost first, open since so many seconds."""
    start = TAKEN - round(spans[0][1] * SECOND)
    happenings: list[list[Any]] = [[1, 0, thread, "MainThread"]]
    before = start
    for number, (name, ago, args) in enumerate(spans):
        begun = TAKEN - round(ago * SECOND)
        happenings.append([4, begun - before, name, thread * 100 + number, args])
        before = begun
    return [batch(*happenings, start_ns=start)]


def in_threads(*spans: tuple[str, float, dict[str, Any]]) -> list[Batch]:
    """A batch of spans of the threads 1, 2, ..., open since so many seconds, the longest first."""
    start = before = TAKEN - round(spans[0][1] * SECOND)
    happenings: list[list[Any]] = []
    for number, (name, ago, args) in enumerate(spans, 1):
        begun = TAKEN - round(ago * SECOND)
        happenings += [[1, 0, number, f"pool_{number}"], [4, begun - before, name, number, args]]
        before = begun
    return [batch(*happenings, start_ns=start)]


def facts(*sizes: int, every: int = 10, cpu: float = 0.0, state: str = "S") -> list[list[Any]]:
    """Rows of facts, the last one a second before the snapshot."""
    first = TAKEN - SECOND - (len(sizes) - 1) * every * SECOND
    return [
        [first + n * every * SECOND, rss, round(n * every * SECOND * cpu), 3, 12, state]
        for n, rss in enumerate(sizes)
    ]


def exception(whose: str, *, ago: float, name: str = "ValueError") -> list[Batch]:
    """A batch of an unhandled exception."""
    args = {"message": "no such thing", "where": ["/srv/app/views.py:3 f"], "unhandled": whose}
    return [batch(MAIN, [7, 0, name, args], start_ns=TAKEN - round(ago * SECOND))]


def analysed(path: Path, *producers: tuple[Producer, list[Batch]], **fields: Any) -> Analysis:
    return analyse(read(write_file(path / "x.shmrec", header(**fields), list(producers))))
