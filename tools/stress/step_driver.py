"""Plays schedules of steps: a producer is stopped at a step, snapshotted, and held to its word.

    python -m tools.stress.step_driver [--stop N] ...

A program of an instrumented build (`stepping`), whose folder it is run in. Prints one line of
JSON for each schedule. `steps` is the trial that runs it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tools.stress.stepping import Build, Stop, load_stops

STOPS: Final = load_stops()

from shmrec.errors import ShmrecError  # noqa: E402
from shmrec.layout import ENTRY  # noqa: E402
from shmrec.snapshot_file import Snapshot, read  # noqa: E402
from tools.stress import stepped_producer, validator  # noqa: E402
from tools.stress.agreement import disagreements  # noqa: E402
from tools.stress.sequence import Told, check  # noqa: E402
from tools.stress.step_stage import Actor, Broken, Stage  # noqa: E402
from tools.stress.stepped_producer import Part  # noqa: E402

FAULTS: Final = {
    "kill": (signal.SIGKILL, ""),
    "stop": (signal.SIGSTOP, ""),
    "raise": (signal.SIGUSR1, "raise"),
    "record": (signal.SIGUSR1, "record"),
    "fork": (signal.SIGUSR1, "fork"),
}
_CALLS: Final = {
    "fresh": ("instant", "begin"),
    "middle": ("instant", "begin", "end", "counter", "attach", "rejoin", "detach"),
    "full": ("instant", "begin", "end"),
    "wrapping": ("instant", "begin", "end"),
    "generation": ("instant", "begin", "end"),
}
_ATTEMPTS: Final = 5
"""A live collector's tick may come first: then the call is another one, and passes other stops."""
_FEW: Final = 2
"""Of a stop that is passed often in one call: so many of the first times, and the last."""


class Schedule(NamedTuple):
    """One way for it to go wrong."""

    fault: str
    call: str
    state: str
    used: bool
    """Whether the ring that it takes had an owner."""
    producers: int
    live: bool
    stop: int = -1
    occurrence: int = 1

    @property
    def part(self) -> Part:
        number, handler = FAULTS[self.fault]
        return Part(self.call, self.state, self.stop, self.occurrence, int(number), handler)


class Play:
    """A schedule being played, with its stop; `wrong` is what was found."""

    def __init__(self, schedule: Schedule, stop: Stop | None, name: str, scratch: Path) -> None:
        self.schedule = schedule
        self.stop = stop
        self.wrong: list[str] = []
        self.snapshots = 0
        self.passed_by = False
        # No more than are needed, so that one that is lost is missed.
        rings = schedule.producers + (schedule.call == "rejoin") + (schedule.fault == "fork")
        self.stage = Stage(name, live=schedule.live, rings=rings, scratch=scratch)
        self.others: list[Actor] = []
        self.victim: Actor | None = None

    def start(self) -> Actor:
        """Everybody is there, the victim's call comes next."""
        schedule, stage = self.schedule, self.stage
        for number in range(schedule.producers - 1):
            state = ("middle", "wrapping")[number % 2]
            self.others.append(stage.start(Part("instant", state)))
        if schedule.used:
            gone = stage.start(Part("instant", "wrapping"))
            stage.leave(gone)
            # Whoever takes its ring takes what it recorded too.
            del stage.told[gone.pid]
        self.victim = victim = stage.start(schedule.part)
        if schedule.state == "generation":
            stage.advance()
        return victim

    def go(self) -> str:
        """Have the victim make its call; how it went."""
        stage, victim = self.stage, self.start()
        victim.order(b"g")
        if self.schedule.call == "rejoin":
            victim.pid = stage.expect(victim, stepped_producer.STARTED).number
        return stage.outcome(victim)

    def look(self, path: Path, states: tuple[str, ...], *, dead: bool = False) -> None:
        """Hold a snapshot against what everybody has told."""
        stage = self.stage
        snapshot = self.read(path)
        assert self.victim is not None
        for pid, told in stage.told.items():
            if pid == self.victim.pid:
                allowed = states
            elif pid in {actor.pid for actor in self.others}:
                allowed = ("running",)
            else:
                allowed = ("running", "detached", "exited", "dead")
            self.wrong += check(snapshot, told, allowed)
            self._held(snapshot, told)

    def read(self, path: Path) -> Snapshot:
        """A snapshot that is all that its format promises, and is read as it is."""
        self.snapshots += 1
        # What a handler records comes while the victim's event has a time already.
        checked = validator.check(path, nested=self.schedule.fault == "record")
        self.wrong += [f"{path.name}: {each}" for each in checked.wrong + disagreements(checked)]
        return read(path)

    def _held(self, snapshot: Snapshot, told: Told) -> None:
        """The span that was begun first and never ended is known to be open."""
        for producer in snapshot.producers:
            if producer.pid == told.pid in self.holding and producer.state != "detached":
                names = [span.name for span in producer.open_spans]
                if "held" not in names:
                    self.wrong.append(f"pid {told.pid}: the span that is open is not: {names}")

    @property
    def locked(self) -> bool:
        """Whether the segment is locked where the victim stops."""
        stop = self.stop
        return stop is not None and (
            stop.step == "claiming" or (stop.step, stop.edge) == ("lock", "after")
        )

    @property
    def claiming(self) -> bool:
        """Whether the victim has no ring yet where it stops."""
        return self.stop is not None and self.stop.file == "claim.py"

    @property
    def holding(self) -> set[int]:
        """The processes that have prepared a span."""
        actors = [actor.first for actor in self.others]
        if self.victim is not None and self.schedule.call not in ("attach", "detach"):
            actors += [self.victim.first] if self.schedule.state != "fresh" else []
        return set(actors)


