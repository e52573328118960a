"""The trial "soak": what lives long, for an hour or as long as is asked, and whether it grows.

Runs processes that live as long as the trial, of every kind of `soak_producers` and of both
engines, under a collector whose time is compressed, and samples what each of them holds. Beside
them one process does the same work and is recorded nowhere: what it grows by is Python's own.

Flat means: over the last three quarters of the trial no process's private memory, and not its
resident memory, grows by `ALLOWED_KIB` or more, at the upper bound of a slope's confidence of
95 % (`trend`); nor do descriptors, threads and mapped semaphores by one, nor mappings by a few.
At the end no ring is left in anybody's hands, and no process, zombie, object in ``/dev/shm`` or
hidden file.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import shmrec
from shmrec import _engine
from shmrec.layout import CONTROL, ENTRY
from shmrec.segment import Segment, open_segment
from tools.stress import holdings, hurried_collector, leaks, soak_plot, soak_producers
from tools.stress.holdings import Holdings
from tools.stress.tally import Impossible, Tally
from tools.stress.trend import Trend, trend

HELP = "what lives long does not grow: memory, descriptors, threads, rings, over an hour"

ALLOWED_KIB = 256
"""Of growth in the judged part: 32 pages an engine would need to lose one for every 50 s."""
_WARMING_KIB = 2048
"""The same where the trial is too short for what is filled once to be full."""
_WARM_MINUTES = 30.0
_JUDGED = 0.75
"""The part of the trial that is judged, its last."""
_SAMPLES = 720
_LEAST_PAUSE = 0.25
_CHECK_SECONDS = 2.0
_PATIENCE_SECONDS = 30.0
_UNRECORDED = "threads, recorded nowhere"
_COLLECTOR = "collector"
_COUNTED = {"descriptors": 1, "threads": 1, "semaphores": 1, "mappings": 4}
"""With how many more of them would be a leak. Memory comes in mappings: what grows by one
anew for each thing that is done would have thousands."""
_MEMORY = ("private", "resident")


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


@dataclass
class Life:
    """A process that is there all the time, and what it was seen to hold."""

    name: str
    process: subprocess.Popen[str]
    times: list[float] = field(default_factory=list)
    seen: list[Holdings] = field(default_factory=list)


@dataclass
class Shared:
    """What the recording itself takes, over time."""

    times: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)


def run(given: argparse.Namespace, tally: Tally) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        raise Impossible("/proc does not tell what a process holds (smaps_rollup)")
    if given.plot is not None:
        soak_plot.check()
    unknown = set(given.kinds) - set(soak_producers.KINDS)
    if unknown:
        raise Impossible(f"there is no {', '.join(sorted(unknown))} among the kinds of life")
    name = f"soak-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="shmrec-soak-") as folder:
        soak = Soak(name, Path(folder), given.minutes * 60, tally)
        try:
            soak.start(given.kinds or list(soak_producers.KINDS))
            soak.watch()
            soak.end()
        finally:
            soak.kill()
        soak.judge()
    if given.plot is not None:
        title = f"{given.minutes:g} minutes, {tally.counts['generations']:,} generations"
        soak_plot.draw(given.plot, title, soak.lives, soak.shared)
        given.plot.with_suffix(".json").write_text(json.dumps(soak.as_json()) + "\n")


class Soak:
    """One soak: its processes, what they were seen to hold, and the verdict on that."""

    def __init__(self, name: str, folder: Path, seconds: float, tally: Tally) -> None:
        self.name = name
        self.store = folder / "snapshots"
        self.log = folder / "log"
        self.seconds = seconds
        self.tally = tally
        self.lives: list[Life] = []
        self.shared = Shared()
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
        self._launch_producer(_UNRECORDED, "threads", "", engines[0])

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
                life.times.append(now)
                life.seen.append(found)
        self.shared.times.append(now)
        self.shared.memory.append(holdings.memory_of(self.name))
        self.shared.objects.append(len(holdings.objects_of(self.name)))
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
            if life.process.poll() is None:
                life.process.kill()
            life.process.wait()
            for pipe in (life.process.stdin, life.process.stdout):
                assert pipe is not None
                pipe.close()

    # The verdict.

    def judge(self) -> None:
        """Fail for everything that has grown, and print what grew by how much at most."""
        warm = self.seconds >= _WARM_MINUTES * 60
        allowed = ALLOWED_KIB if warm else _WARMING_KIB
        most = 0.0
        for life in self.lives:
            # Pages of rings are resident in the collector from the first time that it reads them.
            for what in (*(_MEMORY if warm else _MEMORY[:1]), *_COUNTED):
                values = [getattr(each, what) for each in life.seen]
                limit = _COUNTED.get(what, allowed)
                growth = self._judge(life.name, what, life.times, values, limit)
                if what == "private" and life.name != _UNRECORDED and growth is not None:
                    most = max(most, growth.high)
        self._judge("recording", "memory", self.shared.times, self.shared.memory, allowed)
        self._judge("recording", "objects", self.shared.times, self.shared.objects, 1)
        self.tally.count("KiB an hour at most (95 %) of private memory by any process", round(most))

    def _judge(
        self, called: str, what: str, times: list[float], values: list[int], limit: float
    ) -> Trend | None:
        """The trend by the hour; a failure if the growth may be as much as `limit`."""
        first = round(len(values) * (1 - _JUDGED))
        times, values = times[first:], values[first:]
        try:
            # Of what comes and goes, the least is what is held.
            found = trend(times, values, min if what in _COUNTED else statistics.median)
        except ValueError as error:
            self.tally.fail(f"{called}: {what}: {error}")
            return None
        growth = found.high * (times[-1] - times[0])
        by_hour = Trend(*(bound * 3600 for bound in found))
        if growth >= limit and called != _UNRECORDED:
            self.tally.fail(
                f"{called}: {what} grows by {by_hour.slope:.1f} an hour "
                f"({by_hour.low:.1f} to {by_hour.high:.1f}), from {values[0]} to {values[-1]}"
            )
        print(
            f"  {called:28} {what:12} {values[0]:>9,} {values[-1]:>9,}  "
            f"{by_hour.slope:+9.1f} an hour ({by_hour.low:+.1f} to {by_hour.high:+.1f})",
            file=sys.stderr,
        )
        return by_hour

    def as_json(self) -> dict[str, object]:
        """All samples."""
        return {
            "seconds": self.seconds,
            "fields": Holdings._fields,
            "processes": {
                life.name: [
                    [round(at, 2), *seen] for at, seen in zip(life.times, life.seen, strict=True)
                ]
                for life in self.lives
            },
            "recording": [
                [round(at, 2), memory, objects]
                for at, memory, objects in zip(
                    self.shared.times, self.shared.memory, self.shared.objects, strict=True
                )
            ],
        }
