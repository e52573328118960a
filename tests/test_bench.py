"""The benchmark runs to its end and reports every case with its floor; no figure is judged."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.bench import engines, floors, lttng_peer, report
from tools.bench.report import Result
from tools.bench.rig import Rig
from tools.bench.throughput import Books

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"
ATTACHED = (
    "instant(name)",
    'instant(name, n=3, path="/x")',
    "with span(name)",
    "begin(name) + end(id)",
    "counter(name, 7)",
)
UNATTACHED = (*(f"{case}, unattached" for case in ATTACHED), "span(name), unattached")
CLOCK = "no-op+clock"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )


def measured(tmp_path: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """The quick run's JSON, after it has printed the same cases as a table."""
    written = tmp_path / "figures.json"
    ended = run(*arguments, "--quick", "--json", str(written), **environment)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(written.read_text())
    for result in found["results"]:
        assert result["case"] in ended.stdout
    return found


def by_case(found: dict[str, Any], measurement: str) -> dict[str, Any]:
    results = [each for each in found["results"] if each["measurement"] == measurement]
    assert len({each["case"] for each in results}) == len(results)
    return {each["case"]: each for each in results}


def test_the_cheapest_measurement_runs_and_is_reported(tmp_path: Path) -> None:
    assert "import shmrec, over msgpack and posix_ipc" in by_case(
        measured(tmp_path, "import"), "import"
    )


def test_an_unknown_measurement_is_wrong_usage() -> None:
    ended = run("nonsense")
    assert ended.returncode == 2
    assert "no measurement 'nonsense'" in ended.stderr


def test_every_engine_is_measured_with_its_floors(tmp_path: Path) -> None:
    reason = floors.load()
    if isinstance(reason, Exception):
        pytest.skip(str(reason))
    found = measured(tmp_path, "events")
    cases = by_case(found, "events")
    available = {
        engine: found["machine"][f"{engine} engine"] == "available"
        for engine in ("native", "python")
    }
    assert any(available.values())
    assert set(cases) == {
        f"{engine}: {case}" for engine in available for case in (*ATTACHED, *UNATTACHED)
    }
    for name, result in cases.items():
        engine, _, case = name.partition(": ")
        if not available[engine]:
            assert (result["value"], result["verdict"]) == (None, "not measured")
        elif case in ATTACHED:
            assert result["value"] > 0
            scope = {'with scope("request"): pass'} if case.startswith("with") else set()
            wanted = {"pack", "no-op", CLOCK, f"{CLOCK}+copy"} | scope
            assert set(result["ratios"]) == wanted
        else:
            assert result["value"] > 0
            assert len(result["ratios"]) == 1
        assert all(ratio > 0 for ratio in result["ratios"].values())
    assert all(result["value"] > 0 for result in by_case(found, "floors").values())


def test_the_native_engine_has_a_target_and_a_prize_for_every_case(tmp_path: Path) -> None:
    cases = by_case(measured(tmp_path, "events", CC="/nonexistent/cc"), "events")
    bounds = {
        name.removeprefix("native: "): (case["target"], case["prize"], case["target_text"])
        for name, case in cases.items()
        if name.startswith("native: ")
    }
    assert {case: bounds[case] for case in ATTACHED} == {
        "instant(name)": (1.5, 1.25, f"1.5x {CLOCK}"),
        'instant(name, n=3, path="/x")': (2.2, 1.8, f"2.2x {CLOCK}"),
        "with span(name)": (3.3, 2.5, f"3.3x {CLOCK}"),
        "begin(name) + end(id)": (2.8, 2.2, f"2.8x {CLOCK}"),
        "counter(name, 7)": (1.6, 1.3, f"1.6x {CLOCK}"),
    }
    assert {bounds[case][:2] for case in UNATTACHED} == {(1.5, 1.2)}


def test_without_a_compiler_what_needs_one_is_not_measured(tmp_path: Path) -> None:
    found = measured(tmp_path, "events", CC="/nonexistent/cc")
    assert found["machine"]["compiler"].startswith("no C compiler: /nonexistent/cc")
    assert by_case(found, "floors")["in C"]["verdict"] == "not measured"
    cases = by_case(found, "events")
    assert cases["python: instant(name), unattached"]["ratios"] == {}
    assert set(cases["python: instant(name)"]["ratios"]) == {"pack"}
    judged = {name: case for name, case in cases.items() if case["target"] is not None}
    for name, case in judged.items():
        assert (case["verdict"] == "not measured") == name.startswith("native: ")


