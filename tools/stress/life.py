"""The trial "life": processes that come, change and end in every way there is, and what they leave.

Each case has a recording of its own, under a collector whose ticks are short. After each: every
ring can be claimed again, no process uses the memory, no descriptor, semaphore, zombie or file is
left; every event that was acknowledged is in a snapshot of whoever died, without a hole; every
death is told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from shmrec import _engine
from tools.stress import life_gunicorn
from tools.stress.life_stage import Stage
from tools.stress.tally import Impossible, Tally

HELP = "fork storms, reloads, threads, exits, exec, greenlets: nothing is left and nothing lost"

_CHILDREN = 220
_SPAWNS = 60
_TASKS = 60
_THREADS = 240


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of load on each service (default: 120)"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the numbers of children (default: 1)"
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


CASES: dict[str, Callable[[Stage, argparse.Namespace], None]] = {
    "storm": _storm,
    "spawns": _spawns,
    "pools": _pools,
    "threads": _threads,
    "max-requests": lambda stage, given: life_gunicorn.max_requests(stage, given.seconds),
    "reloads": lambda stage, given: life_gunicorn.reloads(stage, given.seconds),
}