def play(schedule: Schedule, stop: Stop, name: str, scratch: Path) -> Play:
    """Play it to its end."""
    for _ in range(_ATTEMPTS):
        playing = Play(schedule, stop, name, scratch)
        with playing.stage:
            try:
                _play(playing)
            except (Broken, ShmrecError, OSError, ValueError) as error:
                playing.wrong.append(f"{type(error).__name__}: {error}")
        if not playing.passed_by:
            break
    return playing


def _play(playing: Play) -> None:
    schedule, stage = playing.schedule, playing.stage
    outcome = playing.go()
    victim = playing.victim
    assert victim is not None
    expected = {"kill": "gone", "stop": "stopped"}.get(schedule.fault, "done")
    failed = stage.take(victim, stepped_producer.FAILED)
    playing.passed_by = failed is not None
    if outcome != expected or failed is not None:
        playing.wrong.append(f"it was {outcome}, not {expected}; {failed}")
        return
    told = stage.told.setdefault(victim.pid, Told(victim.pid))
    if outcome in ("gone", "stopped") and schedule.call not in ("attach", "detach"):
        told.maybe = {(told.returned or [-1])[-1] + 1}
    if schedule.call == "rejoin":
        told.outside = playing.claiming
        forked = stage.take(victim, stepped_producer.STARTED)
        if forked is not None and playing.locked:
            # Its parent waits for it with the segment locked, and it does not wait for its parent.
            stage.told[forked.number].optional = True
    # Nobody is held up.
    for other in playing.others:
        stage.act(other, b"m")
    if outcome == "stopped" and schedule.call in ("attach", "rejoin"):
        playing.look(stage.snapshot_by_signal(), _states(playing, outcome))
    else:
        playing.look(stage.snapshot(), _states(playing, outcome))
    if outcome == "stopped":
        os.kill(victim.pid, signal.SIGCONT)
        stage.expect(victim, stepped_producer.DONE)
        told.maybe = set()
    if outcome != "gone":
        if schedule.call in ("attach", "detach"):
            stage.told[victim.pid] = Told(victim.pid, returned=[])
            stage.act(victim, b"j")
        for actor in [victim, *playing.others]:
            stage.act(actor, b"m")
        playing.look(stage.snapshot(), ("running",))
    _end(playing, outcome)


def _states(playing: Play, outcome: str) -> tuple[str, ...]:
    """The states that the victim may be in."""
    schedule = playing.schedule
    if schedule.call in ("attach", "rejoin", "detach"):
        return ("running", "stalled", "dead", "detached")
    if outcome == "gone":
        return ("dead",)
    if outcome == "stopped" and schedule.live and _inside(playing):
        return ("stalled",)
    return ("running",)


