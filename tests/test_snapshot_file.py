"""`FileWriter`: the bytes of a frame, whichever way its payload came."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest

import shmrec
from shmrec import checksum, layout, snapshot_file
from shmrec.file_writer import FileWriter
from shmrec.layout import Frame
from shmrec.manifest import Header, Producer
from shmrec.ring import Batch, BatchView, Head

PAYLOADS = [0, 1, 255, 256, 16_320, 65_535, 65_536, 1 << 20]
NUMBERS = [1, 127, 128, 255, 256, 65_536, 1 << 32, (1 << 62) - 1]


def frame(value: Any) -> bytes:
    """A frame as the format declares it, its value packed by msgpack as a whole."""
    packed = msgpack.packb(value)
    length = struct.pack("<I", len(packed))
    crc = zlib.crc32(length + packed)
    return struct.pack(layout.FRAME_HEADER, layout.FRAME_MARKER, len(packed), crc, 0) + packed


def value(producer: int, head: Head, payload: bytes) -> list[Any]:
    return [
        Frame.BATCH,
        producer,
        head.number,
        head.generation,
        head.start_ns,
        head.first,
        head.count,
        head.flags,
        payload,
    ]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", PAYLOADS)
def test_a_batch_is_packed_as_msgpack_packs_the_whole_of_it(size: int, number: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    head = Head(number, number, number, size, min(number, size), number, 7, 0)
    for lent in (Batch(head, payload), BatchView(head, memoryview(bytearray(payload)))):
        file = io.BytesIO()
        writer = FileWriter(file, checksum.crc32)
        writer.batch(number, lent)
        writer.flush()
        expected = layout.FILE_MAGIC + frame(value(number, head, payload))
        assert file.getvalue() == expected
        assert writer.bytes == len(expected)


def test_every_kind_of_frame_is_what_msgpack_packs(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = FileWriter(file)
    writer.header(Header(recording="web", reason="é"))
    writer.producer(Producer(index=3, label="worker"))
    writer.trailer()
    frames = file.getvalue()
    at = len(layout.FILE_MAGIC)
    kinds = []
    while at < len(frames):
        length = struct.unpack_from("<I", frames, at + 4)[0]
        packed = frames[at + layout.FRAME_HEADER_SIZE :][:length]
        unpacked = msgpack.unpackb(packed)
        kinds.append(unpacked[0])
        assert frames[at : at + layout.FRAME_HEADER_SIZE + length] == frame(unpacked)
        at += layout.FRAME_HEADER_SIZE + length
    assert kinds == [Frame.HEADER, Frame.PRODUCER, Frame.TRAILER]
    (tmp_path / "file").write_bytes(frames)
    read = shmrec.read(tmp_path / "file")
    assert not read.damage
    assert read.header.reason == "é"
    assert [producer.label for producer in read.producers] == ["worker"]


class Bunches(io.BytesIO):
    """Counts the bunches, and how much was in the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.parts: list[int] = []

    def writelines(self, parts: Any, /) -> None:
        kept = list(parts)
        self.parts.append(len(kept))
        self.sizes.append(sum(len(part) for part in kept))
        super().writelines(kept)


@pytest.mark.parametrize("size", [1, 16_320])
def test_frames_wait_for_each_other_but_not_without_bound(size: int) -> None:
    file = Bunches()
    writer = FileWriter(file)
    for number in range(1, 1001):
        writer.batch(0, Batch(Head(number, 1, 1, size, 1, number, 0, 0), bytes(size)))
    writer.flush()
    assert len(file.getvalue()) == writer.bytes
    assert len(file.sizes) < 100
    assert max(file.sizes) < 2 << 20
    assert max(file.parts) <= 1024


def test_memory_that_was_lent_may_be_used_again_after_a_flush() -> None:
    room = bytearray(b"first")
    file = io.BytesIO()
    writer = FileWriter(file)
    head = Head(1, 1, 1, 5, 1, 0, 0, 0)
    writer.batch(0, BatchView(head, memoryview(room)))
    writer.flush()
    room[:] = b"again"
    writer.batch(0, BatchView(head, memoryview(room)))
    writer.flush()
    expected = [frame(value(0, head, text)) for text in (b"first", b"again")]
    assert file.getvalue() == layout.FILE_MAGIC + b"".join(expected)


