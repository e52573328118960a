"""What one case of the trial "life" plays on: a recording, programs in it, and what is left.

Runs in the trial's process. A case starts programs, has them live and end, and looks: afterwards
the stage sees that nothing acknowledged was lost, and that nothing is left in anybody's hands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import shmrec
from shmrec import process, requests
from shmrec.errors import ShmrecError, SnapshotActiveError
from shmrec.layout import ENTRY, NAME_PREFIX, Verb
from shmrec.segment import open_segment
from shmrec.wakeup import open_wakeup
from tools.stress import holdings, hurried_collector, leaks, life_programs, numbered, validator
from tools.stress.ended import end
from tools.stress.holdings import Holdings
from tools.stress.tally import Impossible, Tally

PATIENCE_SECONDS = 60.0
_PAUSE = 0.01
_SIZE = 64 * 1024
_QUOTA = 5000
_ALL_PERIOD = 1e6
_DEATHS_A_DAY = 100_000
_ASKING_PAUSE = 0.2
_THE_SAME = ("descriptors", "threads", "semaphores")


class Program:
    """A process of a case, spoken to by lines."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )
        self.pid = self.process.pid

    def line(self) -> str:
        """The next line that it says; "" if it ended instead."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def end(self) -> int:
        """Let it end; its exit status."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def close(self) -> None:
        """However it is by now."""
        end(self.process)


