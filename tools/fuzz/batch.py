"""Fuzzes the decoders of a batch: both say the same of any bytes, and never raise.

The first byte says how to read, the others are a batch's payload.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgpack

from shmrec.bulk import WHOLE, Runs
from shmrec.decoder import Event, decode
from shmrec.events import EXCEPTION, LOG
from shmrec.layout import SLOT_SIZE, SlotFlag
from tests.arena import Arena, batches
from tools.fuzz.sameness import flat

HELP: Final = "the batch decoders: decoder and bulk agree on any bytes"
LONGEST: Final = SLOT_SIZE
MSGPACK: Final = 1
"""Where the msgpack values begin."""
_SIZES: Final = (1, 3, 16, WHOLE)
_HEAD: Final[dict[str, Any]] = {
    "start_ns": 10**12,
    "generation": 7,
    "pid": 42,
    "label": "worker",
    "producer": 3,
}

_ODD: Final[tuple[Any, ...]] = (
    *([3, 5.0, 0], [3, True, 0], [3, 5, 9], [3, 5, []], [3, 5, 0, []], [3, 5, 0, {1: 2}], [3]),
    *([True, 5, 0, "x"], [3.0, 5, 0], [99, 5, 0], [-1, 5, 0], [], 7, {3: 0, 5: 0}, [3, -9, 0]),
    *([0, 5, 0, 7], [0, 5, [], "x"], [0, 5, 0], [1, 5, "t", 0], [1, 5, 1.0, 0], [1, 5, 7, 9]),
    *([2, 5, 0, "1", 2], [2, 5, 0, 1, "2"], [2, 5, 0, 1, 2, []], [2, 5, 9, 1, 2], [2, 5, 0, 1]),
    *([4, 5, 0, "1"], [4, 5, 0, False], [4, 5, 0], [4, 5, 0, 1, []], [4, 5, 0, 1, {b"k": 1}]),
    *(
        [5, 5, 0, 1.0, 1],
        [5, 5, 0, 1, None],
        [5, 5, 0, 1, 1, 7],
        [5, 5, 0],
        [6, 5, 0],
        [6, 5, 9, 1],
    ),
)
"""Events that are not quite what a writer writes."""


def check(data: bytes) -> None:
    """What holds of any payload."""
    if not data:
        return
    flags = SlotFlag.PARTIAL_PREAMBLE if data[0] & 1 else 0
    size = _SIZES[data[0] >> 1 & 3]
    payload = data[1:]
    events, damage = _carefully(payload, flags)
    runs = Runs(payload, flags=flags, size=size, **_HEAD)
    found = list(runs)
    assert all(1 <= len(run) <= size for run in found), "a run of another length than asked for"
    same = flat([event for run in found for event in run]) == flat(events)
    assert same, "decoder and bulk read other events"
    assert runs.damage == damage, f"decoder says {damage!r}, bulk {runs.damage!r}"
    whole = _whole_values(payload)
    if not damage:
        assert whole == len(payload), f"no damage told, but only {whole} bytes are whole events"
    # A batch that was cut tells of events that the whole one has, and that it was cut.
    for cut in {whole, len(payload) // 2, len(payload) - 1, data[0] * 31 % max(len(payload), 1)}:
        if 0 <= cut < len(payload):
            fewer, wrong = _carefully(payload[:cut], flags)
            assert flat(events[: len(fewer)]) == flat(fewer), "a cut batch has other events"
            if not wrong:
                assert _whole_values(payload[:cut]) == cut, "a cut event went unnoticed"


def _carefully(payload: bytes, flags: int) -> tuple[list[Event], str]:
    decoded = decode(payload, flags=flags, open_spans={}, **_HEAD)
    events = list(decoded)
    for span in decoded.open.values():
        assert type(span.span) is int
        assert type(span.start_ns) is int
        assert type(span.args) is dict
    for event in events:
        assert type(event.time_ns) is type(event.thread) is type(event.span) is int
        assert event.duration_ns is None or type(event.duration_ns) is int
        assert type(event.name) is type(event.thread_name) is str
        assert all(type(key) is str for key in event.args)
    return events, decoded.damage


def _whole_values(payload: bytes) -> int:
    """Bytes of the msgpack values at the beginning that are whole."""
    unpacker = msgpack.Unpacker(
        strict_map_key=False, unicode_errors="replace", max_buffer_size=max(len(payload), 1)
    )
    unpacker.feed(payload)
    end = 0
    try:
        for _ in unpacker:
            end = unpacker.tell()
    except (ValueError, TypeError, msgpack.UnpackException):
        pass
    return end


def seeds() -> Iterator[tuple[str, bytes]]:
    """Batches that a writer wrote, whole and cut."""
    arena = Arena(slots=8, slot_size=1024)
    writer = arena.writer(engine="python")
    outer = writer.begin("job", number=1)
    for n in range(30):
        with writer.span("request", path=f"/{n}"):
            writer.instant("hit", key=f"k{n}", size=n, ratio=0.5, raw=b"\xff")
            writer.counter("queue", n / 2)
        writer.record(EXCEPTION, "ValueError", {"message": "no", "where": ["a", {"b": None}]})
        writer.record(LOG, "root", {"level": "INFO", "message": "x"})
    writer.end(outer, why="é")
    made = batches(arena.reader())
    for number, batch in enumerate(made[-3:]):
        yield f"written-{number}", bytes((2 * number,)) + batch.payload[:600]
    yield "whole", b"\x06" + made[-2].payload
    yield "preamble-partial", b"\x01" + made[-1].payload
    yield "empty", b"\x00"
    named = b"".join(map(msgpack.packb, ([0, 0, 0, "main"], [1, 0, 11, 0])))
    for number, odd in enumerate(_ODD):
        yield f"odd-{number:02}", b"\x06" + named + msgpack.packb(odd) + msgpack.packb([3, 1, 0])