def written(tmp_path: Path, values: list[Any]) -> Path:
    path = tmp_path / "x.shmrec"
    path.write_bytes(layout.FILE_MAGIC + b"".join(map(frame, values)))
    return path


def test_a_file_of_before_the_newer_fields_is_read(tmp_path: Path) -> None:
    header = {"recording": "web", "reason": "death", "taken_mono_ns": 5, "generation": 1}
    cause = {"text": "signal 9 (SIGKILL)", "source": "host", "signal": 9, "exit_code": None}
    producer = {"index": 0, "pid": 7, "state": "dead", "losses": {}, "cause": cause}
    counts = {"producers": 1, "batches": 0, "events": 0}
    path = written(
        tmp_path, [[Frame.HEADER, header], [Frame.PRODUCER, producer], [Frame.TRAILER, counts]]
    )
    snapshot = shmrec.read(path)
    assert not snapshot.damage
    [read] = snapshot.producers
    assert (read.pid, read.facts, read.memory, read.stacks) == (7, [], {}, [])
    assert (snapshot.header.suspects, snapshot.header.first) == ([], False)


def test_there_are_no_more_producers_and_facts_than_can_be(tmp_path: Path) -> None:
    rows = [[n, 1, 1, 1, 1, "S"] for n in range(60_000)]
    frames: list[Any] = [[Frame.HEADER, {"recording": "web"}], [Frame.PRODUCER, {"facts": rows}]]
    frames += [[Frame.PRODUCER, {"index": n}] for n in range(1, layout.MAXIMUM_PRODUCERS + 1)]
    frames += [
        [Frame.BATCH, n, 1, 1, 1, 1, 0, 0, b""]
        for n in range(2 * layout.MAXIMUM_PRODUCERS, 3 * layout.MAXIMUM_PRODUCERS)
    ]
    snapshot = shmrec.read(written(tmp_path, frames))
    assert len(snapshot.producers) == layout.MAXIMUM_PRODUCERS
    assert len(snapshot.producers[0].facts) <= 1000
    assert snapshot.producers[0].facts[-1] == rows[-1]
    assert any("more producers" in note for note in snapshot.damage)


def stack_frame(index: Any, text: str, **more: Any) -> bytes:
    stack = {"kind": "asked", "taken_ns": 1, "text": text, "cut": False, "note": "", "idents": {}}
    return frame([Frame.STACK, index, stack | more])


def file_of(path: Path, *frames: bytes) -> Path:
    header = frame([Frame.HEADER, {"recording": "web"}])
    path.write_bytes(layout.FILE_MAGIC + header + b"".join(frames))
    return path


def producer_frame(index: int, label: str) -> bytes:
    return frame([Frame.PRODUCER, {"index": index, "label": label}])


def test_a_producer_that_is_there_again_is_named_and_left_out(tmp_path: Path) -> None:
    found = shmrec.read(file_of(tmp_path / "a", *(producer_frame(7, f"n{n}") for n in range(50))))
    assert [each.label for each in found.producers] == ["n0"]
    assert "producer 7 is there twice" in found.damage[0]


def test_stacks_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_file, "_STACKS_BYTES", 1 << 20)
    text = "x" * (layout.STACK_SIZE // 4)
    many = [
        part
        for index in range(6)
        for part in (producer_frame(index, ""), *[stack_frame(index, text)] * 16)
    ]
    found = shmrec.read(file_of(tmp_path / "a", *many))
    kept = [stack for producer in found.producers for stack in producer.stacks]
    assert sum(len(stack.text) for stack in kept) <= 1 << 20
    assert len(kept) == 63
    assert any("more stacks than can be kept in memory" in note for note in found.damage)
    # Neither notes, nor idents, nor stacks of nobody are a way around.
    note = "n" * 170_000
    idents = {n: n for n in range(1200)}
    more = [stack_frame(0, "", note=note)] * 9 + [stack_frame(0, "", idents=idents)] * 6
    found = shmrec.read(file_of(tmp_path / "b", producer_frame(0, ""), *more))
    assert [len(stack.note) for stack in found.producers[0].stacks] == [len(note)] * 6
    found = shmrec.read(file_of(tmp_path / "c", *(stack_frame(n, "x") for n in (5, "a", None))))
    assert len([note for note in found.damage if "a stack of no producer before it" in note]) == 3
