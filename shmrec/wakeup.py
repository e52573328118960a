"""The semaphore that wakes a recording's collector.

Created by the collector, released by producers and tools. It only ever saves the collector's
tick some waiting: a POSIX semaphore stays locked when its holder is killed, so nothing is
guarded by it, and everything works, a second later, where there is none.
"""

from __future__ import annotations

import contextlib
from typing import Any

import posix_ipc

from shmrec import layout
from shmrec.segment import Segment

__all__ = ["open_wakeup", "remove_wakeup", "wake"]


def open_wakeup(segment: Segment, *, create: bool = False) -> Any:
    """The recording's semaphore, or None if there is none."""
    try:
        if create:
            return posix_ipc.Semaphore(_wakeup_name(segment), posix_ipc.O_CREAT, mode=0o600)
        return posix_ipc.Semaphore(_wakeup_name(segment))
    except (posix_ipc.Error, OSError, ValueError):
        return None


def remove_wakeup(segment: Segment) -> None:
    """Take the semaphore's name away. Never raises."""
    with contextlib.suppress(posix_ipc.Error, OSError):
        posix_ipc.unlink_semaphore(_wakeup_name(segment))


def _wakeup_name(segment: Segment) -> str:
    # By name, so that the next collector of that name takes over one that was left behind.
    called = segment.name if segment.path is None else segment.field("run_id").hex()[:16]
    return f"/{layout.NAME_PREFIX}{called}"


def wake(wakeup: Any) -> None:
    """Wake the collector, if it can be woken; never raises, never blocks."""
    if wakeup is not None:
        with contextlib.suppress(posix_ipc.Error, OSError):
            wakeup.release()
