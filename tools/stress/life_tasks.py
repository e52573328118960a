"""Tasks, greenlets and other programs, in the trial "life": what ends inside of a span.

Runs in the trial's programs. Whatever is cancelled, killed or timed out here leaves its spans as it
goes, so that afterwards none of them is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from typing import Any

import shmrec
from shmrec.integrations import asyncio as loops
from tools.stress.numbered import Account

_NAP = 0.002
_LONG = 30.0


class _Failed(Exception):
    """What fails as it is meant to."""


async def _nap(number: int, seconds: float = _LONG) -> None:
    with shmrec.span("outer", n=number), shmrec.span("inner"):
        await asyncio.sleep(seconds)


async def _stubborn() -> None:
    """One that is not done when it is cancelled."""
    with shmrec.span("stubborn"):
        try:
            await asyncio.sleep(_LONG)
        except asyncio.CancelledError:
            with shmrec.span("cleaning up"):
                await asyncio.sleep(_NAP)
            raise


async def _fail_soon() -> None:
    with shmrec.span("failing"):
        await asyncio.sleep(_NAP)
        raise _Failed


async def _round(account: Account, number: int) -> None:
    account.record()
    tasks = [asyncio.create_task(_nap(n)) for n in range(5)]
    tasks.append(asyncio.create_task(_stubborn()))
    # One that is cancelled before it has ever run.
    asyncio.create_task(_nap(number)).cancel()
    await asyncio.sleep(_NAP)
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_NAP):
            await _nap(number)
    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(_nap(number))
            group.create_task(_stubborn())
            group.create_task(_fail_soon())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(_nap(number, 3 * _NAP)), _NAP)
    await asyncio.sleep(4 * _NAP)


def tasks(account: Account, rounds: str) -> None:
    """Tasks that are cancelled, time out and fail in groups; loops that are closed on them."""

    async def work() -> None:
        loops.install(heartbeat=_NAP)
        for number in range(int(rounds)):
            await _round(account, number)

    asyncio.run(work())
    for number in range(int(rounds)):
        # What a loop leaves behind is cancelled as it ends.
        async def leave(number: int = number) -> None:
            loops.install(heartbeat=_NAP)
            account.record()
            left = asyncio.create_task(_nap(number))
            await asyncio.sleep(_NAP)
            assert not left.done()

        asyncio.run(leave())


def greenlets(account: Account, rounds: str) -> None:
    """Greenlets that are killed, time out and fail inside of spans."""
    # Not by name: type checkers know gevent's stubs, and the trial must do without gevent.
    gevent: Any = importlib.import_module("gevent")

    def nap() -> None:
        with shmrec.span("outer"), shmrec.span("inner"):
            gevent.sleep(_LONG)

    def fail() -> None:
        with contextlib.suppress(_Failed), shmrec.span("failing"):
            gevent.sleep(_NAP)
            raise _Failed

    for _ in range(int(rounds)):
        account.record()
        started = [gevent.spawn(nap) for _ in range(10)] + [gevent.spawn(fail) for _ in range(3)]
        gevent.sleep(_NAP)
        gevent.killall(started[:10])
        gevent.joinall(started)
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(_NAP), shmrec.span("timed out"):
            gevent.sleep(_LONG)
        pool = gevent.get_hub().threadpool
        pool.apply(lambda: account.record(1, 1))


_LISTING = """
import os, sys
print(sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
             if os.path.exists(f"/proc/self/fd/{n}")))
print(sum("/dev/shm/" in line for line in open("/proc/self/maps")))
"""


def execs(account: Account, rounds: str) -> None:
    """Children that become another program, with and without shmrec, and what that inherits."""
    for number in range(int(rounds)):
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(write_end, 1)
            account.record(5)
            shmrec.begin("left by exec")
            again = number % 2
            source = _JOINING if again else _LISTING
            os.execv(sys.executable, [sys.executable, "-c", source, os.environ["SHMREC_RECORDING"]])
        os.close(write_end)
        with open(read_end) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        places, _, mapped = said.strip().partition("\n")
        if status or "/dev/shm" in places or "/mem'" in places or mapped != "0":
            os.write(1, f"after exec: status {status}, {said!r}\n".encode())


_JOINING = (
    _LISTING
    + """
import shmrec
shmrec.attach(sys.argv[1], label="after exec", required=True)
shmrec.instant("joined again")
"""
)

_REFUSED = """
try:
    import shmrec
    shmrec.attach({name!r}, required=True)
except ImportError as error:
    assert type(error).__name__ == "InterpreterError", error
else:
    raise AssertionError("a sub-interpreter has attached")
"""


def interpreters(account: Account, rounds: str) -> None:
    """Sub-interpreters that come and go, and are refused, while this one records."""
    try:
        module: Any = importlib.import_module("_interpreters")
        create, run = module.create, module.exec
        kinds: tuple[Any, ...] = ("legacy", "isolated")
    except ImportError:
        module = importlib.import_module("_xxsubinterpreters")
        create, run = (lambda isolated: module.create(isolated=isolated)), module.run_string
        kinds = (False, True)
    source = _REFUSED.format(name=os.environ["SHMREC_RECORDING"])
    for number in range(int(rounds)):
        account.record()
        made = create(kinds[number % len(kinds)])
        failed = run(made, source)
        if failed is not None:
            os.write(1, f"in a sub-interpreter: {failed}\n".encode())
        module.destroy(made)
        account.record()
