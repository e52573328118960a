"""Frames for values: what a fuzzer cannot find by chance, a checksum, is computed for it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import msgpack

from shmrec.layout import FILE_MAGIC, FRAME_HEADER, FRAME_MARKER

__all__ = ["sealed", "values"]


def values(data: bytes) -> Iterator[bytes]:
    """The msgpack values at the beginning of `data`, as bytes; then the rest, if there is one."""
    unpacker = msgpack.Unpacker(
        strict_map_key=False, unicode_errors="replace", max_buffer_size=max(len(data), 1)
    )
    unpacker.feed(data)
    at = 0
    try:
        while True:
            unpacker.skip()
            end = unpacker.tell()
            yield data[at:end]
            at = end
    except (ValueError, TypeError, msgpack.UnpackException):
        if at < len(data):
            yield data[at:]


def sealed(data: bytes) -> bytes:
    """A snapshot file whose frames have these values, their lengths and checksums right."""
    parts = [FILE_MAGIC]
    for value in values(data):
        length = len(value)
        crc = zlib.crc32(value, zlib.crc32(struct.pack("<I", length)))
        parts += [struct.pack(FRAME_HEADER, FRAME_MARKER, length, crc, 0), value]
    return b"".join(parts)
