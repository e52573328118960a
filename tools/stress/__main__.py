"""Tries to break shmrec, and counts: one module beside this one for each way of trying.

    tools/stress/run TRIAL [OPTIONS] [--seed N] [--json FILE]

A trial is a module that has `HELP`, `options(parser)` and `run(given, tally)`; dropping one in
is all it takes. It ends with one line: what was tried how often, and what was lost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.stress.tally import Impossible, Tally  # noqa: E402

NOT_POSSIBLE_HERE = 77


class Trial(Protocol):
    """What a module of a trial has."""

    HELP: str

    def options(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, given: argparse.Namespace, tally: Tally) -> None: ...


def _trials() -> Iterator[tuple[str, Trial]]:
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        module = importlib.import_module(f"tools.stress.{path.stem}")
        if hasattr(module, "HELP"):
            yield path.stem.replace("_", "-"), module


def _arguments(trials: dict[str, Trial]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/stress/run",
        description="Try to break shmrec, and count what was tried and what was lost.",
        epilog="Exit status: 0 nothing was lost or broken, 1 something was, 2 usage, "
        f"{NOT_POSSIBLE_HERE} not possible on this machine.",
    )
    choices = parser.add_subparsers(dest="trial", metavar="TRIAL", required=True)
    for name, trial in trials.items():
        chosen = choices.add_parser(name, help=trial.HELP, description=trial.HELP)
        chosen.add_argument(
            "--seed", type=int, help="what chance follows (default: another every time, printed)"
        )
        chosen.add_argument("--json", metavar="FILE", type=Path, help="write the counts there too")
        trial.options(chosen)
    given = parser.parse_args()
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(1 << 32)
    return given


def main() -> int:
    """Run one trial, print its verdict, and give the exit status."""
    trials = dict(_trials())
    given = _arguments(trials)
    # What was started for the trial ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tally = Tally(given.trial, given.seed)
    began = time.monotonic()
    try:
        trials[given.trial].run(given, tally)
    except Impossible as reason:
        print(f"{given.trial}: not possible here: {reason}", file=sys.stderr)
        return NOT_POSSIBLE_HERE
    seconds = time.monotonic() - began
    if given.json is not None:
        given.json.write_text(json.dumps(tally.as_json(seconds), indent=2) + "\n")
    print(tally.verdict(seconds))
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
