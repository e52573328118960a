"""Samples of the trials of steps, and that they would notice: what has a fault is found out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.stress.collector_steps import DRIVER
from tools.stress.stepping import Build, build
from tools.stress.steps import played
from tools.stress.tally import Impossible

from ..test_model import named

pytestmark = pytest.mark.stress

ENGINES = ["native", "python"]
SEED = 5
WRITERS = "tools.stress.step_driver"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    folder = tmp_path_factory.mktemp("steps") / "build"
    try:
        yield build(folder)
    except Impossible as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wrong(made: Build, engines: list[str], *arguments: str, driver: str = WRITERS) -> list[str]:
    """What was found in a sample of the schedules."""
    rows = list(played(made, engines, [*arguments, "--seed", str(SEED)], driver=driver))
    assert {row["engine"] for row in rows} == set(engines)
    return [f"{row['where']}: {row}" for row in rows if row["wrong"]]


def test_every_step_that_the_code_names_has_its_stops(made: Build) -> None:
    assert {(stop.step, stop.file) for stop in made.stops} == {
        (step, file) for step, files in named().items() for file in files
    }
    for step, file in {(stop.step, stop.file) for stop in made.stops}:
        stops = [stop for stop in made.stops if (stop.step, stop.file) == (step, file)]
        assert stops[0].edge == "before"


def test_a_sample_of_producers_that_are_killed_stopped_and_interrupted(made: Build) -> None:
    assert not wrong(made, ENGINES, "--sample", "30")


def test_a_sample_of_collectors_that_are_killed(made: Build) -> None:
    events = "death,transfer"
    assert not wrong(made, [""], "--events", events, "--sample", "8", driver=DRIVER)


MUTANTS = {
    "bytes published before they are there": (
        "writer.py",
        "self._view[self._position : end] = data",
        "words[self._w_committed] = self._committed + len(data) + _ONE_EVENT; _STOP[{stop}]; "
        "self._view[self._position : end] = data",
        "kill.*middle.*before payload",
    ),
    "a claim that is interrupted keeps the ring": (
        "claim.py",
        "words[state] = EntryState.FREE",
        "pass",
        "raise.*attach.*after clear",
    ),
    "the events of earlier batches are forgotten": (
        "batch.py",
        "self._events += self._committed >> COUNT_SHIFT",
        "pass",
        "stop.*instant.*full.*before writing-odd",
    ),
}


COLLECTORS = {
    "a death that was told is told again": (
        "takeover.py",
        "settle_told(segment, settings.directory)",
        "pass",
        "death",
        "after sync-directory",
    ),
    "what is being written has its name already": (
        "hidden.py",
        "name = _partial_name()",
        'name = "web-20260101T000000Z-request-1.shmrec"',
        "request",
        "unnamed=False, fresh=False.*after written",
    ),
}


def mutated(made: Build, folder: Path, file: str, right: str, mutant: str) -> Build:
    """A copy of the build in which something else is done instead."""
    shutil.copytree(made.folder, folder)
    path = folder / "shmrec" / file
    text = path.read_text()
    assert text.count(right) == 1
    stop = next(
        stop.number for stop in made.stops if str(stop).startswith("before payload (writer")
    )
    path.write_text(text.replace(right, mutant.replace("{stop}", str(stop))))
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    return Build(folder, made.stops)


@pytest.mark.parametrize("name", MUTANTS)
def test_what_a_writer_does_wrong_is_found(made: Build, tmp_path: Path, name: str) -> None:
    *change, schedules = MUTANTS[name]
    build = mutated(made, tmp_path / "mutant", *change)
    assert wrong(build, ["python"], "--only", schedules, "--sample", "4")


@pytest.mark.parametrize("name", COLLECTORS)
def test_what_a_collector_does_wrong_is_found(made: Build, tmp_path: Path, name: str) -> None:
    *change, event, schedules = COLLECTORS[name]
    options = ["--events", event, "--only", schedules, "--sample", "1"]
    build = mutated(made, tmp_path / "mutant", *change)
    assert wrong(build, [""], *options, driver=DRIVER)
