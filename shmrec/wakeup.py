"""The semaphore that wakes a recording's collector.

Created by the collector, released by producers and tools. It only ever saves the collector's
tick some waiting: a POSIX semaphore stays locked when its holder is killed, so nothing is
guarded by it, and everything works, a second later, where there is none.
"""

from __future__ import annotations

import contextlib
import os
import stat as stat_module
from typing import Any

import posix_ipc

from shmrec import cuts, layout
from shmrec.naming import DIRECTORY
from shmrec.segment import Segment

__all__ = ["open_wakeup", "refused", "remove_wakeup", "wake", "watch_wakeup"]


def open_wakeup(segment: Segment, *, create: bool = False) -> Any:
    """The recording's semaphore, or None if there is none, or `refused` says why not."""
    name = _wakeup_name(segment)
    try:
        if refused(segment):
            return None
        if create:
            with contextlib.suppress(posix_ipc.ExistentialError):
                # Never one that somebody put there since it was looked at.
                posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600).close()
            if refused(segment):
                return None
            # The umask may have taken bits away.
            _restore_mode(segment)
        return posix_ipc.Semaphore(name)
    except (posix_ipc.Error, OSError, ValueError):
        return None


def refused(segment: Segment) -> str:
    """Why what stands under the semaphore's name is not used, or "".

    sem_open(3) maps whatever it finds: another's file could end us with SIGBUS. Nobody but its
    owner can put something else in its place afterwards, for the directory is sticky.
    """
    place = _place(segment)
    try:
        found = os.stat(place, follow_symlinks=False)
    except OSError:
        return ""
    if not stat_module.S_ISREG(found.st_mode):
        return f"{place} is no semaphore"
    if found.st_uid != os.geteuid():
        return f"semaphore {place} belongs to user {found.st_uid}, not {os.geteuid()}"
    if found.st_mode & 0o077:
        return f"semaphore {place} has mode {found.st_mode & 0o777:o}, others may open it"
    return "" if found.st_size else f"{place} is no semaphore"


def _place(segment: Segment) -> str:
    """The semaphore as a file, where the system shows it as one: see sem_overview(7)."""
    return f"{DIRECTORY}/sem.{_wakeup_name(segment)[1:]}"


def _restore_mode(segment: Segment) -> None:
    # Ours alone, as has been seen; where it is no file nothing can be done.
    with contextlib.suppress(OSError):
        os.chmod(_place(segment), 0o600)


def watch_wakeup(segment: Segment) -> int:
    """Bear it that somebody cuts the semaphore short: a number for `cuts.unwatch`."""
    return cuts.watch_file(_place(segment))


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
