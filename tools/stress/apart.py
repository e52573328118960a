"""A function in a process of its own, where this machine is another one: mounts, limits, users.

Runs in the process of a trial, or of a test, and forks. What is mounted is seen by the child and
by what it starts, and is gone with them; nothing of the machine is changed. Who is not root becomes
root in a user namespace of its own, which may mount memory and little else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from tools.stress.tally import Impossible

__all__ = ["NOBODY", "READ_ONLY", "Mount", "apart", "become_nobody", "mount", "mounted"]

NOBODY: Final = 65534
_NEW_MOUNTS: Final = 0x00020000
_NEW_USER: Final = 0x10000000
_PRIVATE: Final = 1 << 18
_RECURSIVE: Final = 1 << 14
_DETACH: Final = 2
_DUMPABLE: Final = 4
REMOUNT: Final = 1 << 5
READ_ONLY: Final = 1

_T = TypeVar("_T")


class Mount(NamedTuple):
    """What is mounted where: ``Mount("/dev/shm", "size=8m")``."""

    place: str
    options: str = ""
    kind: str = "tmpfs"


def apart(action: Callable[[], _T], mounts: Sequence[Mount] | None = None) -> _T:
    """What the action returns, or raises, in a child.

    With `mounts` it sees those, and may make more. Raises `Impossible` where this user may not.
    """
    into, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(into)
        try:
            try:
                if mounts is not None:
                    _leave_mounts()
                for each in mounts or ():
                    mount(each)
                told: tuple[object, BaseException | None] = action(), None
            except Exception as error:
                error.add_note(traceback.format_exc())
                told = None, error
            with open(out, "wb") as pipe:
                pipe.write(pickle.dumps(told))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(out)
    with open(into, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    if not said:
        raise RuntimeError("the child ended without a word")
    found, raised = pickle.loads(said)
    if raised is not None:
        raise raised
    result: _T = found
    return result


def mount(what: Mount, flags: int = 0) -> None:
    """Mount it here; `Impossible` where that is refused."""
    source = b"none"
    result = _libc().mount(
        source,
        os.fsencode(what.place),
        what.kind.encode(),
        ctypes.c_ulong(flags),
        what.options.encode() or None,
    )
    if result:
        raise Impossible(f"{what.kind} cannot be mounted on {what.place}: {_last_error()}")


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Callable[..., None]]:
    """Memory as a disk, in a new directory of that name; call what is yielded to mount it anew.

    It takes the options, and the flags of mount(2), that hold from then on.
    """
    place.mkdir()
    mount(Mount(str(place), options))
    try:
        yield lambda options="", flags=0: mount(Mount(str(place), options), REMOUNT | flags)
    finally:
        # Lazily: somebody may be slow to leave it.
        _libc().umount2(os.fsencode(place), _DETACH)
        place.rmdir()


def become_nobody() -> None:
    """Go on as an unprivileged user, where this one is root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        # Who has changed its user may otherwise not even write to its own /proc/self.
        _libc().prctl(_DUMPABLE, 1, 0, 0, 0)


def _leave_mounts() -> None:
    """See mounts of one's own from now on, that nobody else sees."""
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_MOUNTS if user == 0 else _NEW_MOUNTS | _NEW_USER
    if _libc().unshare(flags):
        raise Impossible(f"no mount namespace may be made here: {_last_error()}")
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    if _libc().mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE | _RECURSIVE), None):
        raise Impossible(f"mounts cannot be made private: {_last_error()}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
