"""The processes of the trial "life": how they come, live and end.

Run as programs, as the trial's children: a life, the recording's name, the file for what is
acknowledged, and more. Each says "ready" once it has joined, waits for a line, lives, says "done",
and ends when its standard input does. Meanwhile it says which children of its have died, and what
is to be counted.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

PATCHED = "patched"
"""An argument: gevent puts itself in everybody's place, before shmrec is imported."""
if PATCHED in sys.argv:
    importlib.import_module("gevent.monkey").patch_all()

import shmrec  # noqa: E402
from tools.stress.numbered import Account  # noqa: E402

READY = "ready"
DONE = "done"
DIED = "died"
UNJOINED = "unjoined"
COUNT = "count"
_EVENTS = 20
_AT_ONCE = 12
_ABANDONED_SECONDS = 0.05


def say(*words: object) -> None:
    """A line to the trial; written at once, for a child must not write its parent's again."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def heard() -> bool:
    """Wait for the trial's line; False at its end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return False
        line += byte
    return True


def die(number: int) -> None:
    """End by a signal, at once."""
    os.kill(os.getpid(), number)
    while True:
        signal.pause()


# Forks.


def storm(account: Account, children: str) -> None:
    """Hundreds of children that record, and end in every way there is."""
    alive: dict[int, Callable[[Account], None]] = {}
    for number in range(int(children)):
        account.record(2)
        way = _WAYS[number % len(_WAYS)]
        pid = os.fork()
        if not pid:
            # What it has to say of its end is no news.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            account.record(_EVENTS)
            if not shmrec.recorder.default.attached:
                # Others held the lock for longer than a recording call waits.
                say(UNJOINED, os.getpid())
            way(account)
            raise SystemExit(0)
        alive[pid] = way
        if len(alive) >= _AT_ONCE:
            _reap(alive)
    while alive:
        _reap(alive)
    say(COUNT, children, "forks")


def _reap(alive: dict[int, Callable[[Account], None]]) -> None:
    pid, status = os.wait()
    way = alive.pop(pid)
    code = os.waitstatus_to_exitcode(status)
    expected = _ENDS.get(way, 0)
    if code != expected:
        say("child", pid, "ended with", code, "instead of", expected, "in", way.__name__)
    if code:
        say(DIED, pid)


def _leave(account: Account) -> None:
    shmrec.detach()
    os._exit(0)


def _leave_at_once(account: Account) -> None:
    os._exit(0)


def _end_in_order(account: Account) -> None:
    raise SystemExit(0)


def _end_badly(account: Account) -> None:
    with shmrec.span("ends badly"):
        os._exit(3)


def _fail(account: Account) -> None:
    raise ValueError("as it is meant to")


def _be_killed(account: Account) -> None:
    with shmrec.span("is killed"):
        die(signal.SIGKILL)


def _be_ended(account: Account) -> None:
    with shmrec.span("is ended"):
        die(signal.SIGTERM)


def _fork_on(account: Account) -> None:
    for _ in range(2):
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status))
        account.record(_EVENTS)


def _fork_twice(account: Account) -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    # Its parent has gone, most likely.
    time.sleep(_ABANDONED_SECONDS)
    account.record(_EVENTS)


def _become_another(account: Account) -> None:
    os.execv("/bin/true", ["true"])


def _fork_while_forking(account: Account) -> None:
    """One that forks from a thread while another one records."""
    over = threading.Event()

    def record() -> None:
        while not over.is_set():
            account.record(1, thread=1)

    recording = threading.Thread(target=record)
    recording.start()
    child = os.fork()
    if not child:
        account.record(_EVENTS, thread=2)
        os._exit(0)
    os.waitpid(child, 0)
    over.set()
    recording.join()


_WAYS = (
    _leave,
    _be_killed,
    _end_in_order,
    _leave_at_once,
    _end_badly,
    _fork_on,
    _fail,
    _fork_twice,
    _be_ended,
    _become_another,
    _fork_while_forking,
)
_ENDS: dict[Callable[[Account], None], int] = {
    _be_killed: -signal.SIGKILL,
    _be_ended: -signal.SIGTERM,
    _end_badly: 3,
    _fail: 1,
}


