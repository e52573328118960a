"""A snapshot file made by hand: valid, until a test changes something in it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from shmrec import layout
from shmrec.layout import LOSSES, Frame, SlotFlag

SEALED = SlotFlag.SEALED
ENDS = SlotFlag.SEALED | SlotFlag.END_OF_GENERATION
THREAD = 41


@dataclass
class Made:
    """A batch: its header's fields, and its events as the lists that get packed."""

    number: int
    generation: int
    start_ns: int
    first: int
    flags: int
    events: list[list[Any]]
    declared: int = -1
    behind: bytes = b""

    def value(self, index: int) -> list[Any]:
        payload = b"".join(map(msgpack.packb, self.events)) + self.behind
        counted = sum(event[0] > 2 for event in self.events)
        declared = counted if self.declared < 0 else self.declared
        return [
            Frame.BATCH, index, self.number, self.generation, self.start_ns, self.first, declared,
            self.flags, payload,
        ]  # fmt: skip


@dataclass
class Owner:
    """A producer: its fields, batches, and stacks."""

    fields: dict[str, Any]
    batches: list[Made]
    stacks: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class File:
    """A snapshot. `frames` says what is in it, `write` makes the file."""

    header: dict[str, Any]
    owners: list[Owner]
    trailer: dict[str, int] | None = None
    swapped: tuple[int, int] = (0, 0)
    """Two frames that change places."""
    more: list[list[Any]] = field(default_factory=list)
    """Frames before the trailer."""

    def frames(self) -> list[list[Any]]:
        values: list[list[Any]] = [[Frame.HEADER, self.header]]
        batches = events = 0
        for owner in self.owners:
            index = owner.fields["index"]
            values.append([Frame.PRODUCER, owner.fields])
            found = [batch.value(index) for batch in owner.batches]
            values += found + [[Frame.STACK, index, stack] for stack in owner.stacks]
            batches += len(found)
            events += sum(value[6] for value in found)
        counts = {"producers": len(self.owners), "batches": batches, "events": events}
        values += self.more
        values.append([Frame.TRAILER, counts if self.trailer is None else self.trailer])
        one, other = self.swapped
        values[one], values[other] = values[other], values[one]
        return values

    def write(self, path: Path) -> Path:
        path.write_bytes(layout.FILE_MAGIC + b"".join(map(framed, self.frames())))
        return path


def framed(value: list[Any]) -> bytes:
    """A frame as the format has it."""
    body = msgpack.packb(value)
    length = struct.pack("<I", len(body))
    return struct.pack("<I", layout.FRAME_MARKER) + length + struct.pack(
        "<II", zlib.crc32(length + body), 0
    ) + body  # fmt: skip


def named(*events: list[Any]) -> list[list[Any]]:
    """The events behind what a batch begins with: its thread, which speaks."""
    return [[0, 0, 0, "MainThread"], [1, 0, THREAD, 0], *events]


def producer(index: int, **changed: Any) -> dict[str, Any]:
    return {
        "index": index, "incarnation": 1, "pid": 100 + index, "start_ticks": 5,
        "identity": f"{index + 1:032x}", "label": "worker", "engine": "python",
        "state": "running", "evidence": "idle", "fenced": True, "attached_ns": 500,
        "detached_ns": 0, "ended_ns": 0, "recorded": 0, "trimmed": 0,
        "losses": {"overwritten": 0} | dict.fromkeys(LOSSES, 0), "damage": [], "cause": None,
        "reported": False, "facts": [], "peak_rss": 0, "memory": {}, "host": {}, "doing": {},
        "stack_flags": 0,
    } | changed  # fmt: skip


def handmade() -> File:
    """Two producers, one of whom goes on in a span across batches, and one who has gone."""
    header = {
        "recording": "made", "reason": "by hand", "trigger": "request", "version": "0",
        "run_id": "ab", "host": "here", "taken_mono_ns": 9000, "taken_wall_ns": 90_000,
        "started_wall_ns": 89_000, "generation": 4, "generations": [3, 4], "flushes": 2,
        "fenced": True, "keep_size": 4096, "keep_period_ns": 10**9, "requests": [], "notes": [],
        "suspects": [], "triggered_ns": 0, "first": False, "suppressed": {},
    }  # fmt: skip
    # Of 10 events 3 are overwritten, and 1 is trimmed.
    going_on = [
        Made(7, 3, 1000, 4, ENDS, named(
            [0, 0, 1, "outer"], [2, 0, 1, 8, 200, {"n": 1}], [0, 0, 2, "inner"],
            [4, 10, 2, 9], [3, 5, 2, {"at": [1, "x"]}],
        )),
        Made(8, 4, 2000, 6, SEALED, named(
            [0, 0, 1, "outer"], [2, 0, 1, 8, 1200, {"n": 1}], [0, 0, 2, "inner"],
            [2, 0, 2, 9, 990], [5, 10, 2, 1000, 9], [6, 0, 1, 2.5],
        )),
        Made(9, 4, 3000, 8, 0, named(
            [0, 0, 1, "outer"], [2, 0, 1, 8, 2200, {"n": 1}],
            [5, 0, 1, 2200, 8, {"error": "KeyError"}], [7, 7, 1],
        )),
    ]  # fmt: skip
    gone = [
        Made(1, 3, 1500, 0, ENDS, named([0, 0, 1, "alone"], [4, 1, 1, 1])),
        Made(2, 4, 2500, 1, SEALED, named([0, 0, 1, "alone"], [2, 0, 1, 1, 999], [3, 1, 1])),
    ]
    losses = {"overwritten": 3} | dict.fromkeys(LOSSES, 0)
    return File(
        header,
        [
            Owner(producer(0, recorded=10, trimmed=1, losses=losses), going_on),
            Owner(
                producer(2, recorded=2, state="detached", evidence="ended", detached_ns=2600),
                gone,
                [{"kind": "fatal", "taken_ns": 1, "text": "x", "cut": False, "note": "",
                  "idents": {1: 2}}],
            ),
        ],
    )  # fmt: skip
