"""A short run of the random kills: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shmrec import _engine

STRESS = Path(__file__).resolve().parents[2] / "tools" / "stress"
COUNTED = ("kills", "stops", "forks", "snapshots checked", "events recorded")


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    counts = tmp_path / "counts.json"
    # Both engines are mixed, whichever is under test, if both are there.
    engine = ["--engine", "python"] if _engine.refusal("native") else []
    done = subprocess.run(
        [sys.executable, STRESS, "random-kills", "--seconds", "8", "--json", counts, *engine],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(counts.read_text())
    assert told["failures"] == []
    assert "clean after" in done.stdout
    assert "0 acknowledged events missing" in done.stdout
    assert all(told["counts"][what] for what in COUNTED), told["counts"]
    assert [path.name for path in tmp_path.iterdir()] == [counts.name]
    left = [each for each in set(os.listdir("/dev/shm")) - before if "random-" in each]
    assert left == []