def _inside(playing: Play) -> bool:
    """Whether the victim's entry says that it is in its critical section."""
    segment = playing.stage.segment
    assert playing.victim is not None
    for index in range(segment.geometry.producers):
        at = segment.geometry.entry(index)
        if segment.words[ENTRY.word("pid", at)] == playing.victim.pid:
            return bool(segment.words[ENTRY.word("writing", at)] % 2)
    return False


def _end(playing: Play, outcome: str) -> None:
    """Everybody leaves; what was not told yet is, once."""
    schedule, stage = playing.schedule, playing.stage
    victim = playing.victim
    assert victim is not None
    for actor in playing.others:
        stage.leave(actor)
    if outcome != "gone":
        stage.leave(victim)
    if not schedule.live:
        return
    stage.stop_collector()
    deaths = list(stage.files("death-of"))
    recorded = bool(stage.told[victim.pid].returned) if outcome == "gone" else False
    if len(deaths) > 1 or (recorded and schedule.call != "detach" and not deaths):
        playing.wrong.append(f"{len(deaths)} death snapshots")
    if deaths and outcome != "gone":
        playing.wrong.append(f"a death that there was not: {deaths[0].name}")
    for path in deaths:
        snapshot = playing.read(path)
        playing.wrong += check(snapshot, stage.told[victim.pid], ("dead",))


# Which schedules there are.


def bases(faults: list[str]) -> Iterator[Schedule]:
    """Every schedule but for the stop."""
    for state, calls in _CALLS.items():
        for call in calls:
            for used in (False, True) if call in ("attach", "rejoin") else (False,):
                for producers in (1, 3):
                    for live in (False, True):
                        for fault in faults:
                            yield Schedule(fault, call, state, used, producers, live)


def stops_of(base: Schedule, name: str, scratch: Path) -> list[tuple[int, int]]:
    """The stops that the call passes, with their occurrences."""
    playing = Play(base._replace(stop=-2, live=False, producers=1), None, name, scratch)
    with playing.stage:
        outcome = playing.go()
        if outcome != "done":
            raise Broken(f"{base}: {outcome}")
        noted = playing.stage.noted
    counts: dict[int, int] = {}
    found = []
    total = {number: noted.count(number) for number in set(noted)}
    for number in noted:
        counts[number] = counts.get(number, 0) + 1
        if counts[number] <= _FEW or counts[number] == total[number]:
            found.append((number, counts[number]))
    return found


def schedules(faults: list[str], name: str, scratch: Path) -> list[Schedule]:
    """All of them."""
    known: dict[tuple[str, str, bool], list[tuple[int, int]]] = {}
    found = []
    for base in bases(faults):
        key = base.call, base.state, base.used
        if key not in known:
            known[key] = stops_of(base, f"{name}-{len(known)}", scratch)
        for stop, occurrence in known[key]:
            found.append(base._replace(stop=stop, occurrence=occurrence))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    stops = Build.of(Path.cwd()).stops
    # What was started ends with the stage.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    gc.freeze()
    name = f"steps-{os.getpid()}"
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmrec-stress-") as folder:
        scratch = Path(folder)
        chosen = schedules(given.faults.split(","), name, scratch)
        if given.only:
            chosen = [
                each for each in chosen if re.search(given.only, f"{each} {stops[each.stop]}")
            ]
        chance = random.Random(given.seed)
        if given.sample and given.sample < len(chosen):
            chosen = chance.sample(chosen, given.sample)
        first, of = given.share
        chosen = chosen[first::of]
        for number, schedule in enumerate(chosen):
            began = time.monotonic()
            playing = play(schedule, stops[schedule.stop], f"{name}-{number}", scratch)
            row = schedule._asdict() | {
                "step": stops[schedule.stop].step,
                "where": str(stops[schedule.stop]),
                "wrong": playing.wrong,
                "snapshots": playing.snapshots,
                "seconds": round(time.monotonic() - began, 4),
            }
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
