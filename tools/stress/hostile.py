"""Hostile memory: one process of a recording scribbles on the segment while everybody reads it.

A real collector, bounded in memory, serves two producers that record a sequence which can be
checked, and a third one that lies. After each scribble the producers record more, a new one
joins, and every tool reads. Wherever what the honest ones wrote was spared, each of their events
must be found, but for those that were overwritten and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import shmrec
from shmrec import naming
from shmrec.errors import ShmrecError
from shmrec.segment import Segment, open_segment
from tools.stress.answers import Answer, ask, watched
from tools.stress.ended import end
from tools.stress.scribbling import RUINOUS, SPARING
from tools.stress.tally import Tally

HELP = "scribble on shared memory, and have everybody read it"

_SECONDS: Final = 20.0
"""An answer takes no longer, on a machine that has other things to do."""
_ADDRESSES: Final = 1 << 30
_PEAK: Final = 200 << 20
_COLLECTOR_PEAK: Final = 100 << 20
_SCRIBBLES: Final = 12
"""Of one recording, before one that ruins it."""
_LIAR: Final = 0
_LABELS: Final = ("liar", "honest 1", "honest 2")

_PRODUCER: Final = """
import sys, shmrec
name, label = sys.argv[1:]
shmrec.attach(name, label=label)
n = 0
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        shmrec.instant("step", n=n)
        n += 1
    print(n, flush=True)
"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument(
        "--kinds", nargs="+", choices=[*SPARING, *RUINOUS], help="scribble like this only"
    )


def run(given: argparse.Namespace, tally: Tally) -> None:
    random = Random(given.seed)
    until = time.monotonic() + given.seconds
    sparing = [kind for kind in SPARING if not given.kinds or kind in given.kinds]
    ruinous = [kind for kind in RUINOUS if not given.kinds or kind in given.kinds]
    with tempfile.TemporaryDirectory(prefix="shmrec-hostile-") as scratch:
        number = 0
        while time.monotonic() < until and len(tally.failures) < 20:
            number += 1
            name = f"stress-hostile-{os.getpid()}-{number}"
            with contextlib.ExitStack() as held:
                world = held.enter_context(World.begun(name, Path(scratch) / str(number), tally))
                tally.count("recordings")
                for _ in range(_SCRIBBLES if sparing else 0):
                    if time.monotonic() < until:
                        world.survive(random.choice(sparing), random)
                if ruinous:
                    world.ruined(random.choice(ruinous), random)


