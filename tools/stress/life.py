"""The trial "life": processes that come, change and end in every way there is, and what they leave.

Each case has a recording of its own, under a collector whose ticks are short. After each: every
ring can be claimed again, no process uses the memory, no descriptor, semaphore, zombie or file is
left; every event that was acknowledged is in a snapshot of whoever died, without a hole; every
death is told.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from shmrec import _engine
from tools.stress import life_gunicorn
from tools.stress.life_endings import ENDINGS
from tools.stress.life_programs import PATCHED
from tools.stress.life_stage import Stage
from tools.stress.tally import Impossible, Tally

HELP = "fork storms, reloads, threads, exits, exec, greenlets: nothing is left and nothing lost"

_CHILDREN = 220
_SPAWNS = 60
_TASKS = 60
_THREADS = 240
_ROUNDS = 20
_NOT_TO_BE_SAID = ("Fatal Python error: _", "Exception ignored", "shmrec/", "Segmentation")
"""By programs that end: nothing of ours may be in a traceback, nor the interpreter break down."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of load on each service (default: 120)"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of the numbers of children and endings (default: 1)",
    )


def run(given: argparse.Namespace, tally: Tally) -> None:
    unknown = set(given.cases) - set(CASES)
    if unknown:
        raise Impossible(f"there is no case {', '.join(sorted(unknown))}, only {', '.join(CASES)}")
    for case in given.cases or CASES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="shmrec-life-") as folder:
            try:
                with Stage(case, Path(folder), tally) as stage:
                    CASES[case](stage, given)
                    stage.check()
            except Impossible as reason:
                print(f"  {case}: left out: {reason}", file=sys.stderr)
                tally.count("cases left out")
                continue
        tally.count("cases")
        print(f"  {case}: {time.monotonic() - began:.1f} s", file=sys.stderr)


def engines() -> Iterable[str]:
    """Those that can serve here."""
    return [name for name in _engine.NAMES if not _engine.refusal(name)]


def _share(given: argparse.Namespace, count: int) -> str:
    return str(max(1, round(count * given.share)))


def _storm(stage: Stage, given: argparse.Namespace) -> None:
    stage.keep_asking()
    for engine in engines():
        stage.play("storm", _share(given, _CHILDREN), engine=engine)


def _spawns(stage: Stage, given: argparse.Namespace) -> None:
    for engine in engines():
        stage.play("spawns", _share(given, _SPAWNS), engine=engine)


def _pools(stage: Stage, given: argparse.Namespace) -> None:
    stage.keep_asking()
    for engine, method in zip((*engines(), ""), ("fork", "spawn", "forkserver"), strict=False):
        stage.play("pools", method, _share(given, _TASKS), engine=engine, helped=True)


def _threads(stage: Stage, given: argparse.Namespace) -> None:
    stage.keep_asking()
    for engine in engines():
        stage.play("threads", _share(given, _THREADS), engine=engine)


def _endings(stage: Stage, given: argparse.Namespace) -> None:
    few = max(1, round(len(ENDINGS) * min(1.0, given.share)))
    chance = random.Random(given.seed)
    expected: dict[int, tuple[str, str]] = {}
    for engine in engines():
        for way, ending in chance.sample(sorted(ENDINGS.items()), few):
            program = stage.start("ending", way, engine=engine)
            program.say()
            expected[program.pid] = f"{way} {engine}", ending.state
            if ending.dies:
                stage.dead.add(program.pid)
            status = program.wait()
            if status != ending.status:
                stage.fail(f"{way} {engine} ended with {status}, not {ending.status}")
            stage.tally.count("endings")
    for producer in stage.snapshot().producers:
        called, state = expected.get(producer.pid, ("", ""))
        # One that joins again in the end has two rings, both of which it has left.
        if called and producer.state != state:
            stage.fail(f"{called} left its ring {producer.state}, not {state}")
    said = stage.log.read_text(errors="replace")
    for word in _NOT_TO_BE_SAID:
        if word in said:
            stage.fail(f"{word!r} was said: {said[max(0, said.index(word) - 300) :][:600]}")


def _tasks(stage: Stage, given: argparse.Namespace) -> None:
    for engine in engines():
        _live(stage, "tasks", _share(given, _ROUNDS), engine=engine)


def _greenlets(stage: Stage, given: argparse.Namespace) -> None:
    if importlib.util.find_spec("gevent") is None:
        raise Impossible("gevent is missing: install shmrec[test]")
    for engine in engines():
        for patched in ((), (PATCHED,)):
            _live(stage, "greenlets", _share(given, _ROUNDS), *patched, engine=engine)


def _live(stage: Stage, life: str, *args: str, engine: str) -> None:
    """A life after which none of its spans may be open."""
    program = stage.start(life, *args, engine=engine)
    program.say()
    stage.listen(program)
    found = stage.snapshot()
    for producer in found.producers:
        if producer.pid == program.pid and producer.open_spans:
            stage.fail(f"{life} {engine} left open: {producer.open_spans[:3]}")
    status = program.end()
    if status:
        stage.fail(f"{life} {engine} ended with {status}: {stage.words()}")
    stage.tally.count("rounds of tasks", int(args[0]))


def _execs(stage: Stage, given: argparse.Namespace) -> None:
    for engine in engines():
        stage.play("execs", _share(given, _ROUNDS), engine=engine)


def _interpreters(stage: Stage, given: argparse.Namespace) -> None:
    for engine in engines():
        stage.play("interpreters", _share(given, _ROUNDS), engine=engine)


CASES: dict[str, Callable[[Stage, argparse.Namespace], None]] = {
    "storm": _storm,
    "spawns": _spawns,
    "pools": _pools,
    "threads": _threads,
    "endings": _endings,
    "tasks": _tasks,
    "greenlets": _greenlets,
    "execs": _execs,
    "interpreters": _interpreters,
    "max-requests": lambda stage, given: life_gunicorn.max_requests(stage, given.seconds),
    "reloads": lambda stage, given: life_gunicorn.reloads(stage, given.seconds),
}
