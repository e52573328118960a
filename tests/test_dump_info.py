"""``shmrec-dump info``: the report, and its JSON as a contract."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shmrec.layout import LOSSES
from shmrec.manifest import Cause, Header, Producer
from shmrec.ring import Batch
from shmrec.snapshot_file import read

from .dumping import HOSTILE, batch, crash, dump, dump_json, on_terminal, write_file
from .findings import SECOND, header, producer
from .findings import inside as spans


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    return crash(f"test-{os.getpid()}-info", tmp_path_factory.mktemp("info"))


def inside(name: str = "request", *, ago: float = 4, **args: Any) -> list[Batch]:
    return spans((name, ago, args))


def report(path: Path, head: Header, *producers: tuple[Producer, list[Any]]) -> str:
    return dump("info", write_file(path / "x.shmrec", head, list(producers))).stdout


def test_json_of_the_snapshot(crashed: tuple[Path, list[int]]) -> None:
    path, _ = crashed
    found = dump_json("info", path)
    assert found["recording"].endswith("-info")
    assert found["reason"].startswith("death of worker 1 pid ")
    assert found["trigger"] == "death"
    taken = datetime.fromisoformat(found["taken_at"])
    assert taken.utcoffset() is not None
    assert abs(taken.timestamp() - time.time()) < 600
    assert re.search(r"\.\d{6,}", found["taken_at"])
    assert found["flushes"] == 2
    assert found["generations"] == sorted(found["generations"])
    assert found["generations"]
    assert found["complete"] is True
    assert found["damage"] == []
    assert found["file"] == str(path)
    assert found["size"] == path.stat().st_size
    assert {"host", "fenced", "requests", "keep_size", "keep_period_ns"} <= found.keys()


def test_json_of_the_producers(crashed: tuple[Path, list[int]]) -> None:
    path, workers = crashed
    producers = dump_json("info", path)["producers"]
    by_label = {each["label"]: each for each in producers}
    assert set(by_label) == {"master", "worker 0", "worker 1", "worker 2", "left"}
    assert {by_label["worker 0"]["pid"], by_label["worker 2"]["pid"]} < set(workers)
    states = {label: each["state"] for label, each in by_label.items()}
    assert states == {
        "master": "running",
        "worker 0": "running",
        "worker 1": "dead",
        "worker 2": "running",
        "left": "detached",
    }
    for each in producers:
        assert each["evidence"] in ("closed", "idle", "ended")
        assert set(each["lost"]) == {"overwritten", *LOSSES}
        assert all(number == 0 for number in each["lost"].values())
        assert each["oldest_ns"] <= each["newest_ns"]
        assert each["recorded"] == each["events"] + each["trimmed"]
        assert each["engine"]
        assert each["damage"] == []
        if each["label"] != "worker 1":
            assert each["cause"] is None
    dead = by_label["worker 1"]
    assert dead["events"] == 7
    cause = dead["cause"]
    assert set(cause) == {"text", "signal", "exit_code", "source"}
    assert cause["text"] == "signal 9 (SIGKILL)"
    assert (cause["signal"], cause["exit_code"]) == (signal.SIGKILL, None)
    assert cause["source"]


def test_json_of_open_spans(crashed: tuple[Path, list[int]]) -> None:
    path, _ = crashed
    snapshot = read(path)
    found = {each["label"]: each for each in dump_json("info", path)["producers"]}
    dead = found["worker 1"]
    request, query = dead["open_spans"]
    assert request["name"] == "request"
    assert request["args"] == {"method": "GET", "path": "/slow/1"}
    assert query["name"] == f"query {HOSTILE}"
    assert query["args"] == {f"sql{HOSTILE}": HOSTILE}
    known = next(each for each in snapshot.producers if each.label == "worker 1")
    for span in dead["open_spans"]:
        assert span["thread"] == dead["pid"]
        assert span["age_ns"] == snapshot.reference_ns(known) - span["start_ns"] > 0
    assert found["left"]["open_spans"] == []


def test_json_is_one_line_of_ascii(crashed: tuple[Path, list[int]]) -> None:
    shown = dump("info", crashed[0], "--json").stdout
    assert shown.isascii()
    assert shown.count("\n") == 1
    assert all(char.isprintable() for char in shown.strip())


def test_report_of_a_death(crashed: tuple[Path, list[int]]) -> None:
    path, workers = crashed
    shown = dump("info", path, env={}).stdout
    lines = shown.splitlines()
    assert re.fullmatch(r"Death of worker 1 pid \d+: signal 9 \(SIGKILL\)", lines[0])
    assert "-info on " in shown
    died = r"Died: pid \d+ \(worker 1\), [\d.]+ m?s into `request method=GET path=/slow/1`\n"
    assert re.search(died + r" +cause +Killed with SIGKILL.*\n +evidence +signal 9 \(SIG", shown)
    assert re.search(r"\n +request +for [\d.]+ (ms|s) +method=GET path=/slow/1  in MainTh", shown)
    assert "exception ValueError" in shown
    others = shown[shown.index("The others at that moment") : shown.index("Last 7 events of")]
    dead = re.findall(r"Died: pid (\d+)", shown)
    for pid in workers:
        assert (str(pid) in others) == (str(pid) not in dead)
    assert re.search(r"worker 0 .*\n +request  method=GET path=/slow/0 ", others)
    assert re.search(r"Left in order before: pid \d+ \(left\)\.", shown)
    assert "Nothing was lost." in shown
    assert "Complete up to generation" in shown
    # The newest, innermost span comes first, and the dead before the living.
    inner, outer = (shown.index(f"  {name}") for name in ("query \\x1b", "request  "))
    assert inner < outer < shown.index("path=/slow/0")


def assert_harmless(shown: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_nothing_recorded_reaches_the_terminal_or_markup(
    crashed: tuple[Path, list[int]],
) -> None:
    shown = dump("info", crashed[0]).stdout
    assert_harmless(shown)
    assert "[bold red]x[/]" in shown
    assert r"\x1b]0;owned\x07\x1b[31m" in shown
    assert r"\u202e\r\n" in shown
    coloured = on_terminal("info", crashed[0])
    assert "\x1b[" in coloured
    assert_harmless(re.sub(r"\x1b\[[\d;]*m", "", coloured))


def test_no_color(crashed: tuple[Path, list[int]]) -> None:
    shown = on_terminal("info", crashed[0], env={"NO_COLOR": "1"})
    assert_harmless(shown)
    assert "Died: pid" in shown


def test_a_terminal_line_is_as_wide_as_the_terminal(crashed: tuple[Path, list[int]]) -> None:
    for columns in (60, 120):
        shown = on_terminal("info", crashed[0], columns=columns, env={"NO_COLOR": "1"})
        # All but what is there to be copied.
        lines = [line for line in shown.splitlines() if str(crashed[0]) not in line]
        assert max(map(len, lines)) <= columns
        assert len(lines) < len(shown.splitlines())


def test_piped_lines_are_not_broken(tmp_path: Path) -> None:
    path = "/" + "x" * 250
    shown = report(tmp_path, header(), (producer(state="dead"), inside(path=path, note="y" * 30)))
    assert f"request  for 4.0 s  path={path}" in shown
    assert not [line for line in shown.splitlines() if line != line.rstrip()]


def test_file_defaults_to_the_newest_in_the_directory(
    crashed: tuple[Path, list[int]],
) -> None:
    path, _ = crashed
    assert dump_json("info", "--dir", path.parent)["file"] == str(path)
    shown = dump("info", "--json", env={"SHMREC_DIR": str(path.parent)}).stdout
    assert json.loads(shown)["file"] == str(path)


def test_what_fired_by_itself_is_not_said_to_be_a_request(tmp_path: Path) -> None:
    fired = header(trigger="slow_span", reason="slow span x of pid 7", suspects=[0], first=True)
    assert report(tmp_path, fired, (producer(), inside())).startswith("Slow span x of pid 7\n")
    told = dump_json("info", tmp_path / "x.shmrec")
    assert (told["trigger"], told["suspects"], told["first"]) == ("slow_span", [0], True)


def test_who_asked_and_why(tmp_path: Path) -> None:
    asked = [{"pid": 7, "reason": "slow"}, {"pid": 8, "reason": "mine"}]
    shown = report(tmp_path, header(requests=asked), (producer(), inside()))
    assert shown.startswith("Snapshot on request: slow\n")
    assert re.search(r"asked for by +pid 7\n +asked for by +pid 8: mine\n", shown)
    assert "At that moment:" in shown
    assert dump_json("info", tmp_path / "x.shmrec")["requests"] == asked


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "Two flushes, fenced by membarrier (1 idle)."),
        (
            {"fenced": False},
            "membarrier was not available: two flushes carried the proof (1 idle).",
        ),
        (
            {"fenced": False, "flushes": 1},
            "membarrier was not available: one flush, the in-band signal alone (1 idle).",
        ),
        (
            {"fenced": False, "flushes": 0, "trigger": "recover", "reason": "recovered"},
            "Nothing was flushed: the memory was read as it was found.",
        ),
    ],
)
def test_what_proves_it(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    assert report(tmp_path, header(**fields), (producer(), inside())).endswith(f"{said}\n")


def test_a_stalled_one(tmp_path: Path) -> None:
    stalled = producer(state="stalled", evidence="stalled")
    shown = report(tmp_path, header(), (stalled, inside()), (producer(1), []))
    assert re.search(r"100 +w 0 +stalled +4\.0 s before +request", shown)
    assert "Not complete" in shown
    assert "pid 100 (w 0) did not show in time" in shown
    assert dump_json("info", tmp_path / "x.shmrec")["complete"] is False


def test_losses_by_cause(tmp_path: Path) -> None:
    losses = {"overwritten": 12_345, "reentrant": 1, "oversized": 0}
    lossy = producer(losses=losses, trimmed=17)
    shown = report(tmp_path, header(), (lossy, inside()), (producer(1), inside()))
    assert "12,345 events overwritten by newer ones, as a full ring does (pid 100 12,345)" in shown
    assert "1 event made inside another record that never finished (pid 100 1)" in shown
    assert "17 events beyond what a snapshot keeps (1.0 MiB a process, 10.0 s)" in shown
    assert "oversized" not in shown
    lost = dump_json("info", tmp_path / "x.shmrec")["producers"][0]["lost"]
    assert lost["overwritten"] == 12_345
    assert lost["oversized"] == 0


def test_unknown_causes_are_said_to_be_unknown(tmp_path: Path) -> None:
    unknown = producer(state="dead", cause=Cause("unknown", "no wait status could be had"))
    unseen = producer(1, state="dead")
    shown = report(tmp_path, header(), (unknown, inside()), (unseen, []))
    why = r"cause +Why it ended is not known\.\n +evidence +its wait status: "
    assert re.search(rf"{why}no wait status could be had", shown)
    assert re.search(rf"{why}nobody watched it end", shown)
    assert "It was not inside of any span." in shown


def test_many_are_summed_up(tmp_path: Path) -> None:
    left: list[tuple[Producer, list[Any]]]
    left = [(producer(n, state="detached"), []) for n in range(40)]
    dead = [(producer(n, state="dead"), inside(f"s{n}")) for n in range(40, 60)]
    shown = report(tmp_path, header(), *left, *dead)
    assert "20 dead, 40 detached" in shown
    assert shown.count("Died: ") == 8
    assert "12 more died:" in shown
    assert "s59" in shown
    assert "and 36 more." in shown
    assert len(shown.splitlines()) < 150


def test_many_open_spans_are_cut(tmp_path: Path) -> None:
    many = batch(
        [1, 0, 4242, "MainThread"],
        *([4, 1, "wait", n, {"n": n}] for n in range(1, 200)),
        start_ns=96 * SECOND,
    )
    shown = report(tmp_path, header(), (producer(state="dead"), [many]), (producer(1), [many]))
    assert "and 179 more" in shown
    assert "and 196 more" in shown


def test_hostile_headers(tmp_path: Path) -> None:
    head = header(
        recording=HOSTILE,
        reason=HOSTILE,
        host=HOSTILE,
        taken_wall_ns=1 << 63,
        requests=[HOSTILE, {"pid": HOSTILE, "reason": ["x"]}],
        notes=[HOSTILE, 5],
        generations=[HOSTILE],
    )
    bad = producer(
        label=HOSTILE,
        state=HOSTILE,
        evidence=HOSTILE,
        damage=[HOSTILE],
        losses={HOSTILE: 3},
        cause=Cause(HOSTILE, HOSTILE),
    )
    died = producer(1, state="dead", label=HOSTILE, cause=Cause(HOSTILE, HOSTILE))
    file = write_file(tmp_path / "x.shmrec", head, [(bad, inside()), (died, inside())])
    assert_harmless(dump("info", file).stdout)
    assert dump_json("info", file)["recording"] == HOSTILE
