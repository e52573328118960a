"""Memory that another process may cut short: a load beyond its end finds zeros, not our end.

Runs in collectors and tools, which call `bear_cuts` once. Whoever has a segment open may shorten
it; a load of what is gone is a SIGBUS. Never in a producer: an application's handling of signals
is its own, and there the signal ends whoever records.

Only the extension can do it. Without it a cut is known by the file's size alone, looked at
before the memory is: who is cut while it reads is ended by the signal.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from shmrec.extension import EXTENSION

__all__ = ["NOWHERE", "bear_cuts", "unwatch", "was_cut", "watch", "watch_file"]

NOWHERE: Final = -1
"""What `watch` gives where nothing is watched."""


def bear_cuts() -> None:
    """Watch the memory that is mapped from now on; this process's SIGBUS is ours afterwards."""
    if EXTENSION is not None:
        with contextlib.suppress(OSError):
            EXTENSION.take_sigbus()


def watch(memory: Any, fd: int) -> int:
    """Watch a mapping of the file's beginning, if `bear_cuts` was called."""
    if EXTENSION is None:
        return NOWHERE
    place: int = EXTENSION.watch_memory(memory, fd)
    return place


def watch_file(path: str) -> int:
    """Watch the first page of a file that a library has mapped."""
    if EXTENSION is None:
        return NOWHERE
    with contextlib.suppress(OSError), open("/proc/self/maps", errors="surrogateescape") as file:
        for line in file:
            if line.rstrip("\n").endswith(f" {path}"):
                place: int = EXTENSION.watch_page(int(line.partition("-")[0], 16))
                return place
    return NOWHERE


def was_cut(place: int) -> bool:
    """Whether a load found nothing there."""
    return EXTENSION is not None and place != NOWHERE and EXTENSION.was_cut(place)


def unwatch(place: int) -> None:
    """Watch it no more; before it is unmapped."""
    if EXTENSION is not None and place != NOWHERE:
        EXTENSION.unwatch_memory(place)
