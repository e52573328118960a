"""A segment that somebody has scribbled over, made of a fuzzer's bytes.

An input says what is scribbled over a recording of two producers: its first byte how large the
file is, then patches: a byte for the region, two for the place in it, one for the length, and
the bytes. Region and place are taken modulo what there is, so that every input is a segment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from shmrec import ledger, process
from shmrec import segment as segments
from shmrec.layout import (
    CONTROL,
    ENTRY,
    MINIMUM_SLOTS,
    REQUEST,
    SLOT,
    WORD,
    EntryState,
    Geometry,
    Verb,
)
from shmrec.segment import Segment
from shmrec.snapshot_file import Snapshot
from shmrec.writer import Writer
from tools.fuzz.workplace import workplace

__all__ = ["EVENTS", "GEOMETRY", "HEALTHY", "NAME", "check_healthy", "scribbled", "seeds"]

GEOMETRY: Final = Geometry(producers=2, slots=MINIMUM_SLOTS)
NAME: Final = "fuzzed"
HEALTHY: Final = 1
"""The producer that keeps all it has where nobody scribbles over its part."""
EVENTS: Final = 40
_LONG_AGO: Final = 10**9
_KEEP: Final = 1 << 20
_PERIOD: Final = 60 * 10**9
_FRESH_SECONDS: Final = 10
"""For so long a recording that was made serves: events older than the period are not kept."""


class _Region(NamedTuple):
    """A part of the segment; `owner` is the producer whose part it is, or None."""

    offset: int
    size: int
    owner: int | None


def _regions() -> tuple[_Region, ...]:
    made = [
        _Region(0, CONTROL["generation"], None),
        _Region(CONTROL["generation"], CONTROL.size - CONTROL["generation"], None),
        _Region(GEOMETRY.request(0), 2 * REQUEST.size, None),
    ]
    for index in range(GEOMETRY.producers):
        made.append(_Region(GEOMETRY.entry(index), ENTRY.size, index))
        made.append(_Region(GEOMETRY.stack(index), GEOMETRY.stack_size, index))
        for slot in range(GEOMETRY.slots):
            at = GEOMETRY.ring(index) + slot * GEOMETRY.slot_size
            made.append(_Region(at, SLOT.size, index))
            made.append(_Region(at + SLOT.size, GEOMETRY.payload_size, index))
    return tuple(made)


_REGIONS: Final = _regions()


def scribbled(data: bytes) -> tuple[bytes, set[int | None]]:
    """The segment's bytes, and whose parts were scribbled over (None: what is everybody's)."""
    image = bytearray(_base(time.monotonic() // _FRESH_SECONDS))
    over: set[int | None] = set()
    at = 1
    while at + 4 <= len(data):
        region = _REGIONS[data[at] % len(_REGIONS)]
        place = int.from_bytes(data[at + 1 : at + 3], "little") % region.size
        raw = data[at + 4 : at + 4 + data[at + 3]][: region.size - place]
        image[region.offset + place : region.offset + place + len(raw)] = raw
        over.add(region.owner)
        at += 4 + data[at + 3]
    size = data[0] if data else 0
    if size:
        # A file that was cut, or is longer than it says.
        over.add(None)
        wanted = len(image) * size // 128
        image = image[:wanted] if wanted < len(image) else image + bytes(wanted - len(image))
    return bytes(image), over


@lru_cache(maxsize=1)
def _base(made: float) -> bytes:
    """The memory of a producer that has died, and of this process, recording the same.

    `made` is when: another time is another recording.
    """
    path = workplace() / "base"
    path.unlink(missing_ok=True)
    with segments.create(
        NAME, GEOMETRY, path=str(path), keep_size=_KEEP, keep_period_ns=_PERIOD
    ) as segment:
        for index in range(GEOMETRY.producers):
            _record(segment, index)
        segment.set_word("heartbeat_ns", time.monotonic_ns())
        memory = bytes(segment.view)
    path.unlink()
    return memory


def _record(segment: Segment, index: int) -> None:
    entry = segment.geometry.entry(index)
    words = {
        "incarnation": 1,
        "state": EntryState.LIVE,
        "pid": os.getpid(),
        "start_ticks": process.start_ticks(os.getpid()) if index == HEALTHY else _LONG_AGO,
        "attached_ns": time.monotonic_ns(),
        "engine": 1,
    }
    for name, value in words.items():
        segment.words[ENTRY.word(name, entry)] = value
    label = f"worker {index}".encode()
    start = entry + ENTRY["label"]
    segment.view[start : start + len(label)] = label
    writer = Writer()
    writer.bind(
        segment.view,
        segment.words,
        entry=entry,
        ring=segment.geometry.ring(index),
        slot_size=segment.geometry.slot_size,
        slots=segment.geometry.slots,
    )
    for n in range(EVENTS - 1):
        writer.instant("hit", n=n)
        if n % 15 == 14:
            ledger.advance(segment)
    writer.begin("request", n=EVENTS - 1)
    writer.forget()


def _patch(offset: int, raw: bytes) -> bytes:
    """What scribbles these bytes there."""
    for number, region in enumerate(_REGIONS):
        if region.offset <= offset < region.offset + region.size:
            place = (offset - region.offset).to_bytes(2, "little")
            return bytes((number,)) + place + bytes((len(raw),)) + raw
    raise ValueError(offset)


def check_healthy(snapshot: Snapshot, over: set[int | None]) -> None:
    """A snapshot of any memory is whole as a file, and a batch that is bad is bad alone."""
    assert not snapshot.damage, snapshot.damage
    for note in snapshot.verify():
        assert note.startswith("pid "), note
    if not over & {None, HEALTHY}:
        [healthy] = [each for each in snapshot.producers if each.index == HEALTHY]
        mine = [event for event in snapshot.events() if event.producer == HEALTHY]
        assert [event.args["n"] for event in mine] == list(range(EVENTS)), "events are lost"
        assert not healthy.damage


def seeds() -> Iterator[tuple[str, bytes]]:
    """Each word scribbled over with something, and some whole regions."""

    def word(offset: int, value: int) -> bytes:
        return _patch(offset, value.to_bytes(WORD, "little"))

    yield "untouched", b"\0"
    yield "cut", b"\x30"
    yield "longer", b"\xff"
    for name in ("magic", "layout_version", "byte_order", "producers", "slots", "segment_size"):
        yield f"control-{name}", b"\0" + word(CONTROL[name], 1 << 40)
    yield "control-collected", b"\0" + word(CONTROL["collector_pid"], 1 << 40)
    yield "control-times", b"\0" + word(CONTROL["heartbeat_ns"], (1 << 64) - 1)
    yield "control-keep", b"\0" + word(CONTROL["keep_size"], 1)
    yield "control-name", b"\0" + _patch(CONTROL["name"], b"\x1b[31m/../\xff" + b"x" * 52)
    for name in ("state", "pid", "opening", "writing", "losses", "incarnation", "detached_ns"):
        yield f"entry-{name}", b"\0" + word(GEOMETRY.entry(0) + ENTRY[name], (1 << 62) - 1)
    yield "entry-label", b"\0" + _patch(GEOMETRY.entry(0) + ENTRY["label"], b"\x1b[2J\xff" * 16)
    for name in ("number", "generation", "start_ns", "committed", "first", "flags"):
        yield f"slot-{name}", b"\0" + word(GEOMETRY.ring(0) + SLOT[name], (5 << 32) + 4096)
    payload = GEOMETRY.ring(0) + SLOT.size
    large = (1 << 31) - 1
    yield "slot-large", b"\0" + word(GEOMETRY.ring(0) + SLOT["committed"], large)
    yield "payload", b"\0" + _patch(payload, b"\xdd\xff\xff\xff\xff")
    yield "payload-later", b"\0" + _patch(payload + 40, b"\xc1" * 20)
    yield "stack", b"\0" + _patch(GEOMETRY.stack(0), b"\x01" * 64)
    request = GEOMETRY.request(0)
    asked = word(request + REQUEST["verb"], Verb.TRIGGER) + word(request + REQUEST["asked"], 7)
    yield "request", b"\0" + asked + word(request + REQUEST["reason_size"], 1 << 50)
