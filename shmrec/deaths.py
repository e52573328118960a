"""Noticing that a producer's process has ended, and learning how.

Runs in the collector. A pidfd becomes readable when its process ends, whoever its parent is;
without pidfds `ended` compares start times in ``/proc``. How it ended is taken from the best
source at hand, and the source is kept with it:

1. the exit status that ``PIDFD_GET_INFO`` keeps after reaping (Linux 6.15);
2. ``/proc/PID/stat`` while the process is a zombie that we may inspect;
3. the word of who reaped it: its parent, where that is the collector itself, or a host.

Where none of these speaks the cause is "unknown", never a guess: so it is with a process that
was reaped, by somebody who says nothing, before its pidfd could be opened. Source of the
protocol: pidfd_open(2) and the kernel's ``include/uapi/linux/pidfd.h``.

Words are matched by pid, may come before the process is known, and are bounded in number.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from shmrec import process
from shmrec.manifest import Cause

__all__ = [
    "HOST",
    "PARENT",
    "UNKNOWN",
    "Death",
    "Timeout",
    "Watched",
    "Watcher",
    "cause_of_status",
]

# struct pidfd_info, first version: mask and cgroup id, eleven ids, exit code.
_INFO: Final = struct.Struct("=QQ11Ii")
_INFO_EXIT: Final = 1 << 3
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11

_TOLD_LIMIT: Final = 256
_SOURCE_LIMIT: Final = 80
_STATUS_AT_MOST: Final = 0xFFFF
_TIMEOUT_AT_MOST_MS: Final = 1 << 40

PARENT: Final = "parent"
HOST: Final = "host"

UNKNOWN: Final = Cause("unknown", "no wait status could be had")


def cause_of_status(status: int, source: str) -> Cause:
    """The cause that a wait status tells."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        core = ", core dumped" if os.WCOREDUMP(status) else ""
        return Cause(f"signal {number} ({signal_name(number)}){core}", source, signal=number)
    code = os.WEXITSTATUS(status)
    return Cause(f"exit code {code}", source, exit_code=code)


def signal_name(number: int) -> str:
    """SIGKILL for 9; SIG42 for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


class Timeout(NamedTuple):
    """A host's word: no answer for `timeout_ms`; told at `told_ns`, CLOCK_MONOTONIC."""

    timeout_ms: int
    told_ns: int


@dataclass
class Watched:
    """A process under watch: its ring and incarnation, its pidfd or -1."""

    index: int
    incarnation: int
    pid: int
    start_ticks: int
    pidfd: int
    timeout: Timeout | None = None

    def close(self) -> None:
        """Stop watching; twice is harmless."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


@dataclass
class Death:
    """A producer that ended without detaching; `cause` is None while it may still be told."""

    watched: Watched
    label: str
    noticed_ns: int
    cause: Cause | None = None

    def describe(self) -> str:
        who = f"{self.label} " if self.label else ""
        return f"{who}pid {self.watched.pid}: {(self.cause or UNKNOWN).text}"


class Watcher:
    """The processes under watch, by ring index."""

    def __init__(self) -> None:
        self.watched: dict[int, Watched] = {}
        self._told: dict[int, tuple[int, str]] = {}
        self._timeouts: dict[int, Timeout] = {}

    def watch(
        self, index: int, incarnation: int, pid: int, start_ticks: int, attached_ns: int = 0
    ) -> Watched:
        """Watch the process that claimed ring `index`; idempotent for one incarnation."""
        known = self.watched.get(index)
        if known is not None:
            if known.incarnation == incarnation:
                return known
            known.close()
        if process.alive(pid, start_ticks):
            # Word of an earlier process that had the same pid.
            self._told.pop(pid, None)
        watched = Watched(index, incarnation, pid, start_ticks, _pidfd(pid, start_ticks))
        timeout = self._timeouts.pop(pid, None)
        if timeout is not None and timeout.told_ns >= attached_ns:
            watched.timeout = timeout
        self.watched[index] = watched
        return watched

    def forget(self, index: int) -> None:
        """Stop watching ring `index`'s process."""
        known = self.watched.pop(index, None)
        if known is not None:
            self._told.pop(known.pid, None)
            known.close()

    def told(self, pid: int, status: int, source: str = HOST) -> None:
        """The word of `source` on how a process ended; it may come before we knew the process."""
        if 0 <= status <= _STATUS_AT_MOST:
            self._told[pid] = status, source[:_SOURCE_LIMIT]
            _forget_oldest(self._told)

    def timed_out(self, pid: int, timeout_ms: int, now_ns: int) -> None:
        """A host's word that a process has not answered for that long; as `told` may it come."""
        if not 0 <= timeout_ms <= _TIMEOUT_AT_MOST_MS:
            return
        timeout = Timeout(timeout_ms, now_ns)
        known = [watched for watched in self.watched.values() if watched.pid == pid]
        for watched in known:
            watched.timeout = timeout
        if not known:
            self._timeouts[pid] = timeout
            _forget_oldest(self._timeouts)

    def gone(self, watched: Watched) -> bool:
        """Whether the process has ended."""
        if watched.pidfd < 0:
            return not process.alive(watched.pid, watched.start_ticks)
        # Cheaper than a look into /proc, and true to the process: its first thread may be a
        # zombie there while others go on.
        poll = select.poll()
        poll.register(watched.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def cause(self, watched: Watched) -> Cause | None:
        """How it ended, or None while no source tells."""
        status = None
        # Whatever it is that the kernel, or a filter of system calls, says instead of it.
        with contextlib.suppress(OSError):
            status = _exit_status(watched.pidfd)
        if status is not None:
            return cause_of_status(status, "kernel (pidfd)")
        seen = process.stat(watched.pid)
        # A zombie shows status 0 both when it exited 0 and to who may not trace it, which a
        # root without CAP_SYS_PTRACE, as in most containers, may not.
        if (
            seen is not None
            and seen.state in "ZX"
            and seen.start_ticks == watched.start_ticks
            and (seen.wait_status or _may_inspect(watched.pid))
        ):
            return cause_of_status(seen.wait_status, "kernel (zombie)")
        if watched.pid in self._told:
            return cause_of_status(*self._told[watched.pid])
        return None

    def close(self) -> None:
        """Stop watching everything."""
        for index in list(self.watched):
            self.forget(index)


def _forget_oldest(words: dict[int, Any]) -> None:
    while len(words) > _TOLD_LIMIT:
        del words[next(iter(words))]


def _pidfd(pid: int, start_ticks: int) -> int:
    """A pidfd of that very process, or -1."""
    fd = -1
    with contextlib.suppress(OSError, AttributeError, OverflowError):
        fd = os.pidfd_open(pid)
        # The pid may have been reused between the look and the open.
        if start_ticks and process.start_ticks(pid) not in (0, start_ticks):
            os.close(fd)
            fd = -1
    return fd


def _exit_status(pidfd: int) -> int | None:
    if pidfd < 0:
        return None
    info = bytearray(_INFO.size)
    info[:8] = struct.pack("=Q", _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError as error:
        # Older kernels know neither the call nor the flag.
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EOPNOTSUPP):
            return None
        raise
    mask, *_, exit_code = _INFO.unpack(info)
    return exit_code if mask & _INFO_EXIT else None


def _may_inspect(pid: int) -> bool:
    """Whether the kernel lets us look where it asks the same as for a zombie's status."""
    try:
        os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return False
    return True
