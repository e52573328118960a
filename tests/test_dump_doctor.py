"""``shmrec-dump doctor``: what it finds on the machine, and what it says is wrong."""

from __future__ import annotations

import json
import mmap
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import shmrec
from shmrec import _engine, fence, recorder
from shmrec.commands.verbs import doctor
from shmrec.layout import DEFAULT_PRODUCERS, DEFAULT_RING_SIZE, LAYOUT_ID

from .dumping import DUMP, dump, dump_json, environment, on_terminal

MIB = 1 << 20
CLOCK = {"name": "clock_gettime(CLOCK_MONOTONIC)", "resolution_ns": 1}


class Space(NamedTuple):
    f_blocks: int
    f_bavail: int
    f_frsize: int


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's /dev/shm may be small; the tests are not about this one."""
    give(monkeypatch, 1024 * MIB)


def give(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: Space(2048 * 256, free // 4096, 4096))


def problems(*args: object, check: int = 1) -> list[str]:
    """What it says is wrong, which is the same in its text and in its JSON."""
    found: list[str] = dump_json("doctor", *args, check=check)["problems"]
    shown = dump("doctor", *args, check=check).stdout.splitlines()
    assert [line for line in shown if line.startswith("problem: ")] == [
        f"problem: {each}" for each in found
    ]
    return found


def test_a_machine_on_which_everything_works(tmp_path: Path) -> None:
    found = dump_json("doctor", "--dir", tmp_path)
    assert found["problems"] == []
    assert found["shmrec"] == shmrec.__version__
    assert found["python"].endswith(platform.python_version())
    assert platform.release() in found["kernel"]
    assert int(found["layout_id"], 16) == LAYOUT_ID
    assert found["engine"]["name"] == shmrec.engine
    assert set(found["engine"]["others"]) == set(_engine.NAMES) - {shmrec.engine}
    assert found["clock"]["name"].endswith("CLOCK_MONOTONIC)")
    assert (found["memory"]["size"], found["memory"]["free"]) == (2048 * MIB, 1024 * MIB)
    assert found["memory"]["rings_that_fit"] == DEFAULT_PRODUCERS
    assert found["directory"] == {
        "path": str(tmp_path),
        "problem": None,
        "mode": "700",
        "exists": True,
        "snapshots": 0,
        "size": 0,
    }
    shown = dump("doctor", "--dir", tmp_path).stdout
    assert re.search(rf"^engine +{shmrec.engine}\b", shown)
    assert f"layout {LAYOUT_ID:#x}" in shown
    assert "1.0 GiB of 2.0 GiB free in /dev/shm" in shown
    assert f"{DEFAULT_PRODUCERS} of {DEFAULT_PRODUCERS} rings" in shown
    assert shown.endswith("\nAll that is needed works.\n")


def test_it_is_text_for_people_on_a_terminal(tmp_path: Path) -> None:
    if dump("doctor", "--dir", tmp_path, check=None, env={}).returncode:
        pytest.skip("something is wrong with this machine")
    shown = on_terminal("doctor", "--dir", tmp_path, columns=60)
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= 60


@pytest.mark.parametrize("asked", ["", *_engine.NAMES])
def test_which_engine_serves_and_why_not_the_other(asked: str, tmp_path: Path) -> None:
    if _engine.refusal(asked):
        pytest.skip(_engine.refusal(asked))
    command = [*DUMP, "doctor", "--json", "--dir", str(tmp_path)]
    env = environment({"SHMREC_ENGINE": asked})
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    engine = json.loads(done.stdout)["engine"]
    refused = _engine.refusal("native")
    assert engine["name"] == (asked or ("python" if refused else "native"))
    assert engine["asked"] == (asked or None)
    (why,) = engine["others"].values()
    if engine["name"] == "python" and refused:
        assert why == refused
    else:
        assert why.startswith("SHMREC_ENGINE asks" if asked else "it can serve")


def test_an_engine_that_cannot_serve_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHMREC_ENGINE", raising=False)
    monkeypatch.setattr(recorder.default, "engine", "python")
    monkeypatch.setattr(_engine, "refusal", lambda name: "it was not built" * (name == "native"))
    assert dump_json("doctor")["engine"] == {
        "name": "python",
        "asked": None,
        "others": {"native": "it was not built"},
    }
    assert re.search(r"^not native +it was not built$", dump("doctor").stdout, re.M)


def test_the_python_engine_on_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder.default, "engine", "python")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    (problem,) = problems()
    assert "aarch64" in problem
    assert "C compiler" in problem
    monkeypatch.setattr(recorder.default, "engine", "native")
    assert problems(check=0) == []


@pytest.mark.parametrize(("free", "rings"), [(64 * MIB, 31), (129 * MIB, 64), (0, 0)])
def test_room_for_a_default_recording(
    free: int, rings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, free)
    enough = rings == DEFAULT_PRODUCERS
    memory = dump_json("doctor", check=int(not enough))["memory"]
    assert memory["rings_that_fit"] == rings
    assert memory["ring_size"] == DEFAULT_RING_SIZE
    found = problems(check=int(not enough))
    assert len(found) == int(not enough)
    if not enough:
        assert f"/dev/shm has room for {rings} of a default recording's 64 rings" in found[0]
        assert "enlarge it" in found[0]


def test_no_shared_memory_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "statvfs", missing)
    (problem,) = problems()
    assert problem.startswith("there is no /dev/shm")
    assert re.search(r"^shared memory +none$", dump("doctor", check=1).stdout, re.M)


