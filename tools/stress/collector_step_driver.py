"""Plays schedules of steps of the collector: it is killed at a step, and started again.

    python -m tools.stress.collector_step_driver [--sample N] [--share I N]

A program of an instrumented build (`stepping`), whose folder it is run in. Prints one line of
JSON for each schedule. `collector_steps` is the trial that runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tools.stress.stepping import Build, load_stops

STOPS: Final = load_stops()

from shmrec import requests, store  # noqa: E402
from shmrec.errors import ShmrecError  # noqa: E402
from shmrec.hidden import HIDDEN_PREFIX  # noqa: E402
from shmrec.layout import ENTRY, Verb  # noqa: E402
from shmrec.snapshot_file import Snapshot, read  # noqa: E402
from shmrec.wakeup import open_wakeup  # noqa: E402
from tools.stress import validator  # noqa: E402
from tools.stress.agreement import disagreements  # noqa: E402
from tools.stress.sequence import check  # noqa: E402
from tools.stress.step_stage import Actor, Broken, Stage, until  # noqa: E402
from tools.stress.stepped_producer import Part  # noqa: E402

EVENTS: Final = ("death", "request", "transfer", "quota", "start", "stop")
"""What the collector is at when it is killed: telling a death, a snapshot that was asked for, one
that is handed over, making room for one, adopting the recording, ending it with a death untold."""
_RINGS: Final = 4
_OLD: Final = 3


class Schedule(NamedTuple):
    """`unnamed`: files that are being written have no name, as where the file system can do that.

    `fresh`: the directory is not there yet.
    """

    event: str
    unnamed: bool
    fresh: bool = False
    stop: int = -2
    occurrence: int = 1


class Play:
    """A schedule being played; `wrong` is what was found."""

    def __init__(self, schedule: Schedule, name: str, scratch: Path) -> None:
        self.schedule = schedule
        self.wrong: list[str] = []
        self.snapshots = 0
        self.killed = False
        self.noted: list[int] = []
        self.kept = tempfile.TemporaryDirectory(dir=scratch)
        self.stage = Stage(name, live=False, rings=_RINGS, scratch=scratch)
        if schedule.fresh:
            self.stage.directory.rmdir()
        self._noted, self._note = os.pipe()

    # The collector that is killed.

    def arm(self) -> None:
        """In its process: be killed at the stop, or note all of them."""
        if self.schedule.stop == -2:
            STOPS.watch()
        else:
            STOPS.arm(self.schedule.stop, self.schedule.occurrence, int(signal.SIGKILL))

    def note(self) -> None:
        """In its process, at its end."""
        os.write(self._note, json.dumps(sorted(set(STOPS.noted()))).encode())

    def name_files(self) -> None:
        if not self.schedule.unnamed:
            # As where the file system has no unnamed files.
            with contextlib.suppress(AttributeError):
                del os.O_TMPFILE

    def start(self, *, armed: bool) -> None:
        """A collector; it adopts what is there. `armed`: the one that is killed."""
        early = self.schedule.event == "start"

        def first() -> None:
            self.name_files()
            if armed and early:
                self.arm()

        self.stage.start_collector(
            _RINGS,
            first=first,
            serving=self.arm if armed and not early else lambda: None,
            last=self.note if armed and self.schedule.stop == -2 else lambda: None,
            quota_count=_OLD if self.schedule.event == "quota" else store.DEFAULT_COUNT,
        )

    def ended(self) -> bool:
        """Whether the collector has, and then it was killed or ended in order."""
        pid, status = os.waitpid(self.stage.collector, os.WNOHANG)
        if pid:
            self.stage.collector = 0
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            self.killed = self.killed or killed
            if not killed and status:
                self.wrong.append(f"the collector ended with wait status {status}")
        return bool(pid)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.stage.collector, signal.SIGTERM)
        until(self.ended, "the end of the collector")

    def ask(self, verb: int) -> None:
        """From a thread, so that the collector's end can be waited for; it is let go of then."""

        wakeup = open_wakeup(self.stage.segment)

        def asking() -> None:
            with contextlib.suppress(ShmrecError, ValueError):
                requests.ask(self.stage.segment, wakeup, verb, timeout=20)

        thread = threading.Thread(target=asking)
        thread.start()
        deadline = time.monotonic() + 20
        while thread.is_alive() and not (self.stage.collector and self.ended()):
            if time.monotonic() > deadline:
                raise Broken("a request that nobody answers")
            time.sleep(0.0005)
        thread.join()

    # What is on disk.

    def files(self) -> list[Path]:
        try:
            return sorted(self.stage.directory.iterdir())
        except FileNotFoundError:
            return []

    def read(self, path: Path) -> Snapshot:
        """A snapshot that is whole, and right; `FileNotFoundError` if it is there no more."""
        # The collector makes room meanwhile: what it removes is still to be read here.
        kept = Path(tempfile.mkdtemp(dir=self.kept.name)) / path.name
        kept.hardlink_to(path)
        self.snapshots += 1
        checked = validator.check(kept)
        self.wrong += [f"{path.name}: {each}" for each in checked.wrong + disagreements(checked)]
        return read(kept)

    def check_names(self, *, hidden: bool) -> None:
        """Nothing has a final name that is not whole; nothing else is left unless `hidden`."""
        for path in self.files():
            if path.name.startswith(HIDDEN_PREFIX):
                # What the collector is writing at this moment is not left.
                if not hidden and f"-{self.stage.collector}-" not in path.name:
                    self.wrong.append(f"left behind: {path.name}")
            elif path.suffix == store.SUFFIX:
                # The second collector makes room too.
                with contextlib.suppress(FileNotFoundError):
                    self.read(path)
            else:
                self.wrong.append(f"a file that is none: {path.name}")

    def tellings(self, victim: Actor) -> list[str]:
        """The snapshots that tell the victim's death."""
        found = []
        for path in self.files():
            if path.suffix != store.SUFFIX or path.name.startswith("."):
                continue
            snapshot = read(path)
            for producer in snapshot.producers:
                if (
                    producer.pid == victim.pid
                    and producer.state == "dead"
                    and not producer.reported
                    and snapshot.header.trigger in ("death", "recover")
                ):
                    found.append(path.name)
        return found


