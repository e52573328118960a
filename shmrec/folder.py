"""The directory of snapshots as a place: made for its owner only, refused where others may write.

Runs in the collector and in tools, below `store`, which says what is in it. Nothing is trusted
for its name: a link in the last component is never followed.
"""

from __future__ import annotations

import contextlib
import os
import stat as stat_module
from pathlib import Path
from typing import Final

from shmrec.errors import SnapshotWriteError, WrongOwnerError

__all__ = ["exposure", "objection", "prepare"]

_OTHERS: Final = stat_module.S_IRWXG | stat_module.S_IRWXO
_WRITABLE_BY_OTHERS: Final = stat_module.S_IWGRP | stat_module.S_IWOTH


def prepare(directory: Path) -> str:
    """Make the directory, 0700 whatever the umask, or check that only we may write there.

    What is missing above it is made like it. Returns what is to be said of it: "" if nothing is.
    Raises `WrongOwnerError` for a link and what `objection` says, `SnapshotWriteError` if it
    cannot be made.
    """
    try:
        _make(directory)
        found = os.stat(directory, follow_symlinks=False)
    except OSError as error:
        raise SnapshotWriteError(
            f"cannot make the snapshot directory {directory}: {error.strerror}"
        ) from error
    wrong = objection(directory, found)
    if wrong:
        raise WrongOwnerError(wrong)
    if not stat_module.S_ISDIR(found.st_mode):
        raise SnapshotWriteError(
            f"{directory} is not a directory: choose another with --dir or SHMREC_DIR"
        )
    return exposure(directory, found)


def _make(directory: Path) -> None:
    missing = []
    while not os.path.lexists(directory):
        missing.append(directory)
        directory = directory.parent
    # With a mode alone it is the umask's to say what is made; a chmod afterwards could be of
    # something else.
    before = os.umask(0o077) if missing else None
    try:
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(each, 0o700)  # step: directory
    finally:
        if before is not None:
            os.umask(before)


def objection(directory: Path, found: os.stat_result) -> str:
    """Why snapshots are not written there, or "": `found` without following a link.

    Who may write in a directory may remove what is in it, and put something else there.
    """
    if stat_module.S_ISLNK(found.st_mode):
        return f"{directory} is a symbolic link: name the directory itself"
    if found.st_uid != os.geteuid():
        return (
            f"snapshot directory {directory} belongs to user {found.st_uid}, not {os.geteuid()}: "
            "choose another with --dir or SHMREC_DIR"
        )
    if stat_module.S_ISDIR(found.st_mode) and found.st_mode & _WRITABLE_BY_OTHERS:
        return (
            f"others may write in snapshot directory {directory} (mode "
            f"{stat_module.S_IMODE(found.st_mode):o}): chmod 700, or choose a directory in it"
        )
    return ""


def exposure(directory: Path, found: os.stat_result) -> str:
    """What others see of a directory of ours, or ""."""
    if not found.st_mode & _OTHERS:
        return ""
    return (
        f"{directory} is open to other users (mode {stat_module.S_IMODE(found.st_mode):o}): they "
        "see which snapshots there are, though none may be read: chmod 700"
    )
