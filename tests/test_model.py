"""The model of the protocol: its steps are the code's, and its quick part holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tools" / "model"
STEP = re.compile(r"\bstep: ([a-z-]+)")


BEYOND = "# Not in the model:"


def listed(text: str) -> dict[str, set[str]]:
    """The files of each step in a part of the list, by its name."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    steps = {name: set(files) for name, *files in rows}
    assert len(steps) == len(rows)
    return steps


def modelled() -> dict[str, set[str]]:
    return listed((MODEL / "steps.txt").read_text().split(BEYOND)[0])


def beyond() -> dict[str, set[str]]:
    """Steps that the code names and the model has not."""
    return listed((MODEL / "steps.txt").read_text().split(BEYOND)[1])


def named() -> dict[str, set[str]]:
    """The same, as the code has it."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "shmrec").glob("*.[pch]*")):
        if path.suffix in (".py", ".c", ".h"):
            for step in STEP.findall(path.read_text()):
                found.setdefault(step, set()).add(path.name)
    return found


def test_the_code_names_the_steps_that_are_listed_where_they_are_listed() -> None:
    assert not modelled().keys() & beyond().keys()
    assert named() == modelled() | beyond()


def test_the_model_names_the_same_steps() -> None:
    assert set(STEP.findall((MODEL / "protocol.pml").read_text())) == set(modelled())


def writer_steps(*names: str) -> list[str]:
    found = [step for name in names for step in STEP.findall((ROOT / "shmrec" / name).read_text())]
    return list(dict.fromkeys(step for step in found if step in modelled()))


def test_the_batch_is_opened_in_the_order_of_the_list_by_both_engines_and_the_model() -> None:
    opening = [name for name, files in modelled().items() if "batch.py" in files]
    assert writer_steps("batch.py") == opening
    native = writer_steps("_native_batch.h")
    assert [step for step in native if step in opening] == opening
    model = STEP.findall((MODEL / "protocol.pml").read_text())
    assert [step for step in model if step in opening] == opening


@pytest.mark.stress
@pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed")
@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler")
def test_the_quick_part_holds_and_its_mutants_are_caught() -> None:
    done = subprocess.run([MODEL / "run", "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_spin_the_command_says_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, MODEL / "explore.py"], capture_output=True, text=True, env={"PATH": ""}
    )
    assert done.returncode == 77
    assert "spin" in done.stderr