def play(schedule: Schedule, name: str, scratch: Path) -> Play:
    """Play it to its end."""
    playing = Play(schedule, name, scratch)
    with playing.stage as stage:
        try:
            _play(playing)
        except (Broken, ShmrecError, OSError, ValueError) as error:
            playing.wrong.append(f"{type(error).__name__}: {error}")
        if playing.schedule.stop == -2:
            playing.noted = json.loads(os.read(playing._noted, 1 << 16) or b"[]")
        stage.directory.mkdir(exist_ok=True)
    playing.kept.cleanup()
    os.close(playing._noted)
    os.close(playing._note)
    return playing


def _play(playing: Play) -> None:
    schedule, stage = playing.schedule, playing.stage
    victim = stage.start(Part("instant", "wrapping"))
    others = [stage.start(Part("instant", "middle")) for _ in range(2)]
    if schedule.event == "quota":
        for number in range(_OLD):
            stage.snapshot().rename(
                stage.directory / f"old-2020010{number + 1}T000000Z-request-1.shmrec"
            )
    if schedule.event == "start":
        (stage.directory / ".shmrec-99999999-1.partial").touch()
    playing.start(armed=True)
    dies = schedule.event in ("death", "stop")
    _happen(playing, victim, others)
    playing.check_names(hidden=True)
    for other in others:
        stage.act(other, b"m")
    if stage.collector and schedule.stop != -2 and not playing.killed:
        playing.stop()
    if schedule.stop == -2:
        if stage.collector:
            playing.stop()
        return
    _again(playing, victim, others, dies=dies)


def _happen(playing: Play, victim: Actor, others: list[Actor]) -> None:
    """What the collector is killed at."""
    schedule, stage = playing.schedule, playing.stage
    if schedule.event == "death":
        os.kill(victim.pid, signal.SIGKILL)
        os.waitpid(victim.pid, 0)
        until(lambda: playing.ended() or settled(stage, victim), "the death's being told")
    elif schedule.event == "stop":
        os.kill(victim.pid, signal.SIGKILL)
        os.waitpid(victim.pid, 0)
        playing.stop()
    elif schedule.event in ("request", "quota"):
        playing.ask(Verb.SNAPSHOT)
    elif schedule.event == "transfer":
        playing.ask(Verb.TRANSFER)
        if stage.collector:
            for path in playing.files():
                if path.name.startswith(HIDDEN_PREFIX):
                    path.unlink()
    elif stage.collector:
        playing.ask(Verb.SNAPSHOT)


