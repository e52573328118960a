"""Every input that fuzzing has left behind, and every one that ever crashed, without a fuzzer.

`tools/fuzz/run` looks for more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.fuzz import commands, limits
from tools.fuzz.fuzzing import Outcome, counted
from tools.fuzz.keeping import chosen
from tools.fuzz.limits import TooMuchMemoryError, TooSlowError, limited
from tools.fuzz.target import CORPORA, Target, corpus, targets

TARGETS = targets()
KEPT = 1 << 20
"""Bytes that all corpora may have together."""
PATIENT = 4.0
"""However slow a machine is."""


def thorough(target: Target) -> Callable[[bytes], None]:
    found: Callable[[bytes], None] = getattr(target, "thoroughly", target.check)
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_is_kept_crashes(name: str) -> None:
    found = corpus(name)
    assert len(found) > 3
    target = TARGETS[name]
    for path in found:
        # Those that the fuzzer has found are many.
        check = target.check if path.name.startswith("found-") else thorough(target)
        try:
            with limited(PATIENT):
                check(path.read_bytes())
        except Exception as error:
            error.add_note(f"with tests/corpora/{name}/{path.name}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_kept_and_are_no_larger_than_an_input_may_be(name: str) -> None:
    made = dict(TARGETS[name].seeds())
    assert made.keys() <= {path.name for path in corpus(name)}
    assert max(map(len, made.values())) <= TARGETS[name].LONGEST


def test_corpora_are_small_and_are_of_targets() -> None:
    assert {path.name for path in CORPORA.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for name in TARGETS for path in corpus(name)) < KEPT


def test_what_takes_too_long_or_too_much_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.01)
    with pytest.raises(TooSlowError), limited():
        sum(range(3_000_000))
    monkeypatch.setattr(limits, "SECONDS", 100.0)
    monkeypatch.setattr(limits, "BYTES", 1 << 20)
    with pytest.raises(TooMuchMemoryError), limited():
        # Whatever this process ever took, this is more.
        bytearray(limits._most_resident() + (8 << 20)).count(1)


def test_a_tool_that_prints_what_drives_a_terminal_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="printed"):
        commands._harmless("info", "a\x1b[31m")
    commands._harmless("info", "é\n")


def test_what_covers_nothing_new_is_not_kept() -> None:
    batch = TARGETS["batch"]
    inputs = {str(n): data for n, data in enumerate([b"\0", b"\0\xc0", b"\0\xc0", b"\0\x90"])}
    assert set(chosen(batch, [b"\0"], inputs)) == {"1", "3"}


SAID = """\
#40\tINITED cov: 705 ft: 1705 corp: 35/1219b exec/s: 20 rss: 60Mb
#100\tNEW    cov: 720 ft: 1790 corp: 36/1300b lim: 2048 exec/s: 20 rss: 60Mb L: 9/64 MS: 1 Custom-
#398\tDONE   cov: 727 ft: 1791 corp: 36/1300b lim: 2048 exec/s: 12 rss: 60Mb
stat::number_of_executed_units: 398
"""


def test_a_verdict_has_what_a_session_said() -> None:
    outcome = Outcome("segment", seconds=60.0, inputs=36)
    counted(outcome, SAID)
    counted(outcome, SAID[: SAID.index("#398")])
    assert outcome.line() == (
        "segment: clean after 60 s: 498 executions, coverage 705 -> 727, corpus 36 inputs, "
        "crashes: 0"
    )
    outcome.crashes.append("crash-1")
    assert outcome.line().startswith("segment: FAILED after")
