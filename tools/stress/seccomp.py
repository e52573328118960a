"""System calls that fail, or take long, for one program: the kernel's own filter, no mock.

Two ways, both inherited by whatever the program starts, and by nobody else. `deny` has calls answer
an error for good, as the profile of a container does. A `Gate` is asked at each call of some kinds
whether it may go on, which error it has instead, or how long it takes: so the n-th of them fails.

Source of the protocol: seccomp(2), seccomp_unotify(2), and the kernel's
``include/uapi/linux/seccomp.h``. x86-64 only: the numbers of calls are its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tools.stress.tally import Impossible

__all__ = ["NUMBERS", "Gate", "Nth", "deny"]

NUMBERS: Final = {
    "read": 0, "write": 1, "close": 3, "mmap": 9, "pwrite64": 18, "writev": 20, "socket": 41,
    "kill": 62, "fsync": 74, "ftruncate": 77, "mkdir": 83, "unlink": 87, "fchmod": 91,
    "utimensat": 280, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264,
    "linkat": 265, "fallocate": 285, "pipe2": 293, "prlimit64": 302,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "renameat2": 316,
    "seccomp": 317, "membarrier": 324, "statx": 332, "rseq": 334, "pidfd_send_signal": 424,
    "clone": 56, "clone3": 435, "pidfd_open": 434, "close_range": 436, "pidfd_getfd": 438,
    "process_madvise": 440, "perf_event_open": 298, "ptrace": 101,
    "fadvise64": 221, "fcntl": 72, "getrandom": 318, "ioctl": 16,
}  # fmt: skip

_MACHINE: Final = 0xC000003E
_ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
_ASK: Final = 0x7FC00000
_NO_NEW_PRIVILEGES: Final = 38
_SET_FILTER: Final = 1
_LISTENER: Final = 1 << 3
_GO_ON: Final = 1

# A classic BPF instruction, and the three that are needed: load a word, compare, return.
_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_MACHINE = 0, 4

_ASKED: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_RECEIVE: Final = 3 << 30 | _ASKED.size << 16 | ord("!") << 8
_SEND: Final = 3 << 30 | _ANSWER.size << 16 | ord("!") << 8 | 1


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def deny(calls: Mapping[str, int]) -> None:
    """Have this process's calls of those names answer those errors from now on."""
    _install({NUMBERS[name]: _ERROR | code for name, code in calls.items()}, 0)


def _install(actions: Mapping[int, int], flags: int) -> int:
    if platform.machine() != "x86_64":
        raise Impossible("the filter knows the calls of x86-64 only")
    code = [_INSTRUCTION.pack(_LOAD, 0, 0, _AT_MACHINE)]
    code += [_INSTRUCTION.pack(_EQUAL, 1, 0, _MACHINE), _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)]
    code += [_INSTRUCTION.pack(_LOAD, 0, 0, _AT_NUMBER)]
    for number, action in actions.items():
        code += [_INSTRUCTION.pack(_EQUAL, 0, 1, number)]
        code += [_INSTRUCTION.pack(_RETURN, 0, 0, action)]
    code += [_INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise Impossible("no filter of system calls may be installed here")
    room = ctypes.create_string_buffer(b"".join(code))
    program = _Program(len(code), ctypes.addressof(room))
    listener = libc.syscall(
        NUMBERS["seccomp"], _SET_FILTER, ctypes.c_ulong(flags), ctypes.byref(program)
    )
    if listener < 0:
        raise Impossible(f"no filter of system calls: {os.strerror(ctypes.get_errno())}")
    return int(listener)


Decision = Callable[[str, Sequence[int]], int]
"""Called with a call's name and arguments: the error that it has instead, 0 to let it go on."""


class Gate:
    """Asked at each of a program's calls of some names. Use as a context manager.

    `enter` is to be run by the program before it executes anything. `decide` may be replaced at
    any time, may take its time, and is called by a thread of this process.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {NUMBERS[name]: name for name in names}
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.decide: Decision = lambda name, arguments: 0
        self._over, self._end = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def enter(self) -> None:
        """Install the filter in this process, which is about to become the program."""
        listener = _install(dict.fromkeys(self._names, _ASK), _LISTENER)
        socket.send_fds(self._theirs, [b"l"], [listener])

    def _serve(self) -> None:
        ready, _, _ = select.select([self._ours.fileno(), self._over], [], [])
        if self._over in ready:
            return
        _, [listener], _, _ = socket.recv_fds(self._ours, 1, 1)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._over, select.POLLIN)
        while True:
            events = dict(poll.poll())
            if self._over in events or events.get(listener, 0) & select.POLLHUP:
                break
            self._answer(listener)
        # Whatever is under way then goes on with ENOSYS: its program is about to be ended.
        os.close(listener)

    def _answer(self, listener: int) -> None:
        asked = bytearray(_ASKED.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, asked)
        except OSError as error:
            # Killed, or interrupted, since it asked.
            if error.errno in (errno.ENOENT, errno.EINTR):
                return
            raise
        ticket, _, _, number, _, _, *arguments = _ASKED.unpack(asked)
        code = self.decide(self._names[number], arguments)
        answer = _ANSWER.pack(ticket, 0, -code, 0 if code else _GO_ON)
        with contextlib.suppress(OSError):
            fcntl.ioctl(listener, _SEND, answer)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._end, b"x")
        self._thread.join()
        self._ours.close()
        self._theirs.close()
        os.close(self._over)
        os.close(self._end)


class Nth:
    """A decision: from the n-th call on `times` of them have the error; all others go on.

    `failed` has their names afterwards: if it is empty, there were fewer calls than that.
    """

    def __init__(self, n: int, code: int, times: int = 1, only: Iterable[str] = ()) -> None:
        self._n, self._code, self._times = n, code, times
        self._only = frozenset(only)
        self._seen = 0
        self.failed: list[str] = []

    def __call__(self, name: str, arguments: Sequence[int]) -> int:
        if self._only and name not in self._only:
            return 0
        self._seen += 1
        if not self._n <= self._seen < self._n + self._times:
            return 0
        self.failed.append(name)
        return self._code
