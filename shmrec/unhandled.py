"""Exceptions that nobody handles: seen on their way out, recorded, and left to go on.

Runs in producers, from their first attach on, for all recorders of the process::

    main thread    sys.excepthook         recorded; the process then ends without detaching,
                                          so that the collector takes it for what it is, a death
    a thread       threading.excepthook   recorded; word of it to the collector, since the
                                          process goes on
    multiprocessing's children            never come to a hook: as the main thread, seen where
                                          `BaseProcess._bootstrap` ends them

Invariants:

- Each hook calls what was there before it, whatever becomes of the recording, and once: a hook
  that is entered again for the same exception gives it to Python's own.
- Hooks are never taken out, for somebody may have chained to them: while nobody is attached
  they only call on.
- SystemExit and KeyboardInterrupt are ends in order.
"""

from __future__ import annotations

import atexit
import os
import sys
from _thread import get_ident
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Protocol

from shmrec.exceptions import called

__all__ = ["Witness", "at_exit", "install", "watch_child"]

_MARK: Final = "_shmrec_print_exc"
_IN_ORDER: Final = (SystemExit, KeyboardInterrupt)


class Witness(Protocol):
    """What a recorder does with an exception that nobody handles."""

    exceptions: bool
    """Whether it wants to know of them."""

    def exception(self, exc: BaseException, /, **args: Any) -> None: ...

    def trigger(self, kind: str, reason: str) -> bool: ...


_witnesses: Callable[[], Iterable[Witness]] | None = None
_under_way: set[tuple[int, int]] = set()
_ended_pid = 0
"""The process, if it is this one, that an exception is ending."""
_leave: Callable[[bool], None] | None = None
_leaving_pid = 0
"""The process, if it is this one, that leaves in order when it ends."""


def install(witnesses: Callable[[], Iterable[Witness]]) -> None:
    """Chain the hooks to those that are there, once per process; `watch_child` besides.

    `witnesses` gives the recorders that are attached at that time.
    """
    global _witnesses
    if _witnesses is None:
        # While there are descriptors left to load it with, and not in a forked child.
        import traceback  # noqa: F401

        _witnesses = witnesses
        _chain_main()
        _chain_threads()
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        # A child that was started afresh, or one that attaches for the first time.
        watch_child()


def at_exit(leave: Callable[[bool], None]) -> None:
    """Call `leave(failed)` when this process ends, also as multiprocessing's forked children do.

    `failed` says that an exception ends it, which is recorded by then. Calls may be several.
    However often a process asks for it, as one that joins and leaves all its life does, it is
    kept once.
    """
    global _leave, _leaving_pid
    _leave, known, _leaving_pid = leave, _leaving_pid, os.getpid()
    if known == _leaving_pid:
        return
    util: Any = sys.modules.get("multiprocessing.util")
    process: Any = sys.modules.get("multiprocessing.process")
    child = process is not None and process.parent_process() is not None
    if child and util is not None:
        # Such a child leaves by os._exit, after running only these.
        util.Finalize(None, _leaving, exitpriority=0)
    # Any other child has inherited it. From Python 3.13 on, this one has had all taken away.
    if child or not known:
        atexit.unregister(_leaving)
        atexit.register(_leaving)


def _leaving() -> None:
    # Up to Python 3.12 it is still in flight while exit functions run.
    _look_for_the_end()
    if _leave is not None:
        _leave(_ended_pid == os.getpid())


def watch_child() -> None:
    """See what ends this process, which may be a child of multiprocessing's; after every fork.

    `BaseProcess._bootstrap` prints such an exception with ``traceback.print_exc``. From Python
    3.13 on that is the only place where it can be had.
    """
    process: Any = sys.modules.get("multiprocessing.process")
    traceback: Any = sys.modules.get("traceback")
    if _witnesses is None or process is None or traceback is None:
        return
    before = traceback.print_exc
    if getattr(before, _MARK, False):
        return

    def print_exc(*args: Any, **kwargs: Any) -> None:
        _look_for_the_end()
        before(*args, **kwargs)

    setattr(print_exc, _MARK, True)
    traceback.print_exc = print_exc


def _look_for_the_end() -> None:
    """See whether an exception in flight is on its way out of a child of multiprocessing."""
    error = sys.exception()
    trace = error.__traceback__ if error is not None else None
    process: Any = sys.modules.get("multiprocessing.process")
    if error is None or trace is None or process is None or _ended_pid == os.getpid():
        return
    # A traceback begins where the exception is now. One that the parent was handling as it
    # forked is in flight here too, and is somewhere else.
    if trace.tb_frame.f_code is process.BaseProcess._bootstrap.__code__:
        _last(error)


def _last(error: BaseException) -> None:
    """An exception that ends this process: recorded, and remembered."""
    global _ended_pid
    if not isinstance(error, _IN_ORDER):
        _record(error, "main")
        _ended_pid = os.getpid()


def _record(error: BaseException, what: str, reason: str = "") -> None:
    for witness in _witnesses() if _witnesses is not None else ():
        if witness.exceptions:
            witness.exception(error, unhandled=what)
            if reason:
                witness.trigger("exception", reason)


def _chain_main() -> None:
    before = getattr(sys, "excepthook", None) or sys.__excepthook__

    def excepthook(
        kind: type[BaseException], value: BaseException, trace: TracebackType | None
    ) -> None:
        _once(_seen_in_main, value, before, (kind, value, trace), sys.__excepthook__)

    sys.excepthook = excepthook


def _seen_in_main(error: BaseException) -> None:
    import threading

    if isinstance(error, _IN_ORDER):
        return
    if get_ident() != threading.main_thread().ident:
        # Of a thread whose own hook has failed.
        _seen_in_thread(error)
    elif sys.flags.inspect or hasattr(sys, "ps1"):
        # The session goes on.
        _record(error, "main")
    else:
        _last(error)


def _chain_threads() -> None:
    import threading

    before: Callable[[Any], Any] | None = threading.excepthook

    def excepthook(args: Any) -> None:
        _once(
            lambda error: _seen_in_thread(error, args.thread),
            args.exc_value,
            before or threading.__excepthook__,
            (args,),
            threading.__excepthook__,
        )

    threading.excepthook = excepthook


def _seen_in_thread(error: BaseException, thread: Any = None) -> None:
    if not isinstance(error, SystemExit):
        name = getattr(thread, "name", "") or "without a name"
        _record(error, "thread", f"unhandled {called(type(error))} in thread {name}")


def _once(
    see: Callable[[BaseException], None],
    error: object,
    before: Callable[..., Any],
    args: tuple[Any, ...],
    own: Callable[..., Any],
) -> None:
    """`see(error)`, then what was there before, with `args`; Python's `own` if entered again."""
    key = get_ident(), id(error)
    if key in _under_way:
        # Somebody has chained to us what we have chained to.
        own(*args)
        return
    _under_way.add(key)
    try:
        try:
            if isinstance(error, BaseException):
                see(error)
        except Exception:
            # The recorder counts what it cannot record; the rest is not worth a traceback more.
            pass
        finally:
            before(*args)
    finally:
        _under_way.discard(key)
