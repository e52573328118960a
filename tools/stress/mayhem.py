"""What befalls a recording in the random trial: its processes, and everything done to them.

Runs in the trial's main thread. Producers and collectors are started by it, and orphans become its
children; it knows each by pid and start time, and signals nobody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shmrec import naming, process
from shmrec.errors import ShmrecError
from shmrec.layout import ENTRY, EntryState
from shmrec.segment import Segment, open_segment
from tools.stress.books import Key, Shelf
from tools.stress.tally import Tally

__all__ = ["DEADLINE_SECONDS", "Mayhem", "owners"]

DEADLINE_SECONDS: Final = 0.3
RINGS: Final = 8
_PRODUCERS: Final = 5
_CROWD: Final = 14
_SIZES: Final = (0, 65_536, 65_536, 131_072, 262_144)
_PERIODS: Final = (1000.0, 1000.0, 0.5)
_START_SECONDS: Final = 30.0
_FAILED_ON_PURPOSE: Final = 3
_SET_CHILD_SUBREAPER: Final = 36
_CHECKOUT: Final = Path(__file__).resolve().parents[2]


def owners(segment: Segment) -> dict[Key, int]:
    """Who has a ring, by the segment's entries as they are now."""
    words, found = segment.words, {}
    for index in range(segment.geometry.producers):
        at = segment.geometry.entry(index)
        state, pid, started = (
            words[ENTRY.word(name, at)] for name in ("state", "pid", "start_ticks")
        )
        if state in (EntryState.LIVE, EntryState.DETACHED):
            found[Key(pid, started)] = index
    return found


