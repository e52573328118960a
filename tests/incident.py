"""A snapshot made by hand that has one of everything that viewers draw; also one of many events."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from shmrec.forensics import analyse
from shmrec.manifest import Cause, Header, Producer
from shmrec.ring import Batch
from shmrec.slices import Item
from shmrec.snapshot_file import read
from shmrec.tracks import Timeline

from .dumping import batch, write_file
from .findings import MIB, SECOND, TAKEN, crash_stack, died, header, producer

__all__ = ["ODD", "TRACE", "incident", "many", "one", "shown", "timeline_of"]

MS: Final = 1_000_000
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN: Final = "00f067aa0ba902b7"
ODD: Final[dict[str, Any]] = {
    "big": (1 << 64) - 1,
    "beyond": (1 << 53) + 1,
    "nan": float("nan"),
    "inf": float("-inf"),
    "blob": b"\xff\x00",
    "none": None,
    "yes": True,
    "map": {"a.b": [1, {"c": "\u202e</script>\x1b[31m"}], "": {}},
    "": "no key",
    "debug.x[0]": "dots",
}
"""Arguments that some format or other has no place for."""

NAME, THREAD, OPEN, INSTANT, BEGIN, END, COUNTER, EXCEPTION, LOG = range(9)


def incident(path: Path) -> Path:
    """The file: a master, a worker that a signal killed, one of tasks, one that was silent."""
    master = producer(
        pid=100,
        label="master",
        identity="aa",
        facts=[
            [TAKEN - 3 * SECOND, 20 * MIB, SECOND, 1, 9, "S"],
            [TAKEN - 2 * SECOND, 21 * MIB, SECOND + 500 * MS, 1, -1, "S"],
        ],
    )
    crash = crash_stack(idents={0xA1: 101, 0xB1: 4243})
    worker = died(
        1,
        pid=101,
        label="worker",
        identity="bb",
        cause=Cause("signal 11 (SIGSEGV)", "kernel", signal=11),
        stacks=[crash],
        losses={"overwritten": 1234},
        peak_rss=64 * MIB,
    )
    tasks = producer(2, pid=102, label="tasks", identity="cc")
    silent = producer(3, pid=103, label="", state="exited", ended_ns=TAKEN - SECOND)
    path = path / "incident.shmrec"
    return write_file(
        path,
        header(run_id="run", version="1.2.3", reason="death of worker pid 101", trigger="death"),
        [
            (master, _of_the_master()),
            (worker, _of_the_worker()),
            (tasks, _of_tasks()),
            (silent, []),
        ],
    )


def _of_the_master() -> list[Batch]:
    return [
        batch(
            [THREAD, 0, 100, "MainThread"],
            [INSTANT, 0, "boot", ODD],
            [COUNTER, MS, "workers", 3],
            [COUNTER, MS, "load", 0.5],
            [COUNTER, MS, "load", "high"],
            [COUNTER, MS, "load", float("nan")],
            [BEGIN, MS, "spawn", 1, {"span_id": SPAN, "trace_id": TRACE}],
            [END, 5 * MS, "spawn", 5 * MS, 1, {"pid": 102}],
            start_ns=TAKEN - 4 * SECOND,
        )
    ]


def _of_the_worker() -> list[Batch]:
    return [
        batch(
            # Its beginning was overwritten, but the batch names it.
            [THREAD, 0, 101, "MainThread"],
            [OPEN, 0, "request", 6, SECOND, {"method": "GET", "path": "/old"}],
            [BEGIN, 0, "query", 8, {"sql": "select 1"}],
            [END, 2 * MS, "query", 2 * MS, 8],
            [END, MS, "request", SECOND + 3 * MS, 6, {"status": 200}],
            # And of this one nothing is left but its end.
            [THREAD, 0, 4243, "pool_0"],
            [END, MS, "lost begin", 40 * MS, 5],
            [THREAD, 0, 101, "MainThread"],
            [BEGIN, MS, "request", 10, {"method": "POST", "path": "/crash"}],
            [LOG, MS, "app.views", {"level": "ERROR", "message": "about to"}],
            [EXCEPTION, MS, "KeyError", {"message": "'k'", "where": ["/srv/a.py:3 f"]}],
            [BEGIN, MS, "query", 11, {"sql": "select 2"}],
            start_ns=TAKEN - 2 * SECOND,
        )
    ]


def _of_tasks() -> list[Batch]:
    parent = {"parent": "101/10"}
    context = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    return [
        batch(
            [THREAD, 0, 102, "MainThread"],
            [BEGIN, 0, "task", 1, parent],
            [BEGIN, MS, "task", 2, context],
            [BEGIN, MS, "step", 3, {"parent": 1}],
            [BEGIN, MS, "tick", 4],
            [END, MS, "tick", MS, 4],
            [END, MS, "step", 3 * MS, 3],
            [END, MS, "task", 5 * MS, 1],
            [BEGIN, MS, "task", 5],
            [INSTANT, MS, "note"],
            [END, MS, "task", 7 * MS, 2],
            start_ns=TAKEN - SECOND,
        )
    ]


def one(*batches: Batch, path: Path, **fields: Any) -> Path:
    """A file of one producer."""
    return write_file(path / "one.shmrec", header(), [(producer(**fields), list(batches))])


def many(path: Path, events: int) -> Path:
    """A file of so many events of four producers, requests with a query each."""
    producers: list[tuple[Producer, list[Batch]]] = []
    for place in range(4):
        batches: list[Batch] = []
        now, left = TAKEN - 9 * SECOND, events // 16
        while left:
            count = min(left, 64)
            happenings: list[list[Any]] = [[THREAD, 0, 100 + place, "MainThread"]]
            for span in range(left * 2, (left - count) * 2, -2):
                happenings += [
                    [BEGIN, 1000, "request", span, {"method": "GET", "path": f"/{span % 50}"}],
                    [BEGIN, 500, "query", span + 1],
                    [END, 2000, "query", 2000, span + 1],
                    [END, 500, "request", 3000, span, {"status": 200}],
                ]
            batches.append(batch(*happenings, number=len(batches) + 1, start_ns=now))
            now += 4000 * count
            left -= count
        producers.append((producer(place), batches))
    return write_file(
        path / "many.shmrec", Header(**{**vars(header()), "reason": "many"}), producers
    )


def timeline_of(path: Path) -> Timeline:
    snapshot = read(path)
    return Timeline(snapshot, analyse(snapshot))


def shown(path: Path) -> list[Item]:
    return list(timeline_of(path).items())