def test_peers_are_measured_or_said_to_be_missing(tmp_path: Path) -> None:
    # No compiler: nothing of LTTng is started.
    found = measured(tmp_path, "peers", CC="/nonexistent/cc")
    cases = by_case(found, "peers")
    assert cases["logging to a MemoryHandler"]["value"] > 0
    for peer in ("viztracer", "opentelemetry", "sentry", "prometheus", "lttng-ust"):
        lines = [case for name, case in cases.items() if name.startswith(peer)]
        assert lines
        assert all(case["value"] is not None or case["verdict"] == "not measured" for case in lines)
        assert all(case["notes"] for case in lines if case["value"] is None)
    assert re.search(r"lttng|C compiler", cases["lttng-ust"]["notes"])


def test_lttng_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(report.NotMeasuredError, match="not installed: lttng "),
        lttng_peer.running(1),
    ):
        pass


def test_a_tracepoint_of_lttng_is_measured_and_nothing_of_it_stays() -> None:
    def pages() -> set[Path]:
        return set(Path("/dev/shm").glob("lttng-ust-wait-*"))

    before = pages()
    try:
        with lttng_peer.running(10) as sample:
            assert sample() > 0
    except report.NotMeasuredError as reason:
        pytest.skip(str(reason))
    finally:
        assert pages() == before


def test_an_engine_that_recorded_nothing_is_not_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="did not record what it was measured at: 0 events"),
        engines.attached(tmp_path) as recorders,
    ):
        assert "python" in recorders


@pytest.mark.parametrize(
    ("judged", "verdict"),
    [(1.25, "prize"), (1.26, "ok"), (1.5, "ok"), (1.51, "missed"), (None, "not measured")],
)
def test_a_verdict_tells_prize_from_target_from_neither(judged: float | None, verdict: str) -> None:
    assert Result("m", "c", 1.0, "ns", judged=judged, target=1.5, prize=1.25).verdict == verdict


def test_a_result_without_a_promise_has_no_verdict() -> None:
    assert Result("m", "c", 1.0, "ns").verdict == ""
    assert Result("m", "c", 1.0, "ns", judged=9.0, target=9.0).verdict == "ok"


def test_json_may_take_the_table_s_place() -> None:
    ended = run("import", "--quick", "--json", "-")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["results"]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_table_holds_figures_bounds_and_verdicts(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        Result("m", "[quick]", 12.5, "ns", {"floor": 2.0}, 2.0, 3.0, "3x floor", 2.5, "2.5x"),
        Result("m", "none", None, "", notes="not installed"),
    ]
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    report.show({"cpu": "any"}, results, seconds=1.0)
    shown = capsys.readouterr().out
    for word in (
        *("cpu: any", "m: [quick]", "12.5 ns", "2.00x floor", "3x floor", "2.5x", "prize"),
        *("m: none", "not installed", "not measured"),
        "targets: 1 prize, 0 ok, 0 missed, 0 not measured",
    ):
        assert word in shown
    assert ("│" in shown) == terminal


def results_of(tmp_path: Path, measurement: str) -> dict[str, Any]:
    """A quick run's results by case; nothing but the figures may be left of it."""
    snapshots = tmp_path / "snapshots"
    found = by_case(measured(tmp_path, measurement, "--dir", str(snapshots)), measurement)
    assert not list(snapshots.iterdir())
    return found


def test_throughput_is_reported_and_every_event_accounted_for(tmp_path: Path) -> None:
    results = list(results_of(tmp_path, "throughput").values())
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
    results = results_of(tmp_path, "producer-memory")
    recorded = results["a producer, besides its ring, after 100,000 events"]
    assert recorded["judged"] >= recorded["value"] > 0
    assert results["the same work, recorded nowhere"]["unit"] == "MiB"
    # Whatever the machine, an import needs some.
    assert results["import shmrec"]["value"] > 0


def test_looking_is_measured_from_both_sides(tmp_path: Path) -> None:
    cases = by_case(measured(tmp_path, "live", "--idle-seconds", "1"), "live")
    for looker in ("top", "tail"):
        case = cases[f"a producer's event, {looker} looking"]
        assert case["ratios"]["nobody looking"] > 0
        taken = [each for name, each in cases.items() if name.startswith(f"{looker} of ")]
        assert all(each["value"] > 0 for each in taken)
        # Nothing is promised of them, on a machine that others use too.
        assert {each["verdict"] for each in (case, *taken)} == {""}
    assert len(cases) == 5


def test_a_web_service_is_measured_with_hooks_and_without(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    if importlib.util.find_spec("httpbin") is None:
        pytest.skip("httpbin is not installed")
    results = results_of(tmp_path, "web")
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
