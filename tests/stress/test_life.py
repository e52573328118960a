"""A sample of the trial "life", and that it sees what is lost and what is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STRESS = Path(__file__).resolve().parents[2] / "tools" / "stress"


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The counts of a trial that has found nothing."""
    counts = tmp_path / "counts.json"
    ended = subprocess.run(
        [sys.executable, str(STRESS), *arguments, "--json", str(counts)],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(counts.read_text())
    assert ended.stdout.startswith(f"{arguments[0]}: clean after ")
    return found


@pytest.mark.stress
def test_whoever_comes_and_goes_leaves_nothing_and_loses_nothing(tmp_path: Path) -> None:
    cases = ("storm", "threads", "endings", "tasks", "execs", "interpreters")
    found = run(tmp_path, "life", *cases, "--share", "0.05")["counts"]
    assert found["cases"] == len(cases)
    assert found["forks"] == 2 * 11
    # Of each engine one was killed, one ended by a signal, one failed, and one left with a status.
    assert found["deaths told"] >= 2 * 4
    assert found["acknowledged events"] > 500
