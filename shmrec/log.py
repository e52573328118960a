"""The collector's log: lines on stderr that nobody needs to read.

Runs in the collector, and at the end of tools. It does not wait for whoever reads: a reader that
has stopped leaves a pipe full, and a write to it would hang. Lines that find no room are dropped,
and counted in the next one that gets through.

Invariant: no flag of a descriptor that other processes share is changed; what must not block is
opened anew, or written to by a call that does not wait.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat as stat_module
import sys
import time
from typing import Final

__all__ = ["Lines", "log_to_stderr", "say"]

_POLL_MS: Final = 10
_SAY_SECONDS: Final = 1.0
"""For that long a tool's last word may wait for its reader."""


class Lines:
    """Lines to a descriptor, each written whole or, where there is no room for it, dropped."""

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd
        self._own = -1
        self._whose = (-1, -1)
        self.dropped = 0

    def write(self, line: str, prefix: str = "", patience: float = 0.0) -> bool:
        """Write a line, with `patience` in seconds; whether there was room for it."""
        deadline = time.monotonic() + patience
        told = f"{prefix}{self.dropped} lines before this were dropped: nobody read them\n"
        if self.dropped and self._put(told, deadline):
            self.dropped = 0
        written = not self.dropped and self._put(f"{prefix}{line}\n", deadline)
        self.dropped += not written
        return written

    def _put(self, text: str, deadline: float) -> bool:
        # So much a pipe takes at once, or, where it is not to wait, nothing of it.
        raw = text.encode("utf-8", "backslashreplace")
        if len(raw) > select.PIPE_BUF:
            raw = raw[: select.PIPE_BUF - 1] + b"\n"
        try:
            kind = os.fstat(self.fd)
            while not self._put_now(raw, kind):
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_MS / 1e3)
        except (OSError, ValueError):
            # Nobody is there to tell: that is no loss.
            pass
        return True

    def _put_now(self, raw: bytes, kind: os.stat_result) -> bool:
        with contextlib.suppress(BlockingIOError):
            if stat_module.S_ISSOCK(kind.st_mode):
                with socket.socket(fileno=os.dup(self.fd)) as shared:
                    return shared.send(raw, socket.MSG_DONTWAIT) > 0
            if self._unblocked(kind):
                return os.write(self._own, raw) > 0
            # A pipe has room for a whole line if it has any, while nobody else writes to it.
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            return bool(poll.poll(0)) and os.write(self.fd, raw) > 0
        return False

    def _unblocked(self, kind: os.stat_result) -> bool:
        """Whether there is a descriptor of the same pipe or terminal that does not wait."""
        if not (stat_module.S_ISFIFO(kind.st_mode) or stat_module.S_ISCHR(kind.st_mode)):
            return False
        if self._whose != (kind.st_dev, kind.st_ino):
            self.close()
            # Not possible without /proc, for example.
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            with contextlib.suppress(OSError):
                self._own = os.open(f"/proc/self/fd/{self.fd}", flags)
            self._whose = kind.st_dev, kind.st_ino
        return self._own >= 0

    def close(self) -> None:
        """Close what was opened here; twice is harmless."""
        if self._own >= 0:
            os.close(self._own)
        self._own, self._whose = -1, (-1, -1)


_STDERR: Final = Lines(2)


def log_to_stderr(message: str) -> None:
    """One line on stderr, without what could drive a terminal; nobody needs to listen."""
    shown = "".join(each if each.isprintable() else "?" for each in message)
    say(shown, f"shmrec[{os.getpid()}]: ", patience=0.0)


def say(line: str, prefix: str = "", *, patience: float = _SAY_SECONDS) -> None:
    """One line on stderr, where somebody most likely reads it."""
    with contextlib.suppress(OSError, ValueError):
        if _replaced():
            print(f"{prefix}{line}", file=sys.stderr, flush=True)
        else:
            _STDERR.write(line, prefix, patience)


def _replaced() -> bool:
    """Whether the program's stderr is no longer the process's."""
    try:
        return sys.stderr.fileno() != _STDERR.fd
    except (OSError, ValueError, AttributeError):
        return sys.stderr is not None
