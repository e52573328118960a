"""Who may open a recording's memory, and what is refused instead of opened.

Runs in every process. The only place that opens shared memory.

Invariants: what is opened is a regular file of ours that nobody else may open; root may also look
at others'. No link is followed. Nothing is mapped here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_module
from typing import Final

import posix_ipc

from shmrec.errors import NoSuchRecordingError, SegmentError, SpaceError, WrongOwnerError
from shmrec.naming import DIRECTORY, shm_name, shm_path

__all__ = ["open_checked"]

_LINK: Final = "is a symbolic link: name the file itself, or have the link removed"


def open_checked(name: str, path: str | None, writable: bool, create: bool) -> int:
    """A descriptor, close-on-exec, of an object that was checked to be ours alone.

    Raises `NoSuchRecordingError`, `FileExistsError` where it was to be made, `WrongOwnerError`,
    `SpaceError`, `SegmentError`.
    """
    place = path or shm_path(name)
    if not create:
        # Before it is opened: a pipe that somebody put there would keep us waiting, and of what
        # may not be opened one would not learn whose it is.
        with contextlib.suppress(OSError):
            _check_owner(name, place, os.stat(place, follow_symlinks=False), reading=not writable)
    try:
        if path is not None:
            flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK
            flags |= os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
            fd = os.open(path, flags, 0o600)
        else:
            # posix_ipc opens for writing unless told to open read-only.
            flags = posix_ipc.O_CREX if create else 0
            memory = posix_ipc.SharedMemory(
                shm_name(name), flags, mode=0o600, read_only=not writable
            )
            fd = memory.fd
    except (posix_ipc.ExistentialError, FileNotFoundError, FileExistsError) as error:
        if create:
            raise FileExistsError(name) from error
        raise NoSuchRecordingError(
            f"no recording {name!r}: start one with `shmrec-collect {name}`, or see "
            "`shmrec-dump list`"
        ) from error
    except (posix_ipc.PermissionsError, PermissionError) as error:
        raise WrongOwnerError(
            f"recording {name!r} may not be opened by user {os.geteuid()}: run as its owner"
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WrongOwnerError(f"{place} {_LINK}") from error
        if error.errno == errno.ENOSPC:
            raise SpaceError(f"no room for recording {name!r} in {path or DIRECTORY}") from error
        raise SegmentError(f"cannot open recording {name!r}: {error}") from error
    try:
        _check_owner(name, place, os.fstat(fd), reading=not writable)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_owner(name: str, place: str, found: os.stat_result, reading: bool) -> None:
    if stat_module.S_ISLNK(found.st_mode):
        raise WrongOwnerError(f"{place} {_LINK}")
    if not stat_module.S_ISREG(found.st_mode):
        raise SegmentError(f"recording {name!r} is not a regular file: see {place}")
    if found.st_uid != os.geteuid() and not (reading and os.geteuid() == 0):
        raise WrongOwnerError(
            f"recording {name!r} belongs to user {found.st_uid}, not {os.geteuid()}: refused; "
            f"choose another name, or have {place} removed"
        )
    if found.st_mode & 0o077:
        raise WrongOwnerError(
            f"recording {name!r} has mode {found.st_mode & 0o777:o}, others may open it: refused; "
            "if it is yours, chmod it to 600"
        )
