"""Names of the system calls in which processes wait.

Runs in the collector. Numbers are those of the kernel's ``arch/x86/entry/syscalls/syscall_64.tbl``
and ``include/uapi/asm-generic/unistd.h``. Only calls that may take long have a name here: in no
other is a process found that hangs.
"""

from __future__ import annotations

import os
import struct
from typing import Final

__all__ = ["named"]

_X86_64: Final = {
    0: "read", 1: "write", 3: "close", 7: "poll", 8: "lseek", 16: "ioctl", 17: "pread64",
    18: "pwrite64", 19: "readv", 20: "writev", 23: "select", 34: "pause", 35: "nanosleep",
    40: "sendfile", 42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg",
    47: "recvmsg", 61: "wait4", 65: "semop", 70: "msgrcv", 72: "fcntl", 73: "flock", 74: "fsync",
    75: "fdatasync", 128: "rt_sigtimedwait", 130: "rt_sigsuspend", 202: "futex",
    208: "io_getevents", 219: "restart_syscall", 220: "semtimedop", 230: "clock_nanosleep",
    232: "epoll_wait", 247: "waitid", 257: "openat", 270: "pselect6", 271: "ppoll",
    275: "splice", 281: "epoll_pwait", 288: "accept4", 299: "recvmmsg", 426: "io_uring_enter",
    441: "epoll_pwait2", 449: "futex_waitv",
}  # fmt: skip

_GENERIC: Final = {
    22: "epoll_pwait", 25: "fcntl", 29: "ioctl", 32: "flock", 56: "openat", 57: "close",
    62: "lseek", 63: "read", 64: "write", 65: "readv", 66: "writev", 67: "pread64",
    68: "pwrite64", 71: "sendfile", 72: "pselect6", 73: "ppoll", 76: "splice", 82: "fsync",
    83: "fdatasync", 95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep",
    128: "restart_syscall", 133: "rt_sigsuspend", 137: "rt_sigtimedwait", 188: "msgrcv",
    192: "semtimedop", 193: "semop", 202: "accept", 203: "connect", 206: "sendto",
    207: "recvfrom", 211: "sendmsg", 212: "recvmsg", 242: "accept4", 243: "recvmmsg",
    260: "wait4", 426: "io_uring_enter", 441: "epoll_pwait2", 449: "futex_waitv",
}  # fmt: skip

_TABLES: Final = {"x86_64": _X86_64, "aarch64": _GENERIC}
_WIDE: Final = struct.calcsize("P") == 8
_NAMES: Final = _TABLES.get(os.uname().machine, {}) if _WIDE else {}


def named(line: str, names: dict[int, str] = _NAMES) -> str:
    """What a line of ``/proc/PID/syscall`` says: the call's name, or its number in words.

    "running" for a process on a processor; empty where it waits outside of any call.
    """
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    if word == "running":
        return word
    if not (word.isascii() and word.isdigit()):
        return ""
    number = int(word[:9])
    return names.get(number, f"system call {number}")