def settled(stage: Stage, victim: Actor) -> bool:
    """Whether the victim's ring may have another owner."""
    segment = stage.segment
    for index in range(segment.geometry.producers):
        at = segment.geometry.entry(index)
        if segment.words[ENTRY.word("pid", at)] == victim.pid:
            incarnation = segment.words[ENTRY.word("incarnation", at)]
            return segment.words[ENTRY.word("settled", at)] == incarnation
    return False


def _again(playing: Play, victim: Actor, others: list[Actor], *, dies: bool) -> None:
    """Another collector: it adopts, tells what was not told, and clears away."""
    stage = playing.stage
    ended_in_order = not stage.segment.linked()
    if ended_in_order:
        # The recording was over before the end came.
        if dies and len(playing.tellings(victim)) != 1:
            playing.wrong.append(f"told {playing.tellings(victim)}")
        return
    playing.start(armed=False)
    if stage.collector and playing.ended():
        raise Broken("no second collector")
    playing.check_names(hidden=False)
    if stage.segment.linked():
        if dies:
            until(lambda: settled(stage, victim), "the death's being told after all")
        for other in others:
            stage.act(other, b"m")
        playing.ask(Verb.SNAPSHOT)
        newest = store.newest(stage.directory)
        snapshot = playing.read(newest)
        allowed = ("dead",) if dies else ("running",)
        for pid, told in stage.told.items():
            playing.wrong += check(snapshot, told, allowed if pid == victim.pid else ("running",))
    tellings = playing.tellings(victim)
    if len(tellings) != int(dies):
        playing.wrong.append(f"the death was told {len(tellings)} times: {tellings}")
    playing.stop()
    if len(playing.tellings(victim)) != int(dies):
        playing.wrong.append(f"told again at the end: {playing.tellings(victim)}")


# Which schedules there are.


def bases() -> Iterator[Schedule]:
    for event in EVENTS:
        for unnamed in (True, False):
            yield Schedule(event, unnamed)
    yield Schedule("request", True, fresh=True)


def schedules(name: str, scratch: Path, wanted: Callable[[Schedule], bool]) -> list[Schedule]:
    """Every stop of every event, the first and the second time that it is passed."""
    found = []
    for number, base in enumerate(filter(wanted, bases())):
        playing = play(base, f"{name}-n{number}", scratch)
        if playing.wrong:
            raise Broken(f"{base}: {playing.wrong}")
        for stop in playing.noted:
            for occurrence in (1, 2):
                found.append(base._replace(stop=stop, occurrence=occurrence))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--only", default="")
    parser.add_argument("--events", default=",".join(EVENTS))
    given = parser.parse_args()
    stops = Build.of(Path.cwd()).stops
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    gc.freeze()
    name = f"collector-steps-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="shmrec-stress-") as folder:
        scratch = Path(folder)
        events = given.events.split(",")
        chosen = schedules(name, scratch, lambda base: base.event in events)
        chosen = [s for s in chosen if re.search(given.only, f"{s} {stops[s.stop]}")]
        if given.sample and given.sample < len(chosen):
            chosen = random.Random(given.seed).sample(chosen, given.sample)
        first, of = given.share
        for number, schedule in enumerate(chosen[first::of]):
            playing = play(schedule, f"{name}-{number}", scratch)
            print(json.dumps(row(schedule, playing, stops)), flush=True)
    return 0


def row(schedule: Schedule, playing: Play, stops: list[Any]) -> dict[str, Any]:
    return schedule._asdict() | {
        "step": stops[schedule.stop].step,
        "where": str(stops[schedule.stop]),
        "wrong": playing.wrong,
        "snapshots": playing.snapshots,
        "killed": playing.killed,
    }


if __name__ == "__main__":
    sys.exit(main())
