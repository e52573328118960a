"""What a recording may be called, and where its shared memory then is.

Runs in every process. Opens nothing; `segment` does.
"""

from __future__ import annotations

import os
import re
from typing import Final

import posix_ipc

from shmrec import layout
from shmrec.errors import RecordingNameError

__all__ = ["DIRECTORY", "check_name", "names", "remove", "shm_name", "shm_path"]

DIRECTORY: Final = "/dev/shm"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}\Z", re.ASCII)


def check_name(name: str) -> str:
    """The name itself if it may name a recording, else `RecordingNameError`."""
    if not _NAME.match(name):
        raise RecordingNameError(
            f"{name[:80]!r} cannot name a recording: use 1 to 48 letters, digits, '.', '_' or "
            "'-', the first a letter or digit"
        )
    return name


def shm_name(name: str) -> str:
    """The segment's name for shm_open(3)."""
    return f"/{layout.NAME_PREFIX}{check_name(name)}"


def shm_path(name: str) -> str:
    """The segment as a file, where the system shows it as one."""
    return f"{DIRECTORY}{shm_name(name)}"


def remove(name: str, path: str | None = None) -> None:
    """Take the name away; processes that have the segment open keep it. Never raises."""
    try:
        if path is not None:
            os.unlink(path)
        else:
            posix_ipc.unlink_shared_memory(shm_name(name))
    except (posix_ipc.Error, OSError):
        pass


def names() -> list[str]:
    """The recordings in shared memory that this user may open, sorted."""
    try:
        found = os.listdir(DIRECTORY)
    except OSError:
        return []
    prefix = layout.NAME_PREFIX
    inside = [entry[len(prefix) :] for entry in found if entry.startswith(prefix)]
    return sorted(name for name in inside if _NAME.match(name))
