"""The long-living processes of a soak, one kind of life each, and those that they start.

Run as programs, as a soak's children, with a kind and the recording's name: "" records nowhere.
Each says "ready", works in small portions, and ends in order when its standard input does. What
they number they number without a hole for each thread, so that whoever reads a snapshot can see
whether something is missing. None of them keeps anything of what it has done: whatever grows is
shmrec's, or Python's own.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import random
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

import shmrec  # noqa: E402
from shmrec import hidden, requests  # noqa: E402
from shmrec.errors import ShmrecError, SnapshotActiveError  # noqa: E402
from shmrec.integrations import asyncio as loops  # noqa: E402
from shmrec.integrations import logging as logs  # noqa: E402
from shmrec.layout import Verb  # noqa: E402
from shmrec.segment import Segment, open_segment  # noqa: E402
from shmrec.wakeup import open_wakeup  # noqa: E402
from tools.stress.numbered import NUMBERED  # noqa: E402

READY = "ready"
_PAUSE = 0.02
_PORTION = 25
_STEADY = 3
_CHILD_EVENTS = 40
_LEFT_OPEN = 50


class Failed(Exception):
    """What fails here, as it is meant to."""


def portions(pause: float = _PAUSE) -> Iterator[int]:
    """Numbers, one for each portion of work, until the standard input ends."""
    for number in itertools.count():
        if select.select([sys.stdin], [], [], pause)[0]:
            return
        yield number


def number_some(counter: Iterator[int], thread: int) -> None:
    """A portion of events: numbered instants, a span inside of another, a counter."""
    for _ in range(_PORTION):
        shmrec.instant(NUMBERED, n=next(counter), t=thread)
    with shmrec.span("outer", path="/x"), shmrec.span("inner"):
        shmrec.counter("depth", random.randrange(100))


def thread_life(name: str) -> None:
    """Threads that stay, and threads that end inside of a span, which another ends much later."""
    over = threading.Event()
    left_open: collections.deque[int] = collections.deque()

    def stay(thread: int) -> None:
        counter = itertools.count()
        while not over.wait(_PAUSE):
            number_some(counter, thread)

    def come_and_go(number: int) -> None:
        left_open.append(shmrec.begin("left open", thread=number))
        if number % 7 == 0:
            with shmrec.span("slow thread"):
                time.sleep(0.3)

    with attached(name, "threads"):
        steady = [threading.Thread(target=stay, args=(thread,)) for thread in range(1, _STEADY)]
        for thread in steady:
            thread.start()
        counter = itertools.count()
        for number in portions():
            number_some(counter, 0)
            if number % 5 == 0:
                passing = threading.Thread(target=come_and_go, args=(number // 5,))
                passing.start()
                if number % 15:
                    passing.join()
                while len(left_open) > _LEFT_OPEN:
                    shmrec.end(left_open.popleft())
            if number % 50 == 0:
                with contextlib.suppress(Failed), shmrec.span("failing"):
                    raise Failed("as it is meant to")
        over.set()
        for thread in steady:
            thread.join()


@contextlib.contextmanager
def attached(name: str, label: str) -> Iterator[None]:
    """In the recording, if one is named; told to whoever waits."""
    if name:
        warnings.simplefilter("error")
        shmrec.attach(name, label=label, required=True)
    print(READY, flush=True)
    yield
    if name:
        shmrec.detach()


def loop_life(name: str) -> None:
    """A loop whose tasks come and go, are cancelled and fail, and whose failures are logged."""
    log = logging.getLogger("soak")
    log.addHandler(logs.Handler(level="INFO", snapshot="ERROR"))
    log.propagate = False
    log.setLevel(logging.INFO)
    logging.getLogger("asyncio").disabled = True

    @shmrec.traced
    async def task(number: int) -> None:
        with shmrec.span("step", n=number):
            await asyncio.sleep(_PAUSE)
        if number % 3 == 0:
            raise Failed("a task, as it is meant to")

    async def work() -> None:
        loops.install(heartbeat=0.1)
        counter = itertools.count()
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(sys.stdin, ended.set)
        for number in itertools.count():
            if ended.is_set():
                break
            number_some(counter, 0)
            tasks = [asyncio.create_task(task(n)) for n in range(4)]
            await asyncio.sleep(_PAUSE / 2)
            tasks[1].cancel()
            await asyncio.sleep(_PAUSE)
            for each in tasks[:3]:
                with contextlib.suppress(Failed, asyncio.CancelledError):
                    await each
            log.info("portion %d", number)
            if number % 100 == 99:
                log.error("portion %d has failed", number)
            with contextlib.suppress(TimeoutError, Failed):
                async with asyncio.timeout(_PAUSE / 4):
                    await task(1)
        loop.remove_reader(sys.stdin)

    with attached(name, "loop"):
        asyncio.run(work())
        # A task that failed unseen is told of when it is collected.
        gc.collect()


def fork_life(name: str) -> None:
    """A parent of children that record, and end in every way there is; it tells how."""
    with attached(name, "forks"), open_segment(name) as segment:
        wakeup = open_wakeup(segment)
        counter = itertools.count()
        for number in portions(0.25):
            number_some(counter, 0)
            child = os.fork()
            if not child:
                _child(number)
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(ShmrecError):
                requests.tell(segment, wakeup, Verb.ENDED, argument=(child, status))


def _child(number: int) -> None:
    """What a forked child does; it does not return."""
    counter = itertools.count()
    with shmrec.span("child", n=number):
        for _ in range(_CHILD_EVENTS):
            shmrec.instant(NUMBERED, n=next(counter), t=0)
        if number % 4 == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number % 8 == 2:
            os._exit(3)
    if number % 8 == 6:
        grandchild = os.fork()
        if not grandchild:
            shmrec.instant("grandchild")
            os._exit(0)
        os.waitpid(grandchild, 0)
    if number % 2:
        shmrec.detach()
    os._exit(0)


def coming_life(name: str) -> None:
    """A process that joins and leaves all the time."""
    with attached(name, "comings"):
        for number in portions(0.05):
            shmrec.detach()
            shmrec.instant("recorded nowhere")
            shmrec.attach(name, label=f"comings {number % 3}", required=True)
            if number % 2:
                # It is in the middle of it when it leaves.
                shmrec.begin("left open")
            number_some(itertools.count(), 0)
            if number % 10 == 0:
                shmrec.attach(name, label="once more", required=True)


def pool_life(name: str) -> None:
    """A pool whose workers are replaced after a few tasks each."""
    with (
        attached(name, "pool"),
        multiprocessing.get_context("fork").Pool(2, maxtasksperchild=5) as pool,
    ):
        for number in portions(0.1):
            assert pool.apply(_pooled, (number,)) == number


def _pooled(number: int) -> int:
    with shmrec.span("pooled", n=number):
        shmrec.instant("in the pool")
    return number


def asking_life(name: str) -> None:
    """A process that asks for snapshots all the time, in every way there is."""
    with attached(name, "asking"), open_segment(name) as segment:
        wakeup = open_wakeup(segment)
        counter = itertools.count()
        for number in portions(0.5):
            number_some(counter, 0)
            # Where others have taken every place there is for a request, it does without.
            with contextlib.suppress(SnapshotActiveError):
                ask(number, segment, wakeup)
            if number % 20 == 0:
                os.kill(segment.word("collector_pid"), signal.SIGUSR1)
            if number % 16 == 3:
                with shmrec.span("slow, as it is meant to be"):
                    time.sleep(0.3)
            if number % 16 == 11:
                with shmrec.span("stuck, as it is meant to be"):
                    time.sleep(0.6)


def ask(number: int, segment: Segment, wakeup: Any) -> None:
    """One request, of one kind after the other."""
    if number % 4 == 0:
        path = requests.ask(segment, wakeup, Verb.TRANSFER, reason="transfer", timeout=30)
        hidden.take_transfer(Path(path)).close()
    elif number % 4 == 1:
        with contextlib.suppress(Failed):
            try:
                raise Failed("in a block that asks for a snapshot")
            finally:
                shmrec.snapshot("failed, as it is meant to")
    else:
        requests.ask(segment, wakeup, Verb.SNAPSHOT, reason="asked for", timeout=30)


KINDS: dict[str, Callable[[str], None]] = {
    "threads": thread_life,
    "loop": loop_life,
    "forks": fork_life,
    "comings": coming_life,
    "pool": pool_life,
    "asking": asking_life,
}


if __name__ == "__main__":
    KINDS[sys.argv[1]](sys.argv[2])
