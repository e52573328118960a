"""Fuzzes what reads hostile bytes, guided by coverage; one module beside this for each target.

    tools/fuzz/run [TARGET...] [--minutes N] [--jobs N] [--keep]

A target is a module that has `HELP`, `LONGEST`, `check(data)` and `seeds()`; dropping one in is
all it takes. Each ends with one line: how many inputs were tried, what new they covered, how
many crashed. An input that crashes is kept, and the fuzzing goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Final

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.fuzz.fuzzing import ROOT, Fuzzing, Outcome  # noqa: E402
from tools.fuzz.keeping import keep  # noqa: E402
from tools.fuzz.target import CORPORA, Target, targets  # noqa: E402

NOT_POSSIBLE_HERE: Final = 77


def _arguments(found: dict[str, Target]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/fuzz/run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fuzz what reads hostile bytes, guided by coverage.\n\ntargets:\n"
        + "\n".join(f"  {name:<10} {target.HELP}" for name, target in found.items()),
        epilog="Exit status: 0 nothing crashed, 1 something did, 2 usage, "
        f"{NOT_POSSIBLE_HERE} not possible on this machine.",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="all of it takes (default: 1)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="at a time (default: as processors)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / ".fuzz",
        help="where new inputs, crashes and logs go (default: .fuzz in the checkout)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="then add seeds, and found inputs that cover more, to tests/corpora",
    )
    given = parser.parse_args()
    unknown = set(given.targets) - found.keys()
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(found)}")
    return given


def _keep(name: str, target: Target, found: Path) -> None:
    folder = CORPORA / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed, data in target.seeds():
        if not (folder / seed).exists():
            (folder / seed).write_bytes(data)
    kept = keep(name, target, found) if found.is_dir() else 0
    print(f"{name}: {kept} inputs more are kept in {folder}")


def main() -> int:
    """Fuzz, print a verdict for each target, and give the exit status."""
    found = targets()
    given = _arguments(found)
    work = given.work.absolute()
    chosen = given.targets or list(found)
    jobs = min(max(given.jobs, 1), len(chosen))
    seconds = given.minutes * 60 * jobs / len(chosen)
    fuzzings, outcomes = [], []
    for name in chosen:
        missing = os.environ.get("SHMREC_FUZZ_LACKS", "")
        if getattr(found[name], "SANITIZED", False) and missing:
            outcomes.append(Outcome(name, problem=missing))
        else:
            fuzzings.append(Fuzzing(name, found[name], work))

    def stop(number: int, frame: FrameType | None) -> None:
        for each in fuzzings:
            each.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # Files that are written and read all the time, in memory. A session that was killed cannot
    # remove its own.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="shmrec-fuzz-", dir=memory) as folder,
        ThreadPoolExecutor(jobs) as pool,
    ):
        os.environ["SHMREC_FUZZ_DIR"] = folder
        for outcome in pool.map(lambda each: each.run(seconds), fuzzings):
            outcomes.append(outcome)
            print(outcome.line(), flush=True)
    if given.keep:
        for name in chosen:
            _keep(name, found[name], work / name)
    for outcome in outcomes:
        if outcome.problem:
            print(outcome.line(), file=sys.stderr)
    if any(outcome.crashes for outcome in outcomes):
        return 1
    return NOT_POSSIBLE_HERE if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
