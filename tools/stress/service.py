"""A recording served by a real collector, and programs that record in it, to be starved.

Runs in the process of a trial. The collector's log and every word that a program says on stderr
are kept: what a person would read there is what trials judge.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import posix_ipc

import shmrec
from shmrec import naming, process, requests
from shmrec.errors import ShmrecError
from shmrec.layout import Stacks, Verb
from shmrec.segment import Segment, open_segment
from shmrec.wakeup import open_wakeup
from tools.stress.ended import end

__all__ = ["Program", "Service", "lines_of", "recording_name", "until"]

WAIT_SECONDS: Final = 60.0
_numbers = itertools.count(1)

PROGRAM: Final = """
import json, os, resource, sys, time, warnings
import shmrec
warned = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *_: warned.append(str(message))

def work(seconds, block=1000):
    "Record flat out; what it took: events, processor time, and how often it had to wait."
    instant = shmrec.instant
    events, until = 0, time.monotonic() + seconds
    waits, cpu = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw, time.thread_time_ns()
    while time.monotonic() < until:
        for n in range(block):
            instant("request", n=n, path="/x")
        events += block
    cpu = time.thread_time_ns() - cpu
    waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - waits
    return {"events": events, "cpu_ns": cpu, "waits": waits}

print(json.dumps({"value": "ready", "error": "", "warned": []}), flush=True)
for line in sys.stdin:
    value, error = None, ""
    try:
        value = eval(json.loads(line))
    except shmrec.ShmrecError as raised:
        error = str(raised)
    except BaseException as raised:
        error = f"unexpected: {type(raised).__name__}: {raised}"
    print(json.dumps({"value": value, "error": error, "warned": warned}), flush=True)
    warned.clear()
"""


def recording_name() -> str:
    """A name that nobody else uses."""
    return f"starved-{os.getpid()}-{next(_numbers)}"


def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> bool:
    """Wait until the condition holds; whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def lines_of(path: Path) -> list[str]:
    """The lines that were written there."""
    return path.read_text("utf-8", "replace").splitlines()


class Said(dict[str, Any]):
    """A program's answer: `value`, `error` if the expression raised, what it `warned` of."""


class Program:
    """A program that records, spoken to by expressions; what it writes to stderr is kept."""

    def __init__(
        self,
        log: Path,
        *,
        enter: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                preexec_fn=enter,
                env={**os.environ, **(environment or {})},
            )
        self.last = Said(value=None, error="", warned=[])
        self._hear()

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, expression: str) -> None:
        """Have it begin to compute; `hear` has the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(expression) + "\n")
            self.process.stdin.flush()

    def _hear(self) -> Said:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            return Said(value=None, error=f"ended with {code}", warned=[])
        self.last = Said(json.loads(line))
        return self.last

    def hear(self) -> Said:
        """Its next answer; `error` says so if it ended instead."""
        return self._hear()

    def do(self, expression: str) -> Said:
        """`send` and `hear`."""
        self.send(expression)
        return self._hear()

    def attach(self, name: str, label: str = "worker") -> Said:
        """Have it join, as an application that does not insist; value: whether it did."""
        return self.do(f"shmrec.attach({name!r}, label={label!r}).attached")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def leave(self) -> int:
        """Let it end in order; its exit status."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        """End it, whatever it is at."""
        end(self.process)


class Service:
    """A recording with its collector. Use as a context manager; nothing is left of it."""

    def __init__(
        self,
        place: Path,
        *options: str,
        snapshots: Path | None = None,
        enter: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
        size: int = 64 * 1024,
    ) -> None:
        self.name = recording_name()
        self.place = place
        self.snapshots = snapshots or place / "snapshots"
        self.log = place / "collector.log"
        self._programs: list[Program] = []
        self._environment = environment
        command = [sys.executable, "-m", "shmrec.commands.collect", self.name]
        command += ["--dir", str(self.snapshots), "--size", str(size), *options]
        with open(self.log, "ab") as log:
            self.collector = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=enter,
                env={**os.environ, **(environment or {})},
            )

    def serves(self) -> bool:
        """Wait until it serves; False if it ended instead."""
        until(lambda: self._there() or self.collector.poll() is not None)
        return self.collector.poll() is None

    def _there(self) -> bool:
        try:
            with open_segment(self.name, writable=False) as segment:
                # It sets this at its first tick, not before it serves.
                return segment.word("generation") > 1
        except ShmrecError:
            return False

    def program(self, **options: Any) -> Program:
        """A program that records, ended with this."""
        log = self.place / f"program-{len(self._programs)}.log"
        options.setdefault("environment", self._environment)
        self._programs.append(Program(log, **options))
        return self._programs[-1]

    @contextlib.contextmanager
    def opened(self) -> Iterator[Segment]:
        """The segment, as this process sees it."""
        with open_segment(self.name) as segment:
            yield segment

    def word(self, name: str) -> int:
        """A word of the control block."""
        with open_segment(self.name, writable=False) as segment:
            return segment.word(name)

    def said(self, part: str = "") -> list[str]:
        """The lines of the collector's log that hold `part`."""
        return [line for line in lines_of(self.log) if part in line]

    def ask(self, reason: str = "asked", timeout: float = WAIT_SECONDS) -> Path:
        """A snapshot, asked for; raises `ShmrecError`."""
        with open_segment(self.name) as segment:
            wish = Stacks.NONE, 0
            wakeup = open_wakeup(segment)
            path = requests.ask(
                segment, wakeup, Verb.SNAPSHOT, reason=reason, argument=wish, timeout=timeout
            )
        return Path(path)

    def noticed(self) -> bool:
        """Wait until the collector has looked at everybody once."""
        with open_segment(self.name) as segment:
            requests.tell(segment, open_wakeup(segment), Verb.ENDED)
            return until(lambda: not requests.pending(segment))

    def files(self, part: str = "") -> list[Path]:
        """The snapshots of which the name holds `part`."""
        return sorted(path for path in self.snapshots.glob("*.shmrec") if part in path.name)

    def wrong(self) -> list[str]:
        """What is wrong with the directory: snapshots that are not whole, litter."""
        found = [
            f"{path.name}: {damage}"
            for path in self.files()
            for damage in shmrec.read(path).verify()
        ]
        hidden = self.snapshots.glob(".shmrec-*") if self.snapshots.is_dir() else ()
        return found + [f"litter: {path.name}" for path in hidden]

    def stop(self) -> int:
        """Let the collector end in order; its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.collector.send_signal(signal.SIGCONT)
            self.collector.terminate()
        return self.collector.wait(WAIT_SECONDS)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.close()
        end(self.collector)
        with contextlib.suppress(posix_ipc.Error, OSError):
            posix_ipc.unlink_semaphore(f"/shmrec.{self.name}")
        naming.remove(self.name)


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return process.alive(pid, 0)
