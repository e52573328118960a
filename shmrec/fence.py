"""membarrier(2): the collector pays for the fence that producers leave out.

A producer stores ``writing``, then loads ``generation``; x86 may let the load go first. The
collector advances ``generation``, calls `barrier`, and every processor that runs a thread of
a registered process executes a full fence. Producers register at attach; the registration
costs them nothing afterwards. Where the call is missing (old kernel, seccomp, not Linux) both
functions say False and the second flush of a snapshot carries the proof.

Source of the protocol: membarrier(2), the GLOBAL_EXPEDITED commands (Linux 4.16).
"""

from __future__ import annotations

import platform
import sys
from typing import Final

__all__ = ["barrier", "register"]

_SYSCALL: Final = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_GLOBAL_EXPEDITED: Final = 1 << 1
_REGISTER_GLOBAL_EXPEDITED: Final = 1 << 2


def _membarrier(command: int) -> bool:
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
