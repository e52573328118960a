"""Fuzzes what a collector does with memory that was scribbled over, by rights of its own.

What an input is, `image` says. A snapshot of two flushes is taken, producers are watched, rings
are looked at for triggers, and requests are answered. The collector writes nothing but its own
words, whatever the others hold.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final
from unittest import mock

from shmrec import capture, requests
from shmrec import segment as segments
from shmrec.capture import Order
from shmrec.errors import ShmrecError
from shmrec.layout import CONTROL, ENTRY, REQUEST, REQUESTS, Table
from shmrec.lookout import Lookout
from shmrec.roster import Roster
from shmrec.segment import Segment, open_segment
from shmrec.snapshot_file import read
from shmrec.triggers import parse_all
from tools.fuzz.image import GEOMETRY, NAME, check_healthy, scribbled, seeds
from tools.fuzz.workplace import workplace

__all__ = ["HELP", "LONGEST", "check", "seeds"]

HELP: Final = "the collector over such memory: flushes, snapshots, triggers, requests"
LONGEST: Final = 2048
_TRIGGERS: Final = (
    "slow_span request* 1s",
    "slow_span * 5s",
    "stall 2s",
    "stall 3s heartbeat=hit",
    "counter queue > 5",
)
_DEADLINE_NS: Final = 1_000_000
_LATER_NS: Final = 10**10


def check(data: bytes) -> None:
    """What holds of any segment."""
    image, over = scribbled(data)
    path = workplace() / "collected"
    path.touch(mode=0o600)
    path.write_bytes(image)
    # A segment without its magic is one that is still being made: that is not waited for.
    with mock.patch.object(segments, "_READY_SECONDS", 0.0):
        try:
            segment = open_segment(NAME, str(path))
        except ShmrecError:
            assert None in over, "what nobody scribbled over is refused"
            return
    with segment:
        recorded = _collect(segment)
    try:
        check_healthy(read(recorded), over)
    finally:
        recorded.unlink()
    assert _without_the_collectors(path.read_bytes()) == _without_the_collectors(image)


def _collect(segment: Segment) -> Path:
    """A collector's round, and a snapshot."""
    roster = Roster(segment)
    try:
        lookout = Lookout(roster.readers, parse_all(_TRIGGERS))
        now = time.monotonic_ns()
        for moment in (now, now + _LATER_NS):
            roster.look(moment, tick=True)
            for finding in lookout.look([each.index for each in roster.living()], moment):
                assert isinstance(finding.reason, str)
        for request in requests.pending(segment):
            requests.answer(segment, request, request.reason)
        assert not requests.pending(segment)
        roster.anybody()
        order = Order(
            workplace() / "snapshots",
            size=segment.word("keep_size"),
            period_ns=segment.word("keep_period_ns"),
            deadline_ns=_DEADLINE_NS,
            causes=roster.causes(),
            details=roster.details,
        )
        return capture.take(segment, order)
    finally:
        roster.close()


def _without_the_collectors(memory: bytes) -> bytes:
    """The memory with zeros for all that a collector may write."""
    left = bytearray(memory)

    def clear(table: Table, base: int) -> None:
        for row in table.rows:
            if row.writer == "collector":
                left[base + row.offset : base + row.offset + row.size] = bytes(row.size)

    clear(CONTROL, 0)
    for slot in range(REQUESTS):
        clear(REQUEST, GEOMETRY.request(slot))
    for index in range(GEOMETRY.producers):
        clear(ENTRY, GEOMETRY.entry(index))
    return bytes(left)
