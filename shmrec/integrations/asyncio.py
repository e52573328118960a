"""asyncio under a flight recorder: failures that nobody awaits, and loops that stand still.

::

    from shmrec.integrations import asyncio as shmrec_asyncio

    async def main():
        shmrec_asyncio.install(heartbeat=1.0)

Runs in producers. An exception that comes out of a task or a callback, and that nobody has
retrieved, is given to its loop's exception handler; here that is recorded, with `unhandled` =
"task", and the collector has word of it, unless it is a connection that failed. With a heartbeat
the loop says at every beat that it still turns: where it stops, something blocks it, which the
collector's trigger ``stall 10s heartbeat=heartbeat`` notices from outside.

Invariants:

- The handler that was there is called, or else the loop's default one, whatever becomes of the
  recording.
- The heartbeat is a timer and no task: nobody waits for it, and it ends with its loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

from shmrec import recorder
from shmrec.exceptions import called
from shmrec.recorder import Recorder

__all__ = ["HEARTBEAT", "install"]

HEARTBEAT: Final = "heartbeat"
"""The instants' name."""

_Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], Any]


def install(
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    heartbeat: float | None = None,
    recorder: Recorder = recorder.default,
) -> None:
    """Record what a loop's exception handler is given; with `heartbeat`, a beat every so often.

    `loop` defaults to the running one; `heartbeat` is in seconds. To be called in the loop's
    thread, or before it runs. Again for the same loop, only the heartbeat changes, if it is
    given. Raises `RuntimeError` if there is no loop, `ValueError` if `heartbeat` is not above 0.
    """
    if heartbeat is not None and not heartbeat > 0:
        raise ValueError(f"heartbeat must be a number of seconds above 0, not {heartbeat!r}")
    watched = loop if loop is not None else asyncio.get_running_loop()
    known = _watches.get(watched)
    watch = known() if known is not None else None
    if watch is None:
        watch = _Watch(recorder, watched.get_exception_handler())
        watched.set_exception_handler(watch)
        _watches[watched] = ref(watch)
    if heartbeat is not None:
        watch.beat(watched, heartbeat)


class _Watch:
    """A loop's exception handler, before the one that was there; and its heartbeat."""

    def __init__(self, recorder: Recorder, before: _Handler | None) -> None:
        self._recorder = recorder
        self._before = before
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        try:
            # The recorder counts what it cannot record.
            with contextlib.suppress(Exception):
                self._record(context)
        finally:
            if self._before is None:
                loop.default_exception_handler(context)
            else:
                self._before(loop, context)

    def _record(self, context: dict[str, Any]) -> None:
        # The keys are those of `loop.call_exception_handler`.
        said = context.get("message")
        error = context.get("exception")
        task = context.get("task") or context.get("future")
        named = task.get_name() if isinstance(task, asyncio.Task) else None
        if not isinstance(error, BaseException):
            self._recorder.instant("asyncio", message=said, task=named)
            return
        self._recorder.exception(error, unhandled="task", said=said, task=named)
        if "transport" in context and isinstance(error, OSError):
            # The other side's doing, mostly.
            return
        where = f"task {named}" if named is not None else "the event loop"
        self._recorder.trigger("exception", f"unhandled {called(type(error))} in {where}")

    def beat(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Now and every so many seconds, and no longer as before."""
        if self._timer is not None:
            self._timer.cancel()
        self._recorder.instant(HEARTBEAT)
        self._timer = loop.call_later(seconds, self.beat, loop, seconds)


# A loop holds its watch, and a timer both: to hold either here would keep them for ever.
_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[_Watch]] = WeakKeyDictionary()
