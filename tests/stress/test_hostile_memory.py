"""A sample of ``tools/stress/run hostile``, which tries every kind of scribbling."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.stress.scribbling import RUINOUS, SPARING

STRESS = Path(__file__).resolve().parents[2] / "tools" / "stress"


@pytest.mark.stress
def test_scribbling_while_everybody_reads(tmp_path: Path) -> None:
    kinds = ("headers", "bombs", "generation", "geometry", "cut-short")
    written = tmp_path / "counts"
    command = [sys.executable, STRESS, "hostile", "--seed", "20", "--json", written]
    # By itself: what is forked from here has been as large as this process is.
    done = subprocess.run(
        [*map(str, command), "--seconds", "3", "--kinds", *kinds], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(written.read_text())["counts"]
    assert counts["events checked"]
    assert counts["answers while it scribbled"]
    assert counts["collectors that ended in order"]


def test_every_kind_is_named_and_can_be_chosen() -> None:
    assert not SPARING.keys() & RUINOUS.keys()
    for kind in (SPARING | RUINOUS).values():
        assert kind.__doc__
