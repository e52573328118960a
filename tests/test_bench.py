"""The benchmark runs to its end and reports every case with its floor; no figure is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"


def test_the_cheapest_measurement_runs_and_is_reported(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    ended = subprocess.run(
        [sys.executable, str(BENCH), "import", "--quick", "--json", str(written)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert "import shmrec" in ended.stdout
    assert json.loads(written.read_text())


def test_an_unknown_measurement_is_wrong_usage() -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCH), "nonsense"], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 2
    assert "no measurement 'nonsense'" in ended.stderr
