"""A sample of ``tools/stress/run hostile``, which tries every kind of scribbling."""

from __future__ import annotations

import argparse

import pytest

from tools.stress import hostile
from tools.stress.scribbling import RUINOUS, SPARING
from tools.stress.tally import Tally


@pytest.mark.stress
def test_scribbling_while_everybody_reads() -> None:
    parser = argparse.ArgumentParser()
    hostile.options(parser)
    tally = Tally("hostile", 20)
    chosen = ["--kinds", "headers", "bombs", "generation", "geometry", "cut-short"]
    given = parser.parse_args(["--seconds", "3", *chosen])
    given.seed = tally.seed
    hostile.run(given, tally)
    assert not tally.failures
    assert tally.counts["events checked"]
    assert tally.counts["collectors that ended in order"]


def test_every_kind_is_named_and_can_be_chosen() -> None:
    assert not SPARING.keys() & RUINOUS.keys()
    for kind in (SPARING | RUINOUS).values():
        assert kind.__doc__
