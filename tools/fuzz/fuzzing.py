"""The sessions of one target, and what they come to.

Runs in `tools/fuzz/run`, a thread for each target; a session is a process of its own, for an
input that crashes ends it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from tools.fuzz.target import CORPORA, Target

__all__ = ["ROOT", "Fuzzing", "Outcome", "counted"]

_SESSION: Final = "tools/fuzz/session.py"
ROOT: Final = Path(__file__).resolve().parents[2]
_CRASHES: Final = 50
"""More than so many of one target tell nothing new."""
_PATIENCE: Final = 120.0
"""Seconds over its time before a session is ended."""
# Of a clock's time, which others on the machine take too: `limits` has the processor's.
_TIMES: Final = ("-timeout=120", "-report_slow_units=3600")
_LIMITS: Final = (*_TIMES, "-rss_limit_mb=1536", "-print_final_stats=1", "-verbosity=1")
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
                if time.monotonic() + 1 > began + seconds:
                    break
                if not self._session(began + seconds, outcome, log):
                    break
        outcome.seconds = time.monotonic() - began
        outcome.inputs = sum(1 for _ in self._found.iterdir())
        return outcome

    def stop(self) -> None:
        """End what runs."""
        self._over = True
        if self._running is not None:
            self._running.send_signal(signal.SIGTERM)

    def _session(self, until: float, outcome: Outcome, log: IO[bytes]) -> bool:
        """One process; whether another may follow."""
        seen = set(self._crashes.iterdir())
        seeds = CORPORA / self._name
        # The copy of the checkout has the native engine with the sanitizers.
        root = Path(os.environ["SHMREC_FUZZ_COPY"]) if self._sanitized else ROOT
        command = [sys.executable, str(root / _SESSION), self._name, str(until)]
        command += [str(self._found), *([str(seeds)] if seeds.is_dir() else [])]
        command += [f"-max_len={self._longest}", f"-artifact_prefix={self._crashes}/", *_LIMITS]
        began = log.tell()
        self._running = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=self._environment()
        )
        try:
            self._running.wait(until - time.monotonic() + _PATIENCE)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
            outcome.crashes.append("it did not end when its time was over")
        log.seek(0, os.SEEK_END)
        said = self._log.read_bytes()[began:].decode("utf-8", "backslashreplace")
        started = counted(outcome, said)
        new = sorted(set(self._crashes.iterdir()) - seen)
        for path in new:
            outcome.crashes.append(str(path))
            print(f"{self._name}: CRASH: {path}: {_why(said)}", file=sys.stderr, flush=True)
        status = self._running.returncode
        if not new and status and not self._over:
            outcome.crashes.append(f"status {status}")
            print(f"{self._name}: ended with {status}, see {self._log}", file=sys.stderr)
            return started
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


def counted(outcome: Outcome, said: str) -> bool:
    """Add up what a session said of itself; whether it came to trying inputs."""
    runs = _RUNS.search(said)
    statuses = _STATUS.findall(said)
    if not statuses:
        return False
    outcome.runs += int(runs[1]) if runs else int(statuses[-1][0])
    outcome.before = outcome.before or int(statuses[0][1])
    outcome.after = max(outcome.after, *(int(each[1]) for each in statuses))
    return True


def _why(said: str) -> str:
    """The line of a session's output that says most about its crash."""
    lines = said.splitlines()
    for mark in (" === Uncaught Python exception", "SUMMARY:", "ERROR:"):
        for number, line in enumerate(lines):
            if mark in line:
                return " ".join(lines[number : number + 2])
    return "see the log"
