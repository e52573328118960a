"""A file that is to be on disk soon: written in bunches, while the disk is already at work.

Runs in the collector and in tools, below `hidden`. Nothing here makes a file durable, that
takes an fsync; it only leaves the fsync little to do.

Invariant: what is written is written whole, or OSError is raised.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["DurableFile"]

_PARTS_AT_ONCE: Final = 1024
"""IOV_MAX of Linux."""
_WRITEBACK_BYTES: Final = 1 << 20
_ALIGNED: Final = ~0xFFFF
"""Whole pages, of up to 64 KiB: one that is still being filled would be written twice."""


class DurableFile(io.FileIO):
    """An unbuffered file. `writelines` gathers, and starts the disk on what it has written."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w")
        self._started = 0

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`; its length in bytes."""
        return self._gather([memoryview(data)])

    def writelines(self, parts: Iterable[ReadableBuffer], /) -> None:
        """Write the parts one behind the other, without copying them together."""
        views = [memoryview(part) for part in parts]
        for first in range(0, len(views), _PARTS_AT_ONCE):
            self._gather(views[first : first + _PARTS_AT_ONCE])
        self._start_writeback()

    def _gather(self, views: list[memoryview]) -> int:
        total = left = sum([view.nbytes for view in views])
        fd = self.fileno()
        while left:
            written = os.writev(fd, views)  # step: write
            left -= written
            if left:
                # Short because the disk is all but full: the next call says so.
                views = _rest(views, written)
        return total

    def _start_writeback(self) -> None:
        end = self.tell() & _ALIGNED
        if end - self._started < _WRITEBACK_BYTES:
            return
        # The kernel begins to write dirty pages of which it is told that nobody needs them, and
        # does not wait; those not yet on disk stay in memory. Python has no sync_file_range.
        with contextlib.suppress(OSError):
            os.posix_fadvise(
                self.fileno(), self._started, end - self._started, os.POSIX_FADV_DONTNEED
            )
        self._started = end


def _rest(views: list[memoryview], written: int) -> list[memoryview]:
    """What is left of the parts behind so many bytes."""
    for number, view in enumerate(views):
        if written < view.nbytes:
            return [view.cast("B")[written:], *views[number + 1 :]]
        written -= view.nbytes
    return []
