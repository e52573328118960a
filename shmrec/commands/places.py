"""The places that shmrec writes to: shared memory and the directory of snapshots.

Runs in ``shmrec-dump doctor``. Looks and makes nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shmrec import folder, store
from shmrec.commands.wording import size
from shmrec.errors import ShmrecError
from shmrec.layout import DEFAULT_PRODUCERS, DEFAULT_RING_SIZE, Geometry
from shmrec.naming import DIRECTORY

__all__ = ["directory_hints", "memory", "memory_problems", "snapshot_directory"]


def memory() -> dict[str, Any]:
    """Shared memory, and whether a recording of the default size has room there."""
    geometry = Geometry()
    found: dict[str, Any] = {
        "directory": DIRECTORY,
        "size": None,
        "free": None,
        "writable": os.access(DIRECTORY, os.W_OK | os.X_OK),
        "rings": DEFAULT_PRODUCERS,
        "ring_size": DEFAULT_RING_SIZE,
        "rings_that_fit": 0,
    }
    with contextlib.suppress(OSError):
        there = os.statvfs(DIRECTORY)
        found["size"] = there.f_blocks * there.f_frsize
        found["free"] = there.f_bavail * there.f_frsize
        left = found["free"] - geometry.rings_offset
        found["rings_that_fit"] = min(DEFAULT_PRODUCERS, max(0, left // DEFAULT_RING_SIZE))
    return found


def snapshot_directory(directory: Path) -> dict[str, Any]:
    """The directory of snapshots; where it is not there yet, whether it can be made."""
    found: dict[str, Any] = {"path": str(directory), "problem": None, "mode": None}
    found["exists"] = os.path.lexists(directory)
    found["snapshots"] = found["size"] = 0
    wrong = folder.objection(directory, directory.lstat()) if found["exists"] else ""
    place = directory
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place):
        found["problem"] = f"{place} is not a directory: choose another with --dir or SHMREC_DIR"
    elif wrong:
        found["problem"] = wrong
    elif not os.access(place, os.W_OK | os.X_OK):
        found["problem"] = (
            f"{place} may not be written to: change its mode, or choose another directory with "
            "--dir or SHMREC_DIR"
        )
    if found["exists"] and os.path.isdir(place):
        with contextlib.suppress(ShmrecError, OSError):
            found["mode"] = f"{stat.S_IMODE(directory.stat().st_mode):o}"
            stored = store.listing(directory)
            found["snapshots"] = len(stored)
            found["size"] = sum(each.size for each in stored)
    return found


def memory_problems(found: dict[str, Any]) -> Iterator[str]:
    """What keeps a recording of the default size from being made, and what to do."""
    if found["size"] is None:
        yield f"there is no {DIRECTORY}: mount a tmpfs there, or record into a file (path=)"
    elif not found["writable"]:
        yield f"{DIRECTORY} may not be written to: change its mode to 1777"
    elif found["rings_that_fit"] < found["rings"]:
        yield (
            f"{DIRECTORY} has room for {found['rings_that_fit']} of a default recording's "
            f"{found['rings']} rings of {size(found['ring_size'])}: enlarge it (docker run "
            "--shm-size=256m), or record with fewer or smaller rings"
        )


def directory_hints(found: dict[str, Any]) -> Iterator[str]:
    """What could be better about the directory of snapshots."""
    exposed = ""
    if found["mode"] and not found["problem"]:
        with contextlib.suppress(OSError):
            exposed = folder.exposure(Path(found["path"]), os.lstat(found["path"]))
    if exposed:
        yield exposed
