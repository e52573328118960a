"""membarrier(2): the collector pays for the fence that producers leave out.

A producer stores ``writing``, then loads ``generation``; x86 may let the load go first. The
collector advances ``generation``, calls `barrier`, and every processor that runs a thread of
a registered process executes a full fence. Producers register at attach; the registration
costs them nothing afterwards. Where the call is missing (old kernel, seccomp, not Linux) both
functions say False and the second flush of a snapshot carries the proof.

Source of the protocol: membarrier(2), the GLOBAL_EXPEDITED commands (Linux 4.16).

`acquire` and `release` order this process's own loads and stores, for a processor that may
exchange them. Only the extension has them; without it they do nothing, which is right on
x86-64, the only machine where the python engine records.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Final

from shmrec.extension import EXTENSION

__all__ = ["acquire", "barrier", "register", "release"]

_SYSCALL: Final = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_GLOBAL_EXPEDITED: Final = 1 << 1
_REGISTER_GLOBAL_EXPEDITED: Final = 1 << 2


def _nothing() -> None:
    pass


acquire: Callable[[], None] = EXTENSION.acquire if EXTENSION else _nothing
"""Loads that follow see whatever was published before what the loads before it saw."""
release: Callable[[], None] = EXTENSION.release if EXTENSION else _nothing
"""Stores that follow are seen by nobody who does not see the stores before it."""


def _membarrier(command: int) -> bool:
    if EXTENSION is not None:
        obeyed: bool = EXTENSION.membarrier(command)
        return obeyed
    number = _SYSCALL.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return False
    # Imported here: a process that only imports shmrec should not pay for ctypes.
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError, ImportError):
        # No such call, or no descriptor left to load ctypes with.
        return False
    call.restype = ctypes.c_long
    return bool(call(ctypes.c_long(number), ctypes.c_int(command), 0, 0) == 0)


def register() -> bool:
    """Let collectors' fences reach this process; False if the kernel has no such call.

    Holds for the process until exec; a forked child registers again when it attaches.
    """
    return _membarrier(_REGISTER_GLOBAL_EXPEDITED)


def barrier() -> bool:
    """Fence every running thread of every registered process; False if it could not."""
    return _membarrier(_GLOBAL_EXPEDITED)
