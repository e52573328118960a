"""Starting a collector that is nobody's child, and waiting until it serves.

Runs in the process that starts a recording: a `FlightRecorder`, or gunicorn's master, which
reaps every child with ``waitpid(-1)`` and must not have this one among them. The collector
forks once more and lets its parent go; this end waits for that parent, and for one line on
a pipe that says "ready" or what went wrong.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Final

from shmrec import process
from shmrec.errors import CollectorError, CollectorRunningError

__all__ = ["start_collector", "stop_collector"]

START_SECONDS: Final = 20.0
READY: Final = "ready"
RUNNING: Final = "running"
_FOR_GROUPS: Final = (signal.SIGUSR1, signal.SIGUSR2)


def start_collector(
    name: str,
    *,
    directory: str | os.PathLike[str] | None = None,
    size: int,
    period: float,
    producers: int,
    path: str | None = None,
    linger: float | None = None,
    triggers: Iterable[str] = (),
    stacks: str = "suspects",
) -> int:
    """Start a detached collector for recording `name`; its pid once it serves.

    `triggers` are texts as `triggers.parse` takes them, `stacks` one of `triggers.STACKS`.
    Raises `CollectorRunningError` if there is one already, else `CollectorError` with what
    the collector said.
    """
    try:
        import subprocess
    except (OSError, ImportError, MemoryError) as error:
        raise _cannot_start(error) from error
    command = [sys.executable, "-P", "-m", "shmrec.commands.collect", name, "--detach"]
    command += ["--size", str(size), "--period", repr(period), "--producers", str(producers)]
    if directory is not None:
        command += ["--dir", os.fspath(directory)]
    if path is not None:
        command += ["--path", path]
    if linger is not None:
        command += ["--linger", repr(linger)]
    command += ["--stacks", stacks]
    for text in triggers:
        command += ["--trigger", text]
    try:
        read_end, write_end = os.pipe()
    except OSError as error:
        raise _cannot_start(error) from error
    try:
        with _blocked():
            starter = subprocess.Popen(
                [*command, "--ready-fd", str(write_end)],
                pass_fds=[write_end],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
    except (OSError, MemoryError) as error:
        os.close(read_end)
        raise _cannot_start(error) from error
    finally:
        os.close(write_end)
    try:
        said = _first_line(read_end, time.monotonic() + START_SECONDS)
    finally:
        os.close(read_end)
        # A host that reaps every child may have been faster.
        with contextlib.suppress(OSError):
            starter.wait()
    word, _, rest = said.partition(" ")
    if word == READY:
        return int(rest)
    if word == RUNNING:
        raise CollectorRunningError(rest)
    raise CollectorError(rest or f"the collector of {name!r} ended without a word")


def _cannot_start(error: Exception) -> CollectorError:
    why = getattr(error, "strerror", None) or str(error) or "out of memory"
    return CollectorError(f"cannot start a collector: {why}")


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Block in this thread, and so in what it starts, what may come for a whole process group.

    The collector leaves the group, and unblocks them when it knows what to do with them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> dict[str, str]:
    """The collector must find this very shmrec, wherever the host found it."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{known}" if known else package}


def _first_line(fd: int, deadline: float) -> str:
    said = b""
    while not said.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise CollectorError(f"the collector did not start within {START_SECONDS:g} s")
        chunk = os.read(fd, 4096)
        if not chunk:
            break
        said += chunk
    return said.decode("utf-8", "replace").strip()


def stop_collector(pid: int, started: int, *, timeout: float = 10.0) -> None:
    """Stop the collector that `start_collector` gave, and wait until it has gone.

    Its pid and start time must be known from there, not from shared memory, where somebody
    may have written those of a process that is none of ours. Raises `CollectorError` if it
    does not go; does nothing if it has gone already.
    """
    if not process.alive(pid, started):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    pause = 0.001
    while process.alive(pid, started):
        if time.monotonic() > deadline:
            raise CollectorError(f"collector pid {pid} did not stop within {timeout:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
