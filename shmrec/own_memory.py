"""Descriptors through which a process writes to places in its own memory.

Runs in producers: faulthandler can only be given descriptors, and keeps their numbers. One of
``/proc/self/mem`` that stands at an address writes there. Source of the format: proc(5).

Invariant: a descriptor is led elsewhere, or closed, only while it is still ours: an application
may have closed all that it knew nothing of, and opened others.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final, NamedTuple

__all__ = ["HIGH", "Descriptors"]

HIGH: Final = 200
"""Descriptors from here on: whoever closes all and opens others gets the lowest numbers, and
faulthandler would write to those."""
_MEMORY: Final = "/proc/self/mem"


class _Descriptor(NamedTuple):
    """One of ours; by `what` it leads to it is told from another's of the same number."""

    number: int
    what: tuple[int, int, int]


class Descriptors:
    """By name. Each keeps its number while it is led elsewhere, unless it was taken from us."""

    def __init__(self) -> None:
        self._known: dict[str, _Descriptor] = {}

    def names(self) -> list[str]:
        """The names of those that there are."""
        return list(self._known)

    def number(self, name: str) -> int:
        """That of the descriptor; `KeyError` if there is none of the name."""
        return self._known[name].number

    def ours(self, name: str) -> bool:
        """Whether there is one of the name, and its number still is ours."""
        known = self._known.get(name)
        try:
            return known is not None and _what(known.number) == known.what
        except OSError:
            return False

    def lead_to_memory(self, name: str, address: int) -> None:
        """Have it write to memory from `address` on; `OSError` where that cannot be."""
        fd = os.open(_MEMORY, os.O_RDWR | os.O_CLOEXEC)
        try:
            # Sandboxes let it be opened and not be written: better known now than missed then.
            os.pwrite(fd, b"\0", address)
            os.lseek(fd, address, os.SEEK_SET)
            self.lead(name, fd)
        finally:
            os.close(fd)

    def lead(self, name: str, fd: int) -> None:
        """Have it lead where `fd` does."""
        if self.ours(name):
            number = self._known[name].number
            os.dup2(fd, number, inheritable=False)
        else:
            try:
                number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH)
            except OSError:
                # The limit of descriptors is lower than that.
                number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self._known[name] = _Descriptor(number, _what(number))

    def accept(self, name: str) -> None:
        """It is ours where it leads now, which was our own doing."""
        number = self._known[name].number
        self._known[name] = _Descriptor(number, _what(number))

    def forget(self, name: str) -> None:
        """Have nothing more to do with it."""
        del self._known[name]

    def close(self) -> None:
        """Close those that are still ours, and forget all."""
        for name, known in self._known.items():
            if self.ours(name):
                os.close(known.number)
        self._known.clear()


def _what(number: int) -> tuple[int, int, int]:
    found = os.fstat(number)
    return found.st_dev, found.st_ino, found.st_rdev
