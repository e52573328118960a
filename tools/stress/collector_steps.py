"""The collector killed at every step of a snapshot, of telling a death, of starting and of ending.

The steps are those that the code names (`step: NAME`), in an instrumented build of it
(`stepping`). It is killed before and after each, the first and the second time that it comes
there, where files that are being written have no name and where they have a hidden one. After
that: nothing under a final name that is not whole; another collector adopts the recording, and
nothing is left of the first; a death is told exactly once; the next snapshot is whole, and holds
all that producers told; producers go on meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Final

from tools.stress.stepping import build
from tools.stress.steps import played
from tools.stress.tally import Tally

HELP: Final = "The collector killed at every step, and started again."
DRIVER: Final = "tools.stress.collector_step_driver"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample", type=int, metavar="N", default=0, help="so many of the schedules"
    )
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: %(default)s)")


def run(given: argparse.Namespace, tally: Tally) -> None:
    with tempfile.TemporaryDirectory(prefix="shmrec-stress-") as scratch:
        made = build(Path(scratch) / "build")
        arguments = ["--sample", str(given.sample), "--seed", str(given.seed)]
        steps = set()
        for row in played(made, [""], arguments, given.jobs, DRIVER):
            count(tally, row)
            if row["killed"]:
                steps.add(row["step"])
        tally.count("steps", len(steps))


def count(tally: Tally, row: dict[str, Any]) -> None:
    """Take one schedule that was played into account."""
    tally.count("schedules")
    tally.count("collectors killed", row["killed"])
    tally.count("ended before the step came", not row["killed"])
    tally.count("snapshots validated", row["snapshots"])
    if row["wrong"]:
        what = {key: row[key] for key in ("event", "unnamed", "fresh", "occurrence")}
        tally.fail(f"{row['where']}, {what}: {'; '.join(row['wrong'])}")
