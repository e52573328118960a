"""What a trial counts, and the line that it ends with."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any


class Impossible(Exception):
    """The trial needs what this machine does not have; the message says what."""


class Tally:
    """How often each thing was tried, and every failure in words.

    `counts` are shown in the order in which they were first counted. A failure is printed when it
    is found, so that a long trial need not end to be of use.
    """

    def __init__(self, trial: str, seed: int) -> None:
        self.trial = trial
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def count(self, what: str, times: int = 1) -> None:
        """Count `what`, a plural noun such as "kills"."""
        self.counts[what] += times

    def fail(self, what: str) -> None:
        """Keep, count and print a failure: what was lost or broken, and where."""
        self.failures.append(what)
        print(f"{self.trial}: FAILED (seed {self.seed}): {what}", file=sys.stderr, flush=True)

    def verdict(self, seconds: float) -> str:
        """One line: clean or not, and the counts."""
        state = f"{len(self.failures)} FAILED" if self.failures else "clean"
        counts = ", ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return f"{self.trial}: {state} after {seconds:.0f} s (seed {self.seed}): {counts}"

    def as_json(self, seconds: float) -> dict[str, Any]:
        """The same for a program: trial, seed, seconds, counts by name, failures."""
        return {
            "trial": self.trial,
            "seed": self.seed,
            "seconds": round(seconds, 1),
            "counts": dict(self.counts),
            "failures": self.failures,
        }
