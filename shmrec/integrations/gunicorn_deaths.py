"""What gunicorn's master says of its workers' ends, read from its own log records.

Runs in the master, as a filter on the ``gunicorn.error`` logger, which sees every record
before a handler does: no hook tells a worker's wait status, and none is called before a worker
that timed out is killed. The wordings are those of gunicorn 20 to 27, rendered, because
versions 21 to 26.0 log some of them without arguments.

Invariants: a record always passes, and nothing is ever raised out of `DeathFilter.filter`; it
does nothing in the workers, which inherit the logger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from collections.abc import Callable
from typing import Final

__all__ = ["LOGGER", "DeathFilter", "status_in", "timeout_in"]

LOGGER: Final = "gunicorn.error"

_FIRST_WORDS: Final = ("Worker ", "WORKER ")
_TIMEOUT: Final = re.compile(r"WORKER TIMEOUT \(pid: ?(\d+)\)")
_EXITED: Final = re.compile(r"Worker \(pid:(\d+)\) exited with code (\d+)")
_KILLED: Final = re.compile(
    r"Worker (?:\(pid:(\d+)\) was sent|with pid (\d+) was terminated due to signal) "
    r"(?:code (?P<status>\d+)|(?:signal )?(?P<number>\d+)|(?P<name>[A-Z][A-Z0-9+]*))"
)


def timeout_in(message: str) -> int | None:
    """The pid of the worker that the message says has timed out."""
    found = _TIMEOUT.match(message)
    return int(found[1]) if found else None


def status_in(message: str) -> tuple[int, int] | None:
    """Pid and wait status of the worker whose end the message tells."""
    exited = _EXITED.match(message)
    if exited:
        return int(exited[1]), (int(exited[2]) & 0xFF) << 8
    killed = _KILLED.match(message)
    if killed is None:
        return None
    if killed["name"]:
        known = getattr(signal, killed["name"], None)
        if not isinstance(known, signal.Signals):
            return None
        status = int(known)
    else:
        # "code 134" is a whole wait status: gunicorn could not find a signal of that number.
        status = int(killed["status"] or killed["number"])
    return int(killed[1] or killed[2]), status & 0xFF


class DeathFilter(logging.Filter):
    """Calls `ended` with pid and wait status, and `timed_out` with a pid."""

    def __init__(self, ended: Callable[[int, int], None], timed_out: Callable[[int], None]) -> None:
        super().__init__()
        self._ended = ended
        self._timed_out = timed_out
        self._pid = os.getpid()

    def install(self) -> None:
        """Put it on gunicorn's logger; twice is harmless."""
        logging.getLogger(LOGGER).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Look at a record and let it pass."""
        with contextlib.suppress(Exception):
            if str(record.msg).startswith(_FIRST_WORDS) and os.getpid() == self._pid:
                self._read(record.getMessage())
        return True

    def _read(self, message: str) -> None:
        pid = timeout_in(message)
        if pid is not None:
            self._timed_out(pid)
            return
        told = status_in(message)
        if told is not None:
            self._ended(*told)
