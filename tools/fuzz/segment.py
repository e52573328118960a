"""Fuzzes the readers of shared memory: what tools read, of a segment that was scribbled over.

What an input is, `image` says.
"""

from __future__ import annotations

import zlib
from typing import Final
from unittest import mock

from shmrec import live, requests, takeover
from shmrec import segment as segments
from shmrec.errors import NoSuchRecordingError, ShmrecError
from shmrec.layout import LOST_AT_MOST, REASON_BYTES
from shmrec.ring import readers
from shmrec.segment import Segment, open_segment
from shmrec.snapshot_file import read
from shmrec.stack_area import fatal_stack
from tools.fuzz import commands
from tools.fuzz.image import EVENTS, GEOMETRY, HEALTHY, NAME, check_healthy, scribbled, seeds
from tools.fuzz.workplace import workplace

__all__ = ["HELP", "LONGEST", "check", "seeds"]

HELP: Final = "the readers of shared memory: geometry, rings, ps, recover"
LONGEST: Final = 2048


def check(data: bytes) -> None:
    """What holds of any segment."""
    image, over = scribbled(data)
    path = workplace() / "segment"
    path.touch(mode=0o600)
    path.write_bytes(image)
    # A segment without its magic is one that is still being made: that is not waited for.
    with mock.patch.object(segments, "_READY_SECONDS", 0.0):
        _look(str(path), over, zlib.crc32(data))
    assert path.read_bytes() == image, "a reader wrote into the segment"


def _look(path: str, over: set[int | None], chosen: int) -> None:
    try:
        segment = open_segment(NAME, path, writable=False)
    except NoSuchRecordingError:
        raise AssertionError("the file is there") from None
    except ShmrecError:
        if chosen % 4 == 0:
            assert commands.run("ps", "--path", path)[0] == 1
        assert None in over, "what nobody scribbled over is refused"
        return
    with segment:
        assert len(segment.view) == GEOMETRY.segment_size
        _read(segment, over)
        recovered = takeover.recover(segment, workplace() / "snapshots")
    try:
        check_healthy(read(recovered), over)
        if chosen % 4 == 0:
            commands.run("ps", "--path", path, "--all", *["--json"] * (chosen >> 2 & 1))
        elif chosen % 4 == 1:
            commands.run("info", recovered, *["--json"] * (chosen >> 2 & 1))
    finally:
        recovered.unlink()


def _read(segment: Segment, over: set[int | None]) -> None:
    """Everything that reads memory, by itself."""
    live.look(segment)
    for each in live.producers(segment):
        assert all(isinstance(note, str) for note in each.damage)
    assert all(len(each.reason) <= REASON_BYTES for each in requests.pending(segment))
    for reader in readers(segment):
        entry = reader.entry()
        assert max(entry.losses.values()) <= LOST_AT_MOST
        scan = reader.scan()
        assert len(scan.heads) + len(scan.damage) <= GEOMETRY.slots
        for head in scan.heads:
            batch = reader.copy(head)
            assert batch is None or len(batch.payload) == head.size <= GEOMETRY.payload_size
        fatal_stack(segment, entry)
        reader.progress()
        reader.mark()
        assert len(reader.newest(1 << 40)) <= GEOMETRY.slots
        if reader.index == HEALTHY and not over & {None, HEALTHY}:
            assert not scan.damage
            assert sum(head.count for head in scan.heads) == EVENTS
