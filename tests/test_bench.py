"""The benchmark runs to its end and reports every case with its floor; no figure is judged."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.bench.rig import Rig
from tools.bench.throughput import Books

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


def results_of(measurement: str, tmp_path: Path) -> list[dict[str, Any]]:
    """What the measurement reports, run quickly and in full view."""
    written = tmp_path / "figures.json"
    ended = subprocess.run(
        [
            sys.executable,
            str(BENCH),
            measurement,
            "--quick",
            "--json",
            str(written),
            "--dir",
            str(tmp_path / "snapshots"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert not list((tmp_path / "snapshots").iterdir())
    results: list[dict[str, Any]] = json.loads(written.read_text())["results"]
    return results


def test_throughput_is_reported_and_every_event_accounted_for(tmp_path: Path) -> None:
    results = results_of("throughput", tmp_path)
    costs = [result["case"] for result in results if result["unit"] == "ns/event"]
    assert costs == [
        f"{producers}, {snapshots}"
        for producers in ("1 producer", "2 producers")
        for snapshots in ("no snapshots", "snapshots continuously")
    ]
    (one, two) = [result for result in results if result["unit"] == "events"]
    assert (one["judged"], one["target"]) == (0, 0), one["notes"]
    assert (two["judged"], two["target"]) == (0, 0), two["notes"]


def test_a_producers_memory_is_reported_beside_that_of_the_same_work(tmp_path: Path) -> None:
    recorded, not_recorded, imported = results_of("memory", tmp_path)
    assert recorded["unit"] == not_recorded["unit"] == imported["unit"] == "MiB"
    # Whatever the machine: memory is not timed, and an import needs some.
    assert recorded["judged"] >= recorded["value"] > 0
    assert imported["value"] > 0


def test_a_web_service_is_measured_with_hooks_and_without(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    if importlib.util.find_spec("httpbin") is None:
        pytest.skip("httpbin is not installed")
    results = {result["case"]: result for result in results_of("web", tmp_path)}
    assert results["sync, hooks off"]["value"] > 0
    assert results["sync, hooks on"]["ratios"]["hooks off"] > 0
    assert set(results["sync, hooks on, ten spans"]["ratios"]) == {
        "hooks off",
        "hooks off, ten empty blocks",
    }
    assert results["sync, one worker, switched on"]["target"] == 1.01


def test_a_snapshot_whose_counts_do_not_add_up_is_miscounted(tmp_path: Path) -> None:
    # The checks of `throughput` themselves: nothing else would tell if they saw nothing.
    with Rig(tmp_path, size=256 << 10, producers=1) as rig:
        rig.grow(1, full=False)
        (work,) = rig.record(1_000)
        right, told_more, other_last = Books(), Books(), Books()
        right.check(rig.flight.snapshot("right"), [work], last=999)
        more = dataclasses.replace(work, recorded=work.recorded + 3)
        told_more.check(rig.flight.snapshot("more"), [more])
        other_last.check(rig.flight.snapshot("last"), [work], last=998)
        rig.flight.recorder.end(12_345)
        other_last.check(rig.flight.snapshot("lost"), [work])
    assert (right.wrong, right.lost) == (0, 0)
    assert right.recorded == right.kept == work.recorded
    assert told_more.wrong == 3
    assert (other_last.wrong, other_last.losses) == (1, {"unmatched": 1})