def test_shared_memory_that_may_not_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/shm" and allowed(path, mode))
    (problem,) = problems()
    assert problem.startswith("/dev/shm may not be written to")


def test_kernels_that_lack_something_serve_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> Any:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fence, "register", lambda: False)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(mmap, "mmap", refuse)
    found = dump_json("doctor")
    assert (found["membarrier"], found["pidfd"], found["wipe_on_fork"]) == (False, False, False)
    shown = dump("doctor").stdout
    for label in ("membarrier", "pidfd", "wiped on fork"):
        assert re.search(rf"^{label} +no$", shown, re.M)
    for cost in ("second flush proves", "a second late", "only forks made through Python"):
        assert sum(cost in each for each in found["hints"]) == 1
        assert re.search(rf"^hint: .*{cost}", shown, re.M)


def test_a_lack_that_can_be_borne_is_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMREC_SIGNAL", "9")
    tmp_path.chmod(0o750)
    monkeypatch.setattr(doctor, "_clock", lambda: {**CLOCK, "source": "hpet"})
    found = dump_json("doctor", "--dir", tmp_path)
    assert found["problems"] == []
    assert (found["stack_signal"]["number"], found["stack_signal"]["asked"]) == (None, "9")
    assert found["directory"]["mode"] == "750"
    shown = dump("doctor", "--dir", tmp_path).stdout
    for what in ("SHMREC_SIGNAL=9 is no real-time signal", "(mode 750)", "clock source is hpet"):
        assert sum(what in each for each in found["hints"]) == 1
        assert re.search(rf"^hint: .*{re.escape(what)}", shown, re.M)
    # What matters most stands last.
    assert shown.endswith("\nAll that is needed works.\n")
    assert "\x1b[2mhint: " in on_terminal("doctor", "--dir", tmp_path)


def test_a_machine_that_is_not_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Plan 9")
    assert problems() == ["only Linux is supported: record there"]


# The directory of snapshots.


def test_a_directory_with_snapshots(tmp_path: Path) -> None:
    (tmp_path / "web-20260131T120000Z-requested-1.shmrec").write_bytes(b"x" * 2048)
    found = dump_json("doctor", "--dir", tmp_path)["directory"]
    assert (found["snapshots"], found["size"]) == (1, 2048)
    assert f"{tmp_path}: 1 snapshot, 2.0 KiB" in dump("doctor", "--dir", tmp_path).stdout


def test_a_directory_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    assert not dump_json("doctor", "--dir", directory)["directory"]["exists"]
    assert f"{directory}: not made yet" in dump("doctor", "--dir", directory).stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("made", [True, False])
def test_a_directory_that_cannot_be_written_to(
    made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path if made else tmp_path / "a" / "b"
    allowed = os.access
    # Root may write anywhere, whatever the mode.
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: (not mode & os.W_OK or Path(path) != tmp_path) and allowed(path, mode),
    )
    (problem,) = problems("--dir", directory)
    assert problem.startswith(f"{tmp_path} may not be written to")


def test_a_directory_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    (problem,) = problems("--dir", tmp_path)
    assert f"{tmp_path} belongs to user" in problem
    assert "SHMREC_DIR" in problem


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"")
    (problem,) = problems("--dir", file)
    assert problem.startswith(f"{file} is not a directory")
    (problem,) = problems("--dir", file / "below")
    assert problem.startswith(f"{file} is not a directory")
    link.symlink_to(tmp_path)
    (problem,) = problems("--dir", link)
    assert problem.startswith(f"{link} is a symbolic link")
    hanging = tmp_path / "hanging"
    hanging.symlink_to(tmp_path / "nowhere")
    (problem,) = problems("--dir", hanging)
    assert problem.startswith(f"{hanging} is not a directory")


@pytest.mark.parametrize("asked", ["nonsense", "native"])
def test_an_engine_that_was_asked_for_and_cannot_serve_is_a_problem(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMREC_ENGINE", asked)
    monkeypatch.setattr(recorder.default, "engine", recorder.NO_ENGINE)
    monkeypatch.setattr(_engine, "refusal", lambda name: "it was not built" * (name == "native"))
    why = "it was not built" if asked == "native" else "there is no such engine"
    assert problems() == [f"SHMREC_ENGINE={asked}: {why}; unset it, or choose native or python"]


def test_the_tools_work_whatever_engine_is_asked_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DUMP, "doctor", "--dir", str(tmp_path)],
        env=environment({"SHMREC_ENGINE": "nonsense"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert re.search(r"^engine +none: SHMREC_ENGINE=nonsense asks for", done.stdout, re.M)
