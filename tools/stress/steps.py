"""Producers killed, stopped and interrupted at every step of recording, attaching and leaving.

The steps are those that the code names (`step: NAME`), in an instrumented build of it
(`stepping`). A schedule is a stop before or after a step, at one of the times that a call passes
it; what happens there; the call; the state of the ring; how many producers; and how the snapshot
is taken. After each the snapshot is held against what every producer had told (`sequence`), a
producer that lives goes on, and a second snapshot must be right too.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tools.stress.stepping import Build, build
from tools.stress.tally import Tally

HELP: Final = "Producers killed, stopped and interrupted at every step, in both engines."

_DRIVER: Final = "tools.stress.step_driver"
_ENGINES: Final = ("native", "python")
_DONE: Final = {
    "kill": "producers killed",
    "stop": "producers stopped across the deadline",
    "raise": "producers whose signal handler raised",
    "record": "producers whose signal handler recorded",
    "fork": "producers whose signal handler forked",
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=_ENGINES, help="only that one (default: both)")
    parser.add_argument(
        "--sample", type=int, metavar="N", default=0, help="so many of each engine's schedules"
    )
    parser.add_argument(
        "--faults", default=",".join(_DONE), help="only these, with commas (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="at a time, of each engine")


def run(given: argparse.Namespace, tally: Tally) -> None:
    with tempfile.TemporaryDirectory(prefix="shmrec-stress-") as scratch:
        made = build(Path(scratch) / "build")
        engines = [given.engine] if given.engine else list(_ENGINES)
        where: Counter[str] = Counter()
        arguments = ["--sample", str(given.sample), "--seed", str(given.seed)]
        for row in played(made, engines, [*arguments, "--faults", given.faults], given.jobs):
            count(tally, row, where)
        tally.count("steps", len(where))


def count(tally: Tally, row: dict[str, Any], where: Counter[str]) -> None:
    """Take one schedule that was played into account."""
    tally.count(f"{row['engine']} schedules")
    tally.count(_DONE[row["fault"]])
    tally.count("snapshots held against what was told", row["snapshots"])
    where[row["step"]] += 1
    if row["wrong"]:
        what = {key: row[key] for key in ("fault", "call", "state", "used", "producers", "live")}
        tally.fail(f"{row['engine']}, {row['where']}, {what}: {'; '.join(row['wrong'])}")


def played(
    made: Build,
    engines: list[str],
    arguments: list[str],
    jobs: int = 1,
    driver: str = _DRIVER,
) -> Iterator[dict[str, Any]]:
    """The schedules that the drivers played, as they tell them; several at a time."""
    told: queue.Queue[dict[str, Any] | None] = queue.Queue()
    programs = []
    for engine in engines:
        for job in range(jobs):
            share = ["--share", str(job), str(jobs)]
            program = made.program(driver, *arguments, *share, engine=engine)
            programs.append(program)
            threading.Thread(target=_pass_on, args=(program, engine, told)).start()
    try:
        running = len(programs)
        while running:
            row = told.get()
            if row is None:
                running -= 1
            else:
                yield row
    finally:
        for program in programs:
            program.terminate()
            program.wait()
    codes = [program.returncode for program in programs if program.returncode]
    if codes:
        raise RuntimeError(f"the driver ended with {codes[0]}")


def _pass_on(
    program: subprocess.Popen[str], engine: str, told: queue.Queue[dict[str, Any] | None]
) -> None:
    assert program.stdout is not None
    with program.stdout as lines:
        for line in lines:
            told.put(json.loads(line) | {"engine": engine})
    program.wait()
    told.put(None)
