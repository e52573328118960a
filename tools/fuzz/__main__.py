"""Fuzzes what reads hostile bytes, guided by coverage; one module beside this for each target.

    tools/fuzz/run [TARGET...] [--minutes N] [--jobs N]

A target is a module that has `HELP`, `LONGEST`, `check(data)` and `seeds()`; dropping one in is
all it takes. Each ends with one line: how many inputs were tried, what new they covered, how
many crashed. An input that crashes is kept, and the fuzzing goes on.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Final

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.fuzz.target import CORPORA, Target, targets  # noqa: E402

NOT_POSSIBLE_HERE: Final = 77
_SESSION: Final = "tools/fuzz/session.py"
_ROOT: Final = Path(__file__).resolve().parents[2]
_CRASHES: Final = 50
"""More than so many of one target tell nothing new."""
_PATIENCE: Final = 120.0
"""Seconds over its time before a session is ended."""
_LIMITS: Final = ("-timeout=30", "-rss_limit_mb=1536", "-print_final_stats=1", "-verbosity=1")
_ASAN: Final = ":".join(
    (
        "detect_leaks=0",
        "abort_on_error=1",
        # What Python lets go of all the time would be kept, up to the limit of memory.
        "quarantine_size_mb=64",
        "max_free_fill_size=4096",
        "free_fill_byte=255",
    )
)
_STATUS: Final = re.compile(r"^#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)
_RUNS: Final = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)


@dataclass
class Outcome:
    """What one target's sessions came to."""

    name: str
    seconds: float = 0.0
    runs: int = 0
    before: int = 0
    after: int = 0
    inputs: int = 0
    crashes: list[str] = field(default_factory=list)
    problem: str = ""

    def line(self) -> str:
        """One line: clean or not, and the counts."""
        if self.problem:
            return f"{self.name}: NOT RUN: {self.problem}"
        state = "FAILED" if self.crashes else "clean"
        return (
            f"{self.name}: {state} after {self.seconds:.0f} s: {self.runs:,} executions, "
            f"coverage {self.before:,} -> {self.after:,}, corpus {self.inputs:,} inputs, "
            f"crashes: {len(self.crashes)}"
        )


class Fuzzing:
    """The sessions of one target, one after another until the time is over."""

    def __init__(self, name: str, target: Target, work: Path) -> None:
        self._name = name
        self._longest = target.LONGEST
        self._sanitized = bool(getattr(target, "SANITIZED", False))
        self._found = work / name
        self._crashes = work / "crashes" / name
        self._log = work / f"{name}.log"
        self._running: subprocess.Popen[bytes] | None = None
        self._over = False

    def run(self, seconds: float) -> Outcome:
        """Fuzz for so long; crashes cost a new session each."""
        outcome = Outcome(self._name)
        for folder in (self._found, self._crashes):
            folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with open(self._log, "wb") as log:
            while not self._over and len(outcome.crashes) < _CRASHES:
                left = seconds - (time.monotonic() - began)
                if left < 1 or not self._session(round(left), outcome, log):
                    break
        outcome.seconds = time.monotonic() - began
        outcome.inputs = sum(1 for _ in self._found.iterdir())
        return outcome

    def stop(self) -> None:
        """End what runs."""
        self._over = True
        if self._running is not None:
            self._running.send_signal(signal.SIGTERM)

    def _session(self, seconds: int, outcome: Outcome, log: IO[bytes]) -> bool:
        """One process; whether another may follow."""
        seen = set(self._crashes.iterdir())
        seeds = CORPORA / self._name
        # The copy of the checkout has the native engine with the sanitizers.
        root = Path(os.environ["SHMREC_FUZZ_COPY"]) if self._sanitized else _ROOT
        command = [sys.executable, str(root / _SESSION), self._name]
        command += [str(self._found), *([str(seeds)] if seeds.is_dir() else [])]
        command += [f"-max_total_time={seconds}", f"-max_len={self._longest}", *_LIMITS]
        command += [f"-artifact_prefix={self._crashes}/"]
        began = log.tell()
        self._running = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=self._environment()
        )
        try:
            self._running.wait(seconds + _PATIENCE)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
            outcome.crashes.append("it did not end when its time was over")
        log.seek(0, os.SEEK_END)
        said = self._log.read_bytes()[began:].decode("utf-8", "backslashreplace")
        runs = _RUNS.search(said)
        statuses = _STATUS.findall(said)
        outcome.runs += int(runs[1]) if runs else int(statuses[-1][0]) if statuses else 0
        if statuses:
            outcome.before = outcome.before or int(statuses[0][1])
            outcome.after = max(outcome.after, *(int(each[1]) for each in statuses))
        new = sorted(set(self._crashes.iterdir()) - seen)
        for path in new:
            outcome.crashes.append(str(path))
            print(f"{self._name}: CRASH: {path}: {_why(said)}", file=sys.stderr, flush=True)
        status = self._running.returncode
        if not new and status and not self._over:
            outcome.crashes.append(f"status {status}")
            print(f"{self._name}: ended with {status}, see {self._log}", file=sys.stderr)
            return bool(statuses)
        return True

    def _environment(self) -> dict[str, str]:
        """This environment; the sanitizers' as well, where the target wants them."""
        if not self._sanitized:
            return dict(os.environ)
        return {
            **os.environ,
            "LD_PRELOAD": os.environ["SHMREC_FUZZ_PRELOAD"],
            # Python's memory comes from malloc, which the sanitizer watches. What is freed is
            # filled, so that Python, which is not compiled for it, stumbles over it too.
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": _ASAN,
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "SHMREC_ENGINE": "native",
            "SHMREC_SANITIZED": "1",
        }


def _why(said: str) -> str:
    """The line of a session's output that says most about its crash."""
    lines = said.splitlines()
    for mark in (" === Uncaught Python exception", "SUMMARY:", "ERROR:"):
        for number, line in enumerate(lines):
            if mark in line:
                return " ".join(lines[number : number + 2])
    return "see the log"


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
        default=_ROOT / ".fuzz",
        help="where new inputs, crashes and logs go (default: .fuzz in the checkout)",
    )
    given = parser.parse_args()
    unknown = set(given.targets) - found.keys()
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(found)}")
    return given


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
    for outcome in outcomes:
        if outcome.problem:
            print(outcome.line(), file=sys.stderr)
    if any(outcome.crashes for outcome in outcomes):
        return 1
    return NOT_POSSIBLE_HERE if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