class Stage:
    """The recording of one case, and its programs; use as a context manager."""

    def __init__(self, case: str, folder: Path, tally: Tally, *, producers: int = 64) -> None:
        self.case = case
        self.name = f"life-{os.getpid()}-{case}"
        self.folder = folder
        self.store = folder / "snapshots"
        self.log = folder / "log"
        self.accounts = folder / "accounts"
        self.tally = tally
        self.dead: set[int] = set()
        """Processes that died, as the case knows: a snapshot must say so."""
        self.unjoined: set[int] = set()
        """Those that could not join in time, of which nobody knows."""
        self._producers = producers
        self._programs: list[Program] = []
        self._asking: threading.Thread | None = None
        self._over = threading.Event()

    def fail(self, what: str) -> None:
        """Count a failure of this case."""
        self.tally.fail(f"{self.case}: {what}")

    def __enter__(self) -> Stage:
        options = [f"--size={_SIZE}", f"--producers={self._producers}", f"--quota={_QUOTA}"]
        options += [f"--period={_ALL_PERIOD}", f"--deaths={_DEATHS_A_DAY}"]
        command = [sys.executable, hurried_collector.__file__, self.name, str(self.store)]
        self.collector = Program([*command, *options], self.log)
        if not self.collector.line().startswith(hurried_collector.READY):
            raise Impossible(f"no collector could be started: {self.words()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asking()
        for each in (*self._programs, self.collector):
            each.close()
        holdings.remove(self.name)

    def words(self) -> str:
        """The last that programs and collector said on stderr."""
        return self.log.read_text(errors="replace").strip()[-500:]

    # Programs.

    def start(self, life: str, *args: str, engine: str = "", **environment: str) -> Program:
        """Start a program of `life_programs`, in the recording; it has said that it is ready."""
        command = [sys.executable, life_programs.__file__, life, self.name, str(self.accounts)]
        if engine:
            environment["SHMREC_ENGINE"] = engine
        started = Program([*command, *args], self.log, **environment)
        self._programs.append(started)
        said = started.line()
        if said != life_programs.READY:
            self.fail(f"{life} said {said!r} instead of being ready: {self.words()}")
        return started

    def play(
        self, life: str, *args: str, engine: str = "", status: int = 0, helped: bool = False
    ) -> None:
        """A program's whole life, which must leave it as it was before and end in that way.

        One that is `helped`, by processes and threads of its library that stay, may have them,
        but no more of what is shmrec's.
        """
        program = self.start(life, *args, engine=engine)
        before, ours = holdings.held(program.pid), holdings.ours_of(program.pid)
        program.say()
        self.listen(program)
        if not helped:
            self.same(life, program, before)
        if holdings.ours_of(program.pid) != ours:
            self.fail(f"{life} has open {holdings.ours_of(program.pid)}, and had {ours}")
        ended = program.end()
        if ended != status:
            self.fail(f"{life} {engine} ended with {ended}, not {status}: {self.words()}")

    def listen(self, program: Program) -> None:
        """Hear what a program says until it is done: of children that died, of failures."""
        while (said := program.line()) != life_programs.DONE:
            word, _, rest = said.partition(" ")
            if word == life_programs.DIED:
                self.dead.add(int(rest))
            elif word == life_programs.UNJOINED:
                self.unjoined.add(int(rest))
            elif word == life_programs.COUNT:
                times, _, what = rest.partition(" ")
                self.tally.count(what, int(times))
            else:
                self.fail(f"said {said!r}")
                if not said:
                    return

    def same(self, called: str, program: Program, before: Holdings | None) -> None:
        """Whether it comes to hold what it held before, memory apart."""
        if before is None:
            self.fail(f"{called} was gone before it began")
            return

        def differs() -> str:
            after = holdings.held(program.pid)
            if after is None:
                return "it is gone"
            pairs = [(what, getattr(before, what), getattr(after, what)) for what in _THE_SAME]
            more = [f"{after} {what}, and had {before}" for what, before, after in pairs]
            wrong = [text for text, pair in zip(more, pairs, strict=True) if pair[1] != pair[2]]
            wrong += [f"zombies {found}" for found in [holdings.zombies_of(program.pid)] if found]
            return ", ".join(wrong)

        # A thread that has been joined may have a moment left to the kernel.
        self.wait(lambda: not differs(), lambda: f"{called} has {differs()}")

    # Snapshots.

    def snapshot(self) -> shmrec.Snapshot:
        """One that is taken now."""
        with open_segment(self.name) as segment:
            wakeup = open_wakeup(segment)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    return shmrec.read(
                        requests.ask(segment, wakeup, Verb.SNAPSHOT, timeout=PATIENCE_SECONDS)
                    )
                except SnapshotActiveError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_PAUSE)

    def keep_asking(self) -> None:
        """Have snapshots taken all the time, until the case is over."""

        def ask() -> None:
            while not self._over.wait(_ASKING_PAUSE):
                try:
                    self.snapshot()
                except ShmrecError as error:
                    self.fail(f"no snapshot: {error}")
                    return

        self._asking = threading.Thread(target=ask)
        self._asking.start()

    def _stop_asking(self) -> None:
        self._over.set()
        if self._asking is not None:
            self._asking.join()

    # Afterwards.

    def check(self) -> None:
        """See that nobody is left, nothing is lost and nothing leaks, then end the recording."""
        self._stop_asking()
        self.wait(lambda: not self._users(), lambda: f"still use its memory: {self._users()}")
        with contextlib.suppress(ShmrecError), open_segment(self.name, writable=False) as segment:
            self.wait(
                lambda: not list(leaks.held_rings(segment)),
                lambda: f"leaked rings: {list(leaks.held_rings(segment))}",
            )
            if segment.word("refused_space"):
                self.fail(f"{segment.word('refused_space')} found no memory for a ring")
            # Where many die at once, every ring may be evidence until it is on disk.
            if segment.word("refused_full"):
                self.tally.count("times that no ring was free", segment.word("refused_full"))
            busy = segment.word("refused_busy")
            self.tally.count("processes that found the lock held to their end", busy)
            geometry = segment.geometry
            self.tally.count(
                "producers",
                sum(
                    segment.words[ENTRY.word("incarnation", geometry.entry(index))]
                    for index in range(geometry.producers)
                ),
            )
        self.snapshot()
        self._check_collector()
        zombies = holdings.zombies_of(os.getpid())
        if set(zombies) - {each.pid for each in self._programs}:
            self.fail(f"zombies: {zombies}")
        self._check_snapshots()
        self._stop_collector()

    def wait(self, condition: Callable[[], object], otherwise: Callable[[], str]) -> bool:
        """Wait until it holds; whether it did, else `otherwise` is a failure."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                self.fail(otherwise())
                return False
            time.sleep(_PAUSE)
        return True

    def _users(self) -> list[int]:
        path = str(holdings.SHARED / f"{NAME_PREFIX}{self.name}")
        return [pid for pid in process.users_of(path) if pid != self.collector.pid]

    def _check_collector(self) -> None:
        left = holdings.descriptors_of(self.collector.pid)
        pidfds = [place for place in left if "pidfd" in place]
        if pidfds:
            self.fail(f"the collector still watches {len(pidfds)} processes")

    def _check_snapshots(self) -> None:
        """Hold all that was written against all that was acknowledged."""
        acknowledged = numbered.acknowledged(self.accounts)
        told, ended = set(), set()
        for path in sorted(self.store.glob("*.shmrec")):
            found = shmrec.read(path)
            for what in (*leaks.wrong_in(found), *validator.check(path).wrong):
                self.fail(f"snapshot {path.name}: {what}")
            gone = {p.pid: p for p in found.producers if p.state in ("dead", "exited", "detached")}
            newest: dict[tuple[int, int], int] = {}
            for event in found:
                if event.name == numbered.NUMBERED:
                    newest[event.pid, event.args["t"]] = event.args["n"]
            for (pid, thread), number in acknowledged.items():
                if pid not in gone or (pid, thread) in ended:
                    continue
                found_last = newest.get((pid, thread))
                overwritten = gone[pid].losses.get("overwritten") and found_last is None
                if not overwritten and (found_last is None or found_last < number):
                    self.fail(
                        f"snapshot {path.name}: pid {pid}, {gone[pid].state}, thread {thread}: "
                        f"{found_last} is the newest, {number} was acknowledged"
                    )
                ended.add((pid, thread))
            told |= {pid for pid, producer in gone.items() if producer.state == "dead"}
            self.tally.count("snapshots")
        for pid in self.dead - told - self.unjoined:
            self.fail(f"no snapshot tells of the death of pid {pid}")
        if self.unjoined:
            self.tally.count("forks that could not join in time", len(self.unjoined))
        self.tally.count("deaths told", len(self.dead & told))
        self.tally.count("acknowledged events", sum(n + 1 for n in acknowledged.values()))

    def _stop_collector(self) -> None:
        self.collector.process.send_signal(signal.SIGTERM)
        status = self.collector.end()
        if status:
            self.fail(f"the collector ended with {status}: {self.words()}")
        for left in holdings.objects_of(self.name):
            self.fail(f"left in /dev/shm: {left}")
        for hidden in self.store.glob(".*"):
            self.fail(f"left among the snapshots: {hidden.name}")
        said = self.log.read_text(errors="replace").splitlines()
        for line in said:
            if line.startswith(f"shmrec[{self.collector.pid}]") and "unexpected" in line:
                self.fail(f"the collector said: {line}")
