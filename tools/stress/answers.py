"""Asking ``shmrec-dump`` for something, in a process of its own that is watched.

The child is a fork, so that an answer costs no start of Python; its time and memory are bounded,
and it ends with its answer.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from shmrec.commands.dump import main


@dataclass
class Answer:
    """How a tool ended: what it printed, how long it took, how much memory it had at most."""

    args: list[str]
    status: int
    out: str
    err: str
    seconds: float
    peak: int

    def wrong(self, seconds: float, peak: int) -> str:
        """What is not as it must be, whatever was read; "" if nothing is."""
        said = " ".join(self.args)
        if self.seconds > seconds:
            return f"`{said}` took {self.seconds:.1f} s"
        if self.status < 0:
            return f"`{said}` was ended by {signal.Signals(-self.status).name}"
        if self.status not in (0, 1) or "Traceback" in self.err:
            return f"`{said}` ended with {self.status}: {self.err[-2000:]}"
        if self.status and len(self.err.splitlines()) != 1 and self.args[0] != "verify":
            return f"`{said}` failed with {len(self.err.splitlines())} lines: {self.err[-2000:]}"
        if self.peak > peak:
            return f"`{said}` had {self.peak >> 20} MiB"
        return ""


def ask(*args: object, seconds: float, memory: int) -> Answer:
    """Run ``shmrec-dump`` with these arguments."""

    def work() -> None:
        sys.argv = ["shmrec-dump", *map(str, args)]
        main()

    return watched([str(arg) for arg in args], work, seconds=seconds, memory=memory)


def watched(named: list[str], work: Callable[[], None], *, seconds: float, memory: int) -> Answer:
    """Run `work` in a child with `memory` bytes of address space, killed after twice `seconds`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            _be_child(work, out.fileno(), err.fileno(), memory)
        pidfd = os.pidfd_open(pid)
        if not select.select([pidfd], [], [], 2 * seconds)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
        os.close(pidfd)
        took = time.monotonic() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    code = os.waitstatus_to_exitcode(status)
    return Answer(named, code, texts[0], texts[1], took, used.ru_maxrss * 1024)


def _be_child(work: Callable[[], None], out: int, err: int, memory: int) -> None:
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
        work()
        status = 0
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)
