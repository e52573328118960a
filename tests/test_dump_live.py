"""``shmrec-dump list``, ``ps``, ``snapshot`` and ``recover``, on recordings with real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrec import live, process, store
from shmrec.layout import TRIGGERS
from shmrec.segment import open_segment
from shmrec.snapshot_file import read
from shmrec.wakeup import remove_wakeup

from .conftest import kill_collector, snapshots, wait_until
from .dumping import (
    DUMP,
    HOSTILE,
    Scene,
    a_scene,
    dump,
    dump_json,
    environment,
    failure,
    on_terminal,
)


@pytest.fixture
def scene(recording_name: str, tmp_path: Path) -> Iterator[Scene]:
    with a_scene(recording_name, tmp_path) as scene:
        yield scene


def listed(scene: Scene) -> dict[str, Any]:
    found = dump_json("list", "--dir", scene.directory)
    mine = [each for each in found["recordings"] if each["name"] == scene.name]
    assert len(mine) == 1
    result: dict[str, Any] = mine[0]
    return result


def test_list(scene: Scene) -> None:
    found = listed(scene)
    assert found["state"] == "open"
    assert found["collector"] == scene.collector()
    assert found["producers"] == {"live": 4, "dead": 0, "detached": 1, "unknown": 0}
    assert 0 <= found["heartbeat_age_ns"] < 60_000_000_000
    assert found["generation"] >= 1
    first = dump("snapshot", scene.name, "--reason", "one").stdout.strip()
    second = dump("snapshot", scene.name, "--reason", "two [x]").stdout.strip()
    shown = dump_json("list", "--dir", scene.directory)
    assert shown["directory"] == str(scene.directory)
    assert [each["file"] for each in shown["snapshots"]] == [second, first]
    newest = shown["snapshots"][0]
    assert newest["recording"] == scene.name
    assert newest["reason"] == "two-x"
    # As it was said, not as a file's name has it.
    assert newest["full_reason"] == "two [x]"
    assert newest["size"] == Path(second).stat().st_size
    assert newest["taken_at"].endswith("Z")
    text = dump("--dir", scene.directory).stdout
    assert re.search(rf"{scene.name} +open +pid {found['collector']} +4 live, 1 detached", text)
    assert "two [x] " in text
    assert text.index(Path(second).name) < text.index(Path(first).name)
    assert "\x1b[" not in text
    coloured = on_terminal("list", "--dir", scene.directory)
    assert re.search(r"\x1b\[[\d;]*m", coloured)
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert re.search(rf"{scene.name} +open +pid {found['collector']} +4 live", plain)
    assert "\x1b" not in on_terminal("list", "--dir", scene.directory, env={"NO_COLOR": "1"})


def test_list_says_what_limits_suppressed_and_which_snapshots_come_first(scene: Scene) -> None:
    assert listed(scene)["suppressed"] == {}
    kinds = dict.fromkeys(TRIGGERS, 0) | {"death": 1234, "log": 2}
    with open_segment(scene.name) as segment:
        segment.set_suppressed(kinds)
    assert listed(scene)["suppressed"] == {"death": 1234, "log": 2}
    for first in (True, False):
        names = store.file_names(scene.name, "stall of pid 7", 0, first=first)
        (scene.directory / next(names)).touch()
    found = dump_json("list", "--dir", scene.directory)["snapshots"]
    assert {each["first"] for each in found if "-first-" in each["file"]} == {True}
    assert {each["first"] for each in found if "-first-" not in each["file"]} == {False}
    text = dump("list", "--dir", scene.directory).stdout
    assert f"{scene.name}: snapshots not taken because of limits: 1,234 of death, 2 of log" in text
    [marked] = [line for line in text.splitlines() if "-first-1.shmrec" in line]
    [other] = [line for line in text.splitlines() if "-7-1.shmrec" in line]
    assert re.search(r"stall of pid 7 +first +", marked)
    assert not re.search(r"stall-of-pid-7 +first +", other)


def test_list_says_when_the_collector_is_gone(scene: Scene) -> None:
    scene.kill_collector()
    found = listed(scene)
    assert (found["state"], found["collector"]) == ("open", None)
    assert f"shmrec-collect {scene.name}" in dump("list", "--dir", scene.directory).stdout
    said = failure("snapshot", scene.name)
    assert "has no collector" in said
    assert "recover" in said


def test_list_says_what_is_stale(scene: Scene) -> None:
    scene.kill_everything()
    found = listed(scene)
    assert found["state"] == "stale"
    assert found["producers"] == {"live": 0, "dead": 4, "detached": 1, "unknown": 0}


def test_list_shows_what_cannot_be_read(scene: Scene) -> None:
    with open_segment(scene.name) as segment:
        magic = segment.word("magic")
        segment.set_word("magic", magic + 1)
        try:
            found = listed(scene)
        finally:
            segment.set_word("magic", magic)
    assert found["state"] == "unreadable"
    assert "damaged" in found["problem"]


def test_ps(scene: Scene) -> None:
    found = dump_json("ps", scene.name)
    assert found["name"] == scene.name
    by_label = {each["label"]: each for each in found["producers"]}
    assert set(by_label) == {"master", "worker 0", "worker 1", "worker 2", "left"}
    assert by_label["left"]["state"] == "detached"
    for number, pid in enumerate(scene.workers):
        worker = by_label[f"worker {number}"]
        assert (worker["pid"], worker["state"]) == (pid, "running")
        assert worker["recorded"] == 7
        assert worker["last_event_age_ns"] > 0
        assert sum(worker["lost"].values()) == 0
        request, query = worker["open_spans"]
        assert request["name"] == "request"
        assert request["args"] == {"method": "GET", "path": f"/slow/{number}"}
        assert query["name"] == f"query {HOSTILE}"
        for span in (request, query):
            assert span["thread"] == pid
            assert span["thread_name"] == "MainThread"
            assert span["age_ns"] > 0
    shown = dump("ps", scene.name).stdout
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "[bold red]x[/]" in shown
    for number in range(3):
        assert re.search(rf"request  method=GET path=/slow/{number} +[\d.]+ (ms|s)\n", shown)
    assert "1 process left in order" in shown
    assert "left" in dump("ps", scene.name, "--all").stdout
    coloured = on_terminal("ps", scene.name)
    assert "\x1b[" in coloured
    assert "\x1b]" not in coloured


def test_ps_disturbs_nobody(scene: Scene) -> None:
    with open_segment(scene.name, writable=False) as segment:
        scene.kill_collector()
        before = bytes(segment.view[: segment.geometry.rings_offset])
        dump("ps", scene.name)
        dump("list", "--dir", scene.directory)
        assert bytes(segment.view[: segment.geometry.rings_offset]) == before


def test_ps_of_a_stopped_process(scene: Scene) -> None:
    pid = scene.workers[0]
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        seen = process.stat(pid)
        return seen is not None and seen.state == "T"

    wait_until(stopped)
    found = {each["pid"]: each for each in dump_json("ps", scene.name)["producers"]}
    assert found[pid]["state"] == "stopped"
    assert found[pid]["open_spans"][0]["name"] == "request"
    assert found[scene.workers[1]]["state"] == "running"
    assert re.search(rf"{pid} +worker 0 +stopped ", dump("ps", scene.name).stdout)


def test_ps_of_the_dead(scene: Scene) -> None:
    scene.kill_everything()
    found = {each["pid"]: each for each in dump_json("ps", scene.name)["producers"]}
    for pid in scene.workers:
        assert found[pid]["state"] == "dead"
        assert found[pid]["open_spans"]


def test_ps_while_it_records_fast(scene: Scene) -> None:
    scene.do(
        "import threading; span = shmrec.begin('busy'); "
        "threading.Thread(target=lambda: [shmrec.instant('x' * 200) for _ in iter(int, 1)], "
        "daemon=True).start()"
    )
    for _ in range(3):
        found = {each["label"]: each for each in dump_json("ps", scene.name)["producers"]}
        assert [span["name"] for span in found["master"]["open_spans"]] == ["busy"]


def test_snapshot(scene: Scene) -> None:
    done = dump("snapshot", scene.name, "--reason", "slow [red] since noon")
    path = Path(done.stdout.strip())
    assert path.parent == scene.directory
    assert "slow-red-since-noon" in path.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    snapshot = read(path)
    assert snapshot.header.reason == "slow [red] since noon"
    assert snapshot.complete
    assert len(snapshot.producers) == 5


def test_snapshot_to_a_file(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    link = elsewhere / "link"
    link.symlink_to(elsewhere)
    output = link / "mine.shmrec"
    assert dump("snapshot", scene.name, "-o", output).stdout.strip() == str(output)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert read(output).complete
    before = output.read_bytes()
    assert "exists" in failure("snapshot", scene.name, "-o", output)
    assert output.read_bytes() == before
    assert "no directory" in failure("snapshot", scene.name, "-o", elsewhere / "no" / "x")
    # Nothing is left behind, neither here nor in the collector's directory.
    assert {each.name for each in elsewhere.iterdir()} == {"link", "mine.shmrec"}
    assert list(scene.directory.iterdir()) == []


def test_snapshot_to_standard_output(scene: Scene) -> None:
    done = subprocess.run(
        [*DUMP, "snapshot", scene.name, "-o", "-"],
        capture_output=True,
        env=environment(),
        check=True,
    )
    copy = scene.directory / "copy"
    copy.write_bytes(done.stdout)
    assert read(copy).complete
    assert [each.name for each in scene.directory.iterdir()] == ["copy"]


def test_recover_when_everything_was_killed(scene: Scene) -> None:
    scene.kill_everything()
    with open_segment(scene.name, writable=False) as segment:
        # Up to the last ring that was used: to read the others would give them memory.
        used = segment.geometry.ring(len(scene.workers) + 2)
        before = bytes(segment.view[:used])
        path = Path(dump("recover", scene.name, "--dir", scene.directory).stdout.strip())
        assert bytes(segment.view[:used]) == before
    assert path.parent == scene.directory
    found = {each["label"]: each for each in dump_json("info", path)["producers"]}
    for number in range(3):
        worker = found[f"worker {number}"]
        assert (worker["state"], worker["evidence"]) == ("dead", "cold")
        assert worker["cause"] is None
        assert worker["open_spans"][0]["args"]["path"] == f"/slow/{number}"
    shown = dump("info", path).stdout
    assert shown.startswith("Read from memory that nobody served: recovered\n")
    assert shown.count("Died: ") == 4
    assert "Nothing was flushed" in shown
    assert dump_json("verify", path)["intact"] is True


def test_recover_refuses_while_a_collector_lives(scene: Scene) -> None:
    said = failure("recover", scene.name, "--dir", scene.directory)
    assert str(scene.collector()) in said
    assert f"shmrec-dump snapshot {scene.name}" in said
    assert snapshots(scene.directory) == []
    path = dump("recover", scene.name, "--dir", scene.directory, "--force").stdout.strip()
    states = {each.label: each.state for each in read(path).producers}
    assert states["worker 0"] == "running"


def test_a_recording_in_a_file(recording_name: str, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    program = (
        "import shmrec, os, signal, sys\n"
        f"shmrec.FlightRecorder({recording_name!r}, directory={str(tmp_path)!r}, "
        f"path={str(memory)!r}).start()\n"
        "shmrec.begin('request', path='/x')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [*DUMP[:1], "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        assert owner.stdin is not None
        assert owner.stdout.readline() == "ready\n"
        found = dump_json("ps", "--path", memory)
        assert found["name"] == recording_name
        assert found["producers"][0]["open_spans"][0]["name"] == "request"
        assert "live collector" in failure("recover", "--path", memory)
        taken = dump("snapshot", "--path", memory).stdout.strip()
        assert read(taken).header.recording == recording_name
        with open_segment(recording_name, str(memory), writable=False) as segment:
            kill_collector(segment)
        owner.kill()
        owner.wait()
        path = dump("recover", "--path", memory, "--dir", tmp_path).stdout.strip()
        assert [span.name for span in read(path).producers[0].open_spans] == ["request"]
    finally:
        owner.kill()
        owner.wait()
        with open_segment(recording_name, str(memory), writable=False) as segment:
            remove_wakeup(segment)
        for pipe in (owner.stdin, owner.stdout):
            assert pipe is not None
            pipe.close()


def test_which_recording(recording_name: str, tmp_path: Path) -> None:
    for verb in ("ps", "snapshot", "recover"):
        assert "no recording" in failure(verb, recording_name)
        assert "cannot name a recording" in failure(verb, "../etc\x1b[31m")
        assert "NAME" in failure(verb, "x", "--path", tmp_path, check=2)
        assert failure(verb, "--path", tmp_path / "nothing")


def test_the_only_recording_needs_no_name(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests have recordings too.
    monkeypatch.setattr(live, "names", lambda: [scene.name])
    assert dump_json("ps")["name"] == scene.name
    taken = dump("snapshot").stdout.strip()
    assert read(taken).header.recording == scene.name
    assert f"shmrec-dump snapshot {scene.name}" in failure("recover")


@pytest.mark.parametrize("verb", ["ps", "snapshot", "recover"])
def test_which_of_several_recordings_is_not_guessed(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[live.Recording] = []
    monkeypatch.setattr(live, "recordings", lambda: there)
    assert "there is none" in failure(verb, check=2)
    there.append(live.Recording("other", live.UNREADABLE))
    assert "there is none" in failure(verb, check=2)
    there += [live.Recording("web", live.OPEN), live.Recording("api", live.STALE)]
    line = failure(verb, check=2)
    assert "the NAME of a recording, or --path FILE: there are 2: web (open), api (stale)" in line
    assert "--help" in line


LONG = "web-20260131T120000Z-death-of-gunicorn-worker-pid-17623-signal-9-sigkill-1.shmrec"


@pytest.mark.parametrize("columns", [40, 80, 240])
def test_file_names_are_not_broken(columns: int, tmp_path: Path) -> None:
    others = [LONG.replace("120000", f"12000{n}") for n in range(1, 3)]
    for name in (LONG, *others):
        (tmp_path / name).write_bytes(b"x")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("list", "--dir", tmp_path, columns=columns))
    table = shown[shown.index("Snapshots in") :].splitlines()[1:]
    files = [line for line in table if ".shmrec" in line]
    assert {line.split()[-1] for line in files} == {LONG, *others}
    assert "\ue000" not in shown
    alone = [f"    {name}" for name in (LONG, *others)]
    assert (sorted(files) == alone) == (columns < 240)
    # What would be broken over many lines is left out: the name says it too.
    assert ("reason" in shown) == (columns == 240)
    assert all(len(line) <= columns for line in table if line not in alone)


def test_json_of_an_empty_list(tmp_path: Path) -> None:
    shown = json.loads(dump("list", "--json", "--dir", tmp_path).stdout)
    assert shown["snapshots"] == []
    assert f"No snapshots in {tmp_path}" in dump("list", "--dir", tmp_path).stdout
