"""The trial: shmrec without memory, disk, descriptors, system calls, time, or anybody to serve it.

Each case takes one thing away, of this machine as its own processes see it, never of the machine
itself. What all of them hold: the application never fails, never waits, and is not slower than the
recording itself; the person is told once and clearly; what was lost is counted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

from tools.stress import (
    starved_calls,
    starved_disk,
    starved_kernel,
    starved_limits,
    starved_memory,
    starved_service,
)
from tools.stress.ground import Case, Ground
from tools.stress.tally import Impossible, Tally

HELP = "starve it: of shared memory, disk, descriptors, system calls, time, a collector"

CASES: Final[dict[str, Case]] = {
    **starved_memory.CASES,
    **starved_limits.CASES,
    **starved_disk.CASES,
    **starved_calls.CASES,
    **starved_kernel.CASES,
    **starved_service.CASES,
}


def options(parser: argparse.ArgumentParser) -> None:
    """The cases, all by default."""
    width = max(map(len, CASES))
    rows = (f"  {name:{width}}  {(case.__doc__ or '').strip()}" for name, case in CASES.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["cases:", *rows])
    parser.add_argument("cases", nargs="*", metavar="CASE", type=_case, help="all by default")
    parser.add_argument("--quick", action="store_true", help="a sample of each")


def _case(name: str) -> str:
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"there is no case {name!r}, only {', '.join(CASES)}")
    return name


def run(given: argparse.Namespace, tally: Tally) -> None:
    """Run the cases one after the other."""
    for name in given.cases or CASES:
        tally.count("cases")
        with tempfile.TemporaryDirectory() as place:
            ground = Ground(tally, Path(place), given.quick)
            try:
                CASES[name](ground)
            except Impossible as reason:
                print(f"starved: {name} is not possible here: {reason}")
                tally.count("cases not possible here")
