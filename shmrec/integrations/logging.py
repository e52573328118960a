"""Log records as events: a handler for the standard library's `logging`.

::

    logging.getLogger().addHandler(Handler(level=logging.INFO, snapshot=logging.ERROR))

or in a `dictConfig`: ``{"class": "shmrec.integrations.logging.Handler", "snapshot": "ERROR"}``.

Runs in producers. A record becomes a `log` event under its logger's name, with arguments
`level` (its name; `levelno` too, where the name is not the usual one), `message`, `where`
("file:line function") and, where it has one, `error`, its exception's type. No traceback: that
is what `shmrec.exception` is for.

Invariants:

- Nothing is recorded, and no message made, while the recorder is not attached.
- A message is made once at most: not if another handler has done it, nor for a record that is
  logged while this handler makes one, whose text stays as it is in the program.
- It never raises, logs or prints; what fails is counted as unencodable. It holds no lock.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from shmrec import recorder
from shmrec.events import LOG
from shmrec.exceptions import called
from shmrec.recorder import Recorder

__all__ = ["Handler"]

_USUAL: Final = {
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO",
    logging.WARNING: "WARNING",
    logging.ERROR: "ERROR",
    logging.CRITICAL: "CRITICAL",
}


class _Making(threading.local):
    """Whether this thread is making a record's message."""

    now = False


_making: Final = _Making()


class Handler(logging.Handler):
    """Records log records, those at or above `level`, with the process's default recorder.

    A record at or above `snapshot`, a level's number or name, also sends the collector word,
    whose limits for logs apply, and waits for nothing. Raises `ValueError` for an unknown level.
    """

    def __init__(
        self,
        level: int | str = logging.NOTSET,
        *,
        snapshot: int | str | None = None,
        recorder: Recorder = recorder.default,
    ) -> None:
        super().__init__(level)
        self.snapshot: Final = None if snapshot is None else _number(snapshot)
        self._recorder = recorder

    def createLock(self) -> None:
        """No lock of our own: recording has what it needs."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        """Record it, if it passes the filters."""
        if not self._recorder.joined:
            return False
        passed = self.filter(record)
        if passed:
            # From Python 3.12 on a filter may put another record in its place.
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Record it. Never raises."""
        if not self._recorder.joined:
            return
        try:
            self._emit(record)
        except Exception:
            self._recorder.lose("unencodable")

    def _emit(self, record: logging.LogRecord) -> None:
        level = record.levelno
        args: dict[str, Any] = {"level": record.levelname}
        if _USUAL.get(level) != record.levelname:
            args["levelno"] = level
        args["message"] = message = _message(record)
        args["where"] = f"{record.pathname}:{record.lineno} {record.funcName}"
        if record.exc_info and record.exc_info[0] is not None:
            args["error"] = called(record.exc_info[0])
        self._recorder.record(LOG, record.name, args)
        if self.snapshot is not None and level >= self.snapshot:
            first = message.lstrip().partition("\n")[0]
            self._recorder.trigger("log", f"{record.name}: {first}")


def _number(level: int | str) -> int:
    if isinstance(level, int):
        return level
    try:
        return logging.getLevelNamesMapping()[level]
    except KeyError:
        raise ValueError(f"there is no level {level!r} to take a snapshot at") from None


def _message(record: logging.LogRecord) -> str:
    """The record's message, made here only if nobody has made it yet."""
    made = record.__dict__.get("message")
    if isinstance(made, str):
        return made
    if not record.args and type(record.msg) is str:
        return record.msg
    if _making.now:
        # Logged by what we are in the middle of: an argument's __str__, a signal handler.
        return record.msg if isinstance(record.msg, str) else f"<{type(record.msg).__name__}>"
    _making.now = True
    try:
        return record.getMessage()
    finally:
        _making.now = False
