"""The trial "soak": what lives long, for an hour or as long as is asked, and whether it grows.

Runs processes that live as long as the trial, of every kind of `soak_producers` and of both
engines, under a collector whose time is compressed, and samples what each of them holds. Beside
them one process does the same work and is recorded nowhere: what it grows by is Python's own.

What is flat `soak_samples` says. At the end no ring is left in anybody's hands, and no process,
zombie, object in ``/dev/shm`` or hidden file. With `--again` what an earlier soak has seen, kept by
`--plot`, is judged and drawn once more.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import shmrec
from shmrec import _engine
from shmrec.layout import CONTROL, ENTRY
from shmrec.segment import Segment, open_segment
from tools.stress import holdings, hurried_collector, leaks, soak_plot, soak_producers
from tools.stress.ended import end
from tools.stress.soak_samples import UNRECORDED, Samples, Series
from tools.stress.tally import Impossible, Tally

HELP = "what lives long does not grow: memory, descriptors, threads, rings, over an hour"

_SAMPLES = 720
_LEAST_PAUSE = 0.25
_CHECK_SECONDS = 2.0
_PATIENCE_SECONDS = 30.0
_COLLECTOR = "collector"


def options(parser: argparse.ArgumentParser) -> None:
    every = ", ".join(soak_producers.KINDS)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of life: {every}; all of them")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw memory over time there, as SVG or PNG, and write the samples beside it as JSON",
    )
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="judge these samples of an earlier soak instead"
    )


@dataclass
class Life:
    """A process that is there all the time."""

    name: str
    process: subprocess.Popen[str]


def run(given: argparse.Namespace, tally: Tally) -> None:
    unknown = set(given.kinds) - set(soak_producers.KINDS)
    if unknown:
        raise Impossible(f"there is no {', '.join(sorted(unknown))} among the kinds of life")
    if given.plot is not None:
        soak_plot.check()
    if given.again is not None:
        samples = Samples.of_json(json.loads(given.again.read_text()))
        tally.counts.update(samples.counts)
    else:
        samples = _live(given, tally)
        samples.counts = dict(tally.counts)
    samples.judge(tally)
    if given.plot is not None:
        generations = samples.counts.get("generations", 0)
        title = f"{samples.seconds / 60:g} minutes, {generations:,} generations"
        soak_plot.draw(given.plot, title, samples)
        given.plot.with_suffix(".json").write_text(json.dumps(samples.as_json()) + "\n")


def _live(given: argparse.Namespace, tally: Tally) -> Samples:
    if not Path("/proc/self/smaps_rollup").exists():
        raise Impossible("/proc does not tell what a process holds (smaps_rollup)")
    name = f"soak-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="shmrec-soak-") as folder:
        soak = Soak(name, Path(folder), given.minutes * 60, tally)
        try:
            soak.start(given.kinds or list(soak_producers.KINDS))
            soak.watch()
            soak.end()
        finally:
            soak.kill()
        return soak.samples


class Soak:
    """One soak: its processes, and what they were seen to hold."""

    def __init__(self, name: str, folder: Path, seconds: float, tally: Tally) -> None:
        self.name = name
        self.store = folder / "snapshots"
        self.log = folder / "log"
        self.seconds = seconds
        self.tally = tally
        self.lives: list[Life] = []
        self.samples = Samples(seconds)
        self._began = 0.0
        self._checked: set[Path] = set()

    def start(self, kinds: Sequence[str]) -> None:
        """Start the collector, and a process of each kind and engine."""
        self._launch(
            _COLLECTOR,
            [hurried_collector.__file__, self.name, str(self.store)],
            hurried_collector.READY,
        )
        engines = [name for name in _engine.NAMES if not _engine.refusal(name)]
        for kind, engine in itertools.product(kinds, engines):
            self._launch_producer(f"{kind}, {engine}", kind, self.name, engine)
        self._launch_producer(UNRECORDED, "threads", "", engines[0])

    def _launch_producer(self, called: str, kind: str, recording: str, engine: str) -> None:
        program = [soak_producers.__file__, kind, recording]
        self._launch(called, program, soak_producers.READY, SHMREC_ENGINE=engine)

    def _launch(self, called: str, program: list[str], word: str, **environment: str) -> None:
        with open(self.log, "ab") as log:
            started = subprocess.Popen(
                [sys.executable, *program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
            )
        self.lives.append(Life(called, started))
        self.samples.processes[called] = Series()
        assert started.stdout is not None
        said = started.stdout.readline()
        if not said.startswith(word):
            raise Impossible(f"{called} did not start: {self._last_words()}")

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace").strip()[-500:]

    # While it runs.

    def watch(self) -> None:
        """Sample and check until the time is over, or somebody has ended."""
        self._began = time.monotonic()
        pause = max(_LEAST_PAUSE, self.seconds / _SAMPLES)
        next_check = self._began
        for number in itertools.count():
            due = self._began + number * pause
            while (now := time.monotonic()) < due:
                if now >= next_check:
                    next_check = now + _CHECK_SECONDS
                    self._check_newest()
                time.sleep(min(max(0.0, due - time.monotonic()), _LEAST_PAUSE))
            if now - self._began > self.seconds or not self._sample():
                return

    def _sample(self) -> bool:
        now = time.monotonic() - self._began
        for life in self.lives:
            if life.process.poll() is not None:
                self.tally.fail(
                    f"{life.name} ended with {life.process.returncode} after {now:.0f} s: "
                    f"{self._last_words()}"
                )
                return False
            found = holdings.held(life.process.pid)
            if found is not None:
                series = self.samples.processes[life.name]
                series.times.append(now)
                series.seen.append(found)
        self.samples.times.append(now)
        self.samples.memory.append(holdings.memory_of(self.name))
        self.samples.objects.append(len(holdings.objects_of(self.name)))
        self.tally.count("samples")
        return True

    def _check_newest(self) -> None:
        """Read the newest snapshot; the quota may be faster."""
        found = sorted(self.store.glob("*.shmrec"), key=lambda path: path.name)
        fresh = [path for path in found if path not in self._checked]
        self._checked = set(found)
        if not fresh:
            return
        with contextlib.suppress(FileNotFoundError, shmrec.ShmrecError):
            # Both where it has been removed meanwhile: it was whole when it was named.
            self._check(shmrec.read(max(fresh, key=lambda path: path.stat().st_mtime_ns)))

    def _check(self, found: shmrec.Snapshot) -> None:
        for what in leaks.wrong_in(found):
            self.tally.fail(f"snapshot {found.path.name}: {what}")
        self.tally.count("snapshots read")

    # The end.

    def end(self) -> None:
        """Let the producers leave, see what is left of them, then stop the collector."""
        collector, *producers = self.lives
        for life in producers:
            zombies = holdings.zombies_of(life.process.pid)
            self._end(life)
            if len(zombies) > 1:
                self.tally.fail(f"{life.name} had zombies: {zombies}")
        try:
            with open_segment(self.name, writable=False) as segment:
                self._count(segment)
                self._see_rings(segment)
        except shmrec.ShmrecError as error:
            self.tally.fail(f"the recording cannot be read at its end: {error}")
        collector.process.send_signal(signal.SIGTERM)
        self._end(collector)
        for left in holdings.objects_of(self.name):
            self.tally.fail(f"left in /dev/shm: {left}")
        for hidden in self.store.glob(".*"):
            self.tally.fail(f"left among the snapshots: {hidden.name}")
        said = self.log.read_text(errors="replace").splitlines()
        for line in said:
            if "unexpected" in line or "Traceback" in line:
                self.tally.fail(f"said: {line}")

    def _end(self, life: Life) -> None:
        assert life.process.stdin is not None
        life.process.stdin.close()
        try:
            status = life.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.tally.fail(f"{life.name} does not end")
            return
        if status:
            self.tally.fail(f"{life.name} ended with {status}: {self._last_words()}")

    def _count(self, segment: Segment) -> None:
        words, geometry = segment.words, segment.geometry
        self.tally.count("generations", segment.word("generation"))
        self.tally.count("snapshots", segment.word("snapshots"))
        attached = sum(
            words[ENTRY.word("incarnation", geometry.entry(index))]
            for index in range(geometry.producers)
        )
        self.tally.count("producers", attached)
        for refused in ("refused_full", "refused_space"):
            if words[CONTROL.word(refused)]:
                self.tally.fail(f"{refused}: {words[CONTROL.word(refused)]}")

    def _see_rings(self, segment: Segment) -> None:
        """Wait until every ring can be claimed again; those that cannot are leaked."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (held := list(leaks.held_rings(segment))) and time.monotonic() < deadline:
            time.sleep(0.01)
        for what in held:
            self.tally.fail(f"a ring is leaked: {what}")

    def kill(self) -> None:
        """End what is left, however."""
        for life in self.lives:
            end(life.process)
        holdings.remove(self.name)
