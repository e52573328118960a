"""A snapshot file's frames, both sides: `FrameWriter` and `frames`.

Runs in the collector, and wherever snapshots are read. A frame is declared in `layout`; what its
value means is in `snapshot_file`. Whatever is in a file is hostile until checked: lengths before
allocation. A damaged frame is named and skipped, and the frames around it are read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, TypeAlias

import msgpack

from shmrec import layout

__all__ = ["Checksum", "FrameWriter", "frames"]

Checksum: TypeAlias = Callable[..., int]

_HEADER: Final = struct.Struct(layout.FRAME_HEADER)
_LENGTH: Final = struct.Struct("<I")
_MARKER: Final = _LENGTH.pack(layout.FRAME_MARKER)
_SEARCH_BYTES: Final = 1 << 16
_FEW: Final = 15
"""Elements of an array whose msgpack header is one byte, which counts them."""
_BUNCH_BYTES: Final = 1 << 20
# Half of what one writev(2) takes.
_BUNCH_PARTS: Final = 512
_WASTE: Final = 4
"""Bytes spent on checksums of what is no frame, as a multiple of the file's size."""


class FrameWriter:
    """Writes the magic and then frames to a binary file, in bunches, by its ``writelines``.

    `crc32` is whatever computes what ``zlib.crc32`` does; `bytes` counts what has been written,
    or waits for `flush`.
    """

    def __init__(self, file: IO[bytes], crc32: Checksum = zlib.crc32) -> None:
        self._file = file
        self._crc32 = crc32
        self._pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack
        self._parts: list[bytes | memoryview] = [layout.FILE_MAGIC]
        self._waiting = 0
        self.bytes = len(layout.FILE_MAGIC)

    def write(self, value: list[Any]) -> None:
        """One frame."""
        self._frame(self._pack(value))

    def write_with(self, value: list[Any], payload: bytes | memoryview) -> None:
        """A frame whose value is the list with the payload as one element more.

        The list has fewer than 15 elements. The payload is kept by reference until `flush`.
        """
        # It is nearly all of the frame, and not worth copying into msgpack and out again: the
        # array is said to have one element more, and that follows.
        packed = self._pack(value)
        assert len(value) < _FEW
        head = bytes((packed[0] + 1,)) + packed[1:] + _bytes_header(len(payload))
        self._frame(head, payload)

    def flush(self) -> None:
        """Give the file all frames so far: the payloads' memory may be used again."""
        parts, self._parts, self._waiting = self._parts, [], 0
        self._file.writelines(parts)  # step: written

    def _frame(self, head: bytes, payload: bytes | memoryview = b"") -> None:
        length = len(head) + len(payload)
        crc = self._crc32(payload, self._crc32(_LENGTH.pack(length) + head))
        self._parts.append(_HEADER.pack(layout.FRAME_MARKER, length, crc, 0) + head)
        if payload:
            self._parts.append(payload)
        self._waiting += _HEADER.size + length
        self.bytes += _HEADER.size + length
        if self._waiting >= _BUNCH_BYTES or len(self._parts) >= _BUNCH_PARTS:
            self.flush()


def _bytes_header(length: int) -> bytes:
    """What precedes so many bytes in msgpack; its packer offers none."""
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1)
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2)
    return b"\xc6" + length.to_bytes(4)


def frames(file: IO[bytes], size: int, note: Any) -> Iterator[tuple[int, bytes]]:
    """The values of all intact frames with their offsets; damage is told to `note`."""
    at = len(layout.FILE_MAGIC)
    patience = _WASTE * size
    while at < size:
        file.seek(at)
        raw = file.read(_HEADER.size)
        if len(raw) < _HEADER.size:
            note(f"the file ends inside a frame's header, at byte {at}")
            return
        marker, length, crc, zero = _HEADER.unpack(raw)
        wrong = ""
        if marker != layout.FRAME_MARKER or zero:
            wrong = "no frame begins here"
        elif length > layout.MAXIMUM_FRAME or at + _HEADER.size + length > size:
            wrong = f"its length of {length} bytes goes beyond the file"
        else:
            packed = file.read(length)
            if zlib.crc32(packed, zlib.crc32(_LENGTH.pack(length))) == crc:
                yield at + _HEADER.size, packed
                at += _HEADER.size + length
                continue
            wrong = "its checksum is wrong"
            patience -= length
            if patience < 0:
                note(f"frame at byte {at}: nothing but damage from here on")
                return
        note(f"frame at byte {at}: {wrong}")
        at = _next_marker(file, at + 1, size)


def _next_marker(file: IO[bytes], at: int, size: int) -> int:
    """Where the next frame may begin, `size` if nowhere."""
    while at < size:
        file.seek(at)
        chunk = file.read(_SEARCH_BYTES + len(_MARKER))
        found = chunk.find(_MARKER)
        if found >= 0:
            return at + found
        at += _SEARCH_BYTES
    return size