def spawns(account: Account, times: str) -> None:
    """Programs started with vfork, posix_spawn and subprocess, while threads record."""
    over = threading.Event()

    def record(thread: int) -> None:
        while not over.wait(0.001):
            account.record(1, thread=thread)

    threads = [threading.Thread(target=record, args=(n,)) for n in (1, 2)]
    for each in threads:
        each.start()
    for number in range(int(times)):
        account.record()
        if number % 3 == 0:
            pid = os.posix_spawn("/bin/true", ["true"], os.environ)
            os.waitpid(pid, 0)
        elif number % 3 == 1:
            subprocess.run(["/bin/true"], check=True)
        else:
            # A function to be called in the child: fork, and not vfork.
            subprocess.run(["/bin/true"], check=True, preexec_fn=lambda: account.record(1, 3))
    over.set()
    for each in threads:
        each.join()
    say(COUNT, times, "programs started")


# Pools.


def pools(account: Account, method: str, tasks: str) -> None:
    """Pools of multiprocessing and of concurrent.futures, whose workers come and go."""
    context = multiprocessing.get_context(method)
    arguments = (os.environ["SHMREC_RECORDING"], account_path())
    with context.Pool(3, _join, arguments, maxtasksperchild=4) as pool:
        assert pool.map(_work, range(int(tasks)), chunksize=1) == list(range(int(tasks)))
        pool.close()
        pool.join()
    with context.Pool(2, _join, arguments) as pool:
        pool.map_async(_work, range(10_000), chunksize=1)
        time.sleep(0.2)
        # Workers die in the middle of a task.
        pool.terminate()
        pool.join()
    with concurrent.futures.ProcessPoolExecutor(2, context, _join, arguments) as executor:
        assert list(executor.map(_work, range(int(tasks)))) == list(range(int(tasks)))
    with (
        concurrent.futures.ProcessPoolExecutor(2, context, _join, arguments) as executor,
        contextlib.suppress(concurrent.futures.process.BrokenProcessPool),
    ):
        executor.submit(_kill_worker).result()
    say(COUNT, 2 * int(tasks), "pooled tasks")


_account: Account | None = None


def account_path() -> str:
    """Where the trial wants what is acknowledged."""
    return sys.argv[3]


def _join(name: str, path: str) -> None:
    """A worker's beginning; one that was forked has joined."""
    global _account
    shmrec.attach(name, label="pooled", required=True)
    _account = Account(path, shmrec.instant)


def _work(number: int) -> int:
    assert _account is not None
    with shmrec.span("task", n=number):
        _account.record(3)
    return number


def _kill_worker() -> None:
    with shmrec.span("is killed"):
        die(signal.SIGKILL)


# Threads.


def thread_ends(account: Account, times: str) -> None:
    """Threads that end inside of spans: by an exception, by SystemExit, or by just returning."""
    threading.excepthook = lambda args: None

    def end(number: int) -> None:
        account.record(3, thread=number)
        shmrec.begin("left open", n=number)
        with shmrec.span("left"):
            if number % 3 == 0:
                raise ValueError("as it is meant to")
            if number % 3 == 1:
                raise SystemExit(1)

    for first in range(0, int(times), 8):
        threads = [threading.Thread(target=end, args=(first + n,)) for n in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    say(COUNT, times, "threads")


def ending(account: Account, way: str) -> None:
    """The end of the main program, in one of `life_endings`."""
    from tools.stress.life_endings import ENDINGS

    ENDINGS[way].happens(account)


def _of_tasks(name: str) -> Callable[..., None]:
    def live(account: Account, *more: str) -> None:
        module = importlib.import_module("tools.stress.life_tasks")
        getattr(module, name)(account, more[0])

    return live


LIVES: dict[str, Callable[..., Any]] = {
    "storm": storm,
    "spawns": spawns,
    "pools": pools,
    "threads": thread_ends,
    "ending": ending,
    "tasks": _of_tasks("tasks"),
    "greenlets": _of_tasks("greenlets"),
    "execs": _of_tasks("execs"),
    "interpreters": _of_tasks("interpreters"),
}


def main() -> None:
    life, name, path, *more = sys.argv[1:]
    os.environ["SHMREC_RECORDING"] = name
    shmrec.attach(name, label=life, required=True)
    account = Account(path, shmrec.instant)
    account.record()
    say(READY)
    if not heard():
        return
    LIVES[life](account, *more)
    if life != "ending":
        account.record()
        say(DONE)
        heard()


if __name__ == "__main__":
    main()
