"""How a process of the trial "life" ends by itself: one function for each way.

Runs in the trial's programs; where the function returns the main program ends. `ENDINGS` says what
is expected: the exit status as `subprocess` gives it, and how the ring is left. What is recorded
when the recording has been left is recorded nowhere, and so not acknowledged.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import shmrec
from tools.stress.numbered import NUMBERED, Account

_AFTER_SECONDS = 0.1
_kept: list[Any] = []
"""What lives until the interpreter takes the modules apart."""


def _unacknowledged(thread: int, over: Callable[[], bool] = bool) -> None:
    for number in itertools.count():
        shmrec.instant(NUMBERED, n=number, t=thread)
        if over():
            return


def _return(account: Account) -> None:
    account.record(5)


def _exit_inside(account: Account) -> None:
    with shmrec.span("left by exit"):
        account.record(5)
        sys.exit(4)


def _exit_at_once(account: Account) -> None:
    with shmrec.span("left at once"):
        account.record(5)
        os._exit(0)


def _exit_badly(account: Account) -> None:
    with shmrec.span("left badly"):
        account.record(5)
        os._exit(5)


def _fail(account: Account) -> None:
    with shmrec.span("left by an exception"):
        account.record(5)
        raise ValueError("as it is meant to")


def _abort(account: Account) -> None:
    with shmrec.span("left by abort"):
        account.record(5)
        os.abort()


def _interrupt(account: Account) -> None:
    # Who is started in the background may have inherited that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with shmrec.span("interrupted"):
        account.record(5)
        signal.raise_signal(signal.SIGINT)


def _exit_in_a_handler(account: Account) -> None:
    """A signal that ends it in the middle of recording flat out."""
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(6))
    signal.setitimer(signal.ITIMER_REAL, _AFTER_SECONDS)
    with shmrec.span("ended by a handler"):
        _unacknowledged(1)


def _daemons(account: Account) -> None:
    """Threads that record while the interpreter goes away."""
    for thread in range(1, 5):
        threading.Thread(target=_unacknowledged, args=(thread,), daemon=True).start()
    account.record(5)
    time.sleep(_AFTER_SECONDS)


def _daemons_in_spans(account: Account) -> None:
    def nest(depth: int) -> None:
        with shmrec.span("nested", depth=depth):
            if depth:
                nest(depth - 1)

    def work() -> None:
        while True:
            nest(20)

    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    account.record(5)
    time.sleep(_AFTER_SECONDS)


def _threads_after_main(account: Account) -> None:
    """Threads that are waited for record to their end."""

    def work(thread: int) -> None:
        deadline = time.monotonic() + _AFTER_SECONDS
        while time.monotonic() < deadline:
            account.record(1, thread)

    for thread in (1, 2):
        threading.Thread(target=work, args=(thread,)).start()


def _exit_in_a_thread(account: Account) -> None:
    def leave() -> None:
        with shmrec.span("left by a thread"):
            account.record(5, 1)
            sys.exit(7)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    account.record(5)


def _executor(account: Account) -> None:
    """A pool of threads that the interpreter winds up."""
    pool = concurrent.futures.ThreadPoolExecutor(2)
    for _ in range(20):
        pool.submit(_nap)
    _kept.append(pool)


def _nap() -> None:
    with shmrec.span("napping"):
        time.sleep(0.005)


def _exit_functions(account: Account) -> None:
    """Those that come before it leaves, and one that has it join once more."""
    atexit.register(shmrec.instant, "recorded in the end")
    atexit.register(account.record, 5)


def _join_in_the_end(account: Account) -> None:
    name = os.environ["SHMREC_RECORDING"]

    def once_more() -> None:
        shmrec.detach()
        shmrec.attach(name, label="once more", required=True)
        shmrec.instant("joined in the end")

    atexit.register(once_more)


def _fork_in_the_end(account: Account) -> None:
    def fork() -> None:
        try:
            child = os.fork()
        except RuntimeError:
            # From Python 3.12 on nobody may, so late.
            return
        if not child:
            account.record(5)
            os._exit(0)
        os.waitpid(child, 0)

    atexit.register(fork)


class _Speaking:
    """An object that records when it goes."""

    def __init__(self) -> None:
        self.instant = shmrec.instant
        self.span = shmrec.span
        self.itself = self

    def __del__(self) -> None:
        with self.span("going"):
            self.instant("gone")


def _objects(account: Account) -> None:
    """Objects, weak references and generators that record as modules are taken apart."""
    _kept.extend(_Speaking() for _ in range(10))
    weakref.finalize(_kept[0], shmrec.instant, "finalized")

    def generate() -> Iterator[int]:
        with shmrec.span("in a generator"):
            yield 1

    _kept.append(generate())
    next(_kept[-1])
    sys.modules["kept by nobody"] = _Speaking()  # type: ignore[assignment]


def _open_at_the_end(account: Account) -> None:
    """Spans that nobody ends, and one whose context stays open."""
    shmrec.begin("never ended")
    contextlib.ExitStack().enter_context(shmrec.span("never left"))
    account.record(5)


class Ending(NamedTuple):
    """What happens, and with which exit status."""

    happens: Callable[[Account], None]
    status: int = 0
    state: str = "detached"
    """Of its ring afterwards, as a snapshot has it."""

    @property
    def dies(self) -> bool:
        """Whether it counts as a death."""
        return self.state == "dead"


ENDINGS = {
    "return": Ending(_return),
    "exit-inside": Ending(_exit_inside, 4),
    "exit-at-once": Ending(_exit_at_once, 0, "exited"),
    "exit-badly": Ending(_exit_badly, 5, "dead"),
    "fail": Ending(_fail, 1, "dead"),
    "abort": Ending(_abort, -signal.SIGABRT, "dead"),
    "interrupt": Ending(_interrupt, -signal.SIGINT),
    "exit-in-a-handler": Ending(_exit_in_a_handler, 6),
    "daemons": Ending(_daemons),
    "daemons-in-spans": Ending(_daemons_in_spans),
    "threads-after-main": Ending(_threads_after_main),
    "exit-in-a-thread": Ending(_exit_in_a_thread),
    "executor": Ending(_executor),
    "exit-functions": Ending(_exit_functions),
    "join-in-the-end": Ending(_join_in_the_end),
    "fork-in-the-end": Ending(_fork_in_the_end),
    "objects": Ending(_objects),
    "open-at-the-end": Ending(_open_at_the_end),
}