class World:
    """One recording: its collector, its producers, and what they have acknowledged."""

    def __init__(self, name: str, directory: Path, tally: Tally) -> None:
        self.name, self.directory, self.tally = name, directory, tally
        self.recorded: dict[int, int] = {}
        self._scribbles: list[str] = []
        self._known: set[str] = set()
        self._log = directory.with_suffix(".log")
        with open(self._log, "wb") as log:
            self.collector = subprocess.Popen(
                [
                    *(sys.executable, "-m", "shmrec.commands.collect", name),
                    *("--dir", str(directory), "--size", "128K", "--period", "1000"),
                    *("--producers", "8", "--deadline", "0.2"),
                    *("--trigger", "slow_span 1s", "--trigger", "stall s* 2s"),
                    *("--trigger", "counter * > 10"),
                ],
                stderr=log,
                preexec_fn=_bounded,
            )
        self._producers: list[subprocess.Popen[str]] = []

    @classmethod
    @contextlib.contextmanager
    def begun(cls, name: str, directory: Path, tally: Tally) -> Iterator[World]:
        world = cls(name, directory, tally)
        try:
            world._wait_for_collector()
            for label in _LABELS:
                world._start(label)
            with open_segment(name) as world.segment:
                yield world
        finally:
            world.close()

    segment: Segment

    def _wait_for_collector(self) -> None:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(ShmrecError), open_segment(self.name) as segment:
                if segment.collector():
                    return
            time.sleep(0.01)
        raise RuntimeError(f"no collector: {self._log.read_text()}")

    def _start(self, label: str) -> None:
        producer = subprocess.Popen(
            [sys.executable, "-c", _PRODUCER, self.name, label],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._producers.append(producer)
        assert producer.stdout is not None
        assert producer.stdout.readline() == "ready\n"
        self.recorded[producer.pid] = 0

    def close(self) -> None:
        end(self.collector)
        for producer in self._producers:
            end(producer)
        with contextlib.suppress(ShmrecError, OSError):
            naming.remove(self.name)
        with contextlib.suppress(OSError):
            os.unlink(f"/dev/shm/sem.shmrec.{self.name}")

    def _record(self, random: Random) -> None:
        """All producers record, and acknowledge it; one that the cut has ended does not."""
        for producer in self._producers:
            assert producer.stdin is not None
            assert producer.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                producer.stdin.write(f"{random.choice((1, 30, 400, 3000))}\n")
            said = producer.stdout.readline()
            if said:
                self.recorded[producer.pid] = int(said)

    def survive(self, kind: str, random: Random) -> None:
        """A scribble that spares what others wrote: all of it is found in a snapshot."""
        self._record(random)
        self._scribble(kind, random)
        with self._scribbled_on(kind, random):
            self._record(random)
            # Whether there is one now: the answer is in order, and comes.
            self._ask("snapshot", self.name, "--timeout", str(_SECONDS / 2))
            self._ask("recover", self.name, "--force", "--dir", self.directory)
            self._ask("ps", self.name)
            self.tally.count("answers while it scribbled", 3)
        self._record(random)
        # What a collector puts back takes it until its next look.
        taken = self._retried("snapshot", self.name)
        self._everybody_reads(random)
        if taken.status == 0:
            self._check(Path(taken.out.rstrip("\n")))
            self._read(Path(taken.out.rstrip("\n")), random)
        else:
            self._fail(f"no snapshot: {taken.err}")
        cold = self._ask("recover", self.name, "--force", "--dir", self.directory)
        if cold.status == 0:
            self._check(Path(cold.out.rstrip("\n")))
        else:
            self._fail(f"not recovered: {cold.err}")
        if self.collector.poll() is not None:
            self._fail(f"the collector ended with {self.collector.returncode}")
        self._look_at_collector()

    def ruined(self, kind: str, random: Random) -> None:
        """A scribble that spares nothing: everybody says so and ends in order, if at all."""
        self._record(random)
        self._scribble(kind, random)
        self._record(random)
        self._everybody_reads(random)
        for verb in (("snapshot", self.name), ("recover", self.name, "--force")):
            taken = self._ask(*verb, *(["--dir", self.directory] if verb[0] == "recover" else []))
            if taken.status == 0:
                self._read(Path(taken.out.rstrip("\n")), random)
        if kind == "cut-short":
            self._collector_ends()
        self._look_at_collector()
        if self.collector.poll() is None:
            self.collector.terminate()
            try:
                self.collector.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                self._fail("the collector does not end when it is told to")
        if self.collector.returncode not in (0, 1):
            self._fail(f"the collector ended with {self.collector.returncode}")
        for file in sorted(self.directory.glob("*.shmrec"))[-1:]:
            self._read(file, random)

    def _collector_ends(self) -> None:
        try:
            status = self.collector.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._fail("the collector did not notice that its memory was cut short")
            return
        last = self._log.read_text().splitlines()[-1:]
        if status != 1 or "cut short" not in "".join(last):
            self._fail(f"the collector ended with {status}: {last}")
        self.tally.count("collectors that ended in order")

    def _scribble(self, kind: str, random: Random) -> None:
        scribble = SPARING.get(kind) or RUINOUS[kind]
        self._scribbles.append(kind)
        scribble(self.segment, random, _LIAR)
        self.tally.count("scribbles")
        self.tally.count(f"of {kind}")

    @contextlib.contextmanager
    def _scribbled_on(self, kind: str, random: Random) -> Iterator[None]:
        """Meanwhile a process scribbles like that again and again."""
        scribbling, until = Random(random.getrandbits(64)), time.monotonic() + 5 * _SECONDS
        pid = os.fork()
        if not pid:
            try:
                while time.monotonic() < until:
                    SPARING[kind](self.segment, scribbling, _LIAR)
            finally:
                os._exit(1)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _everybody_reads(self, random: Random) -> None:
        live = ("ps", self.name)
        for args in random.sample([("list",), live, (*live, "--json"), ("doctor",)], 2):
            self._ask(*args, *(["--dir", self.directory] if args[0] in ("list", "doctor") else []))
        self._judge(
            watched(["attach"], self._attach, seconds=_SECONDS, memory=_ADDRESSES), "attaches"
        )

    def _attach(self) -> None:
        """In a child: join, record, leave; or one line that says why not."""
        try:
            shmrec.attach(self.name, required=True)
            shmrec.instant("passing by")
            shmrec.detach()
        except ShmrecError as error:
            print(f"attach: {error}", file=sys.stderr)
            sys.exit(1)

    def _read(self, file: Path, random: Random) -> None:
        events = ("events", "--tail", "500", "--facts")
        for verb, *more in random.sample([("info",), ("verify",), ("stacks",), events], 2):
            self._ask(verb, file, *more)

    def _retried(self, *args: object) -> Answer:
        answer = self._ask(*args)
        deadline = time.monotonic() + 3.0
        while answer.status and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = self._ask(*args)
        return answer

    def _ask(self, *args: object) -> Answer:
        answer = ask(*args, seconds=_SECONDS, memory=_ADDRESSES)
        self._judge(answer, "answers of tools")
        return answer

    def _judge(self, answer: Answer, what: str) -> None:
        self.tally.count(what)
        wrong = answer.wrong(_SECONDS, _PEAK)
        if wrong:
            self._fail(wrong)

    def _check(self, file: Path) -> None:
        """Every event that an honest producer acknowledged is there, or counted as overwritten."""
        snapshot = shmrec.read(file)
        self.tally.count("snapshots checked")
        found: dict[int, list[int]] = {}
        for event in snapshot:
            if event.name == "step" and event.producer != _LIAR:
                found.setdefault(event.pid, []).append(event.args["n"])
        for producer in self._producers[1:]:
            steps, known = found.get(producer.pid, []), self.recorded[producer.pid]
            if steps != list(range(known - len(steps), known)) or not steps:
                shown = f"{steps[:1]}..{steps[-1:]}, {len(steps)} of {known}"
                self._fail(f"{file.name}: an honest producer's events are {shown}")
                continue
            entries = [
                each
                for each in snapshot.producers
                if each.pid == producer.pid and each.index != _LIAR
            ]
            lost = sum(each.losses.get("overwritten", 0) + each.trimmed for each in entries)
            if lost + len(steps) != known:
                self._fail(f"{file.name}: {lost} lost and {len(steps)} there of {known}")
            self.tally.count("events checked", len(steps))

    def _look_at_collector(self) -> None:
        said = self._log.read_text(errors="replace")
        for line in said.splitlines():
            if ("Traceback" in line or "unexpected:" in line) and line not in self._known:
                self._known.add(line)
                self._fail(f"the collector said: {line}")
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{self.collector.pid}/status").read_text()
            line = next(each for each in status.splitlines() if each.startswith("VmHWM"))
            peak = int(line.split()[1]) << 10
            if peak > _COLLECTOR_PEAK:
                self._fail(f"the collector had {peak >> 20} MiB")
            known = self.tally.counts["MiB at most in a collector"]
            self.tally.counts["MiB at most in a collector"] = max(known, peak >> 20)

    def _fail(self, what: str) -> None:
        self.tally.fail(f"after {', '.join(self._scribbles[-4:])}: {what}")


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