@dataclass
class Mayhem:
    """The processes of one trial, in `scratch`; `engines` are those to choose from."""

    name: str
    scratch: Path
    engines: list[str]
    chance: random.Random
    tally: Tally
    shelf: Shelf
    segments: dict[str, Segment] = field(default_factory=dict)
    """All that there have been, by run id."""
    run: str = ""
    collector: Key | None = None
    _expected: set[int] = field(default_factory=set)
    """Collectors that were told to end."""
    _continue: list[tuple[float, Key]] = field(default_factory=list)
    _children: set[int] = field(default_factory=set)
    _next_collector: float = 0.0
    _log: int = -1

    def __post_init__(self) -> None:
        # Children whose parents are killed come to us: nothing is left behind.
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.snapshots.mkdir()
        self.books.mkdir()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._log = os.open(self.log, flags, 0o600)

    @property
    def snapshots(self) -> Path:
        return self.scratch / "snapshots"

    @property
    def books(self) -> Path:
        return self.scratch / "books"

    @property
    def log(self) -> Path:
        return self.scratch / "log"

    @property
    def segment(self) -> Segment:
        """That of the collector that was started last."""
        return self.segments[self.run]

    def _spawn(self, module: str, *arguments: str, **environment: str) -> int:
        command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        pid = os.posix_spawn(
            sys.executable,
            command,
            {**os.environ, "PYTHONPATH": str(_CHECKOUT), **environment},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self._log, 2),
                (os.POSIX_SPAWN_DUP2, self._log, 1),
            ],
        )
        self._children.add(pid)
        return pid

    # The collector.

    def start_collector(self) -> None:
        """Start one, and wait until it serves: a new recording, or one that it adopts."""
        pid = self._spawn(
            "shmrec.commands.collect", self.name,
            "--dir", str(self.snapshots), "--size", str(self.chance.choice(_SIZES)),
            "--producers", str(RINGS), "--period", str(self.chance.choice(_PERIODS)),
            "--deadline", str(DEADLINE_SECONDS), "--flushes", str(self.chance.choice((1, 2, 2))),
            "--quota-count", "1000000", "--stacks", "none",
            "--trigger", "death interval=0.3s daily=100000",
        )  # fmt: skip
        self.collector = Key(pid, process.start_ticks(pid))
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.reap()
            if self.collector is None or time.monotonic() > deadline:
                raise RuntimeError(f"the collector did not start: see {self.log}")
            with contextlib.suppress(ShmrecError):
                segment = open_segment(self.name)
                if segment.collector() == pid:
                    self.run = segment.field("run_id").hex()
                    self.segments[self.run] = segment
                    return
                segment.close()
            time.sleep(0.01)

    def end_collector(self, number: int) -> None:
        """Signal the collector, and wait until it has gone."""
        assert self.collector is not None
        self._expected.add(self.collector.pid)
        os.kill(self.collector.pid, signal.SIGCONT)
        os.kill(self.collector.pid, number)
        while self.collector is not None:
            self.reap()
            self.let_go_on()
            time.sleep(0.005)
        self._next_collector = time.monotonic() + self.chance.random() / 2

    # Everything.

    def turn(self) -> None:
        """Do something to somebody, perhaps."""
        self.reap()
        self.let_go_on()
        self.shelf.sample(self.run, owners(self.segment))
        living = self.shelf.living()
        if self.collector is None and time.monotonic() > self._next_collector:
            self.start_collector()
            self.tally.count("collectors started")
        starting = len(self._children) - bool(self.collector)
        if starting < _PRODUCERS and len(living) < _CROWD:
            self._start_producer()
        chance = self.chance.random()
        if living and chance < 0.15:
            self._kill(self.chance.choice(living))
        elif living and chance < 0.35:
            self._stop(self.chance.choice(living))
        elif self.collector is None:
            pass
        elif chance < 0.36:
            self.tally.count("collector kills")
            self.end_collector(signal.SIGKILL)
        elif chance < 0.363:
            self.tally.count("recordings stopped")
            self.end_collector(signal.SIGTERM)
        elif chance < 0.373:
            self.tally.count("collector stops")
            self._pause(self.collector, self.chance.random())

    def _start_producer(self) -> None:
        seed = str(self.chance.randrange(1 << 30))
        engine = self.chance.choice(self.engines)
        self._spawn(
            "tools.stress.producing", self.name, str(self.books), seed, SHMREC_ENGINE=engine
        )
        self.tally.count("producers started")

    def _kill(self, key: Key) -> None:
        if process.alive(*key):
            os.kill(key.pid, signal.SIGKILL)
            self.tally.count("kills")

    def _stop(self, key: Key) -> None:
        """Stop a process, perhaps across the deadline of a flush."""
        self._pause(key, self.chance.choice((0.01, 0.1, DEADLINE_SECONDS, 4 * DEADLINE_SECONDS)))
        self.tally.count("stops")

    def _pause(self, key: Key, seconds: float) -> None:
        if process.alive(*key):
            os.kill(key.pid, signal.SIGSTOP)
            self._continue.append((time.monotonic() + seconds, key))

    def let_go_on(self, everybody: bool = False) -> None:
        """Have those go on whose time has come."""
        now = time.monotonic()
        due = [each for each in self._continue if everybody or each[0] <= now]
        self._continue = [each for each in self._continue if each not in due]
        for _, key in due:
            if process.alive(*key):
                os.kill(key.pid, signal.SIGCONT)

    def reap(self) -> None:
        """Bury our children, and say so of any that ended as none should."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._children.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                usual = code in (0, _FAILED_ON_PURPOSE, -signal.SIGKILL)
                if self.collector is not None and pid == self.collector.pid:
                    usual, self.collector = pid in self._expected, None
                    self._expected.discard(pid)
                if not usual:
                    self.tally.fail(f"process {pid} ended with {code}: see {self.log}")

    # The end.

    def end_producers(self) -> None:
        """Kill whoever records, and wait until all are gone."""
        self.let_go_on(everybody=True)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.reap()
            self.shelf.look()
            left = {Key(pid, process.start_ticks(pid)) for pid in self._children}
            left |= set(self.shelf.living())
            left.discard(self.collector or Key(0, 0))
            if not left:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {sorted(left)} do not end")
            for key in left:
                if process.alive(*key):
                    os.kill(key.pid, signal.SIGKILL)
            time.sleep(0.02)

    def close(self) -> None:
        """End everything, however things stand."""
        self.end_producers()
        if self.collector is not None:
            self.end_collector(signal.SIGKILL)
        naming.remove(self.name)
        for segment in self.segments.values():
            segment.close()
        os.close(self._log)
