"""Memory that a process of the recording cuts short while others read it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shmrec
from shmrec.extension import EXTENSION
from shmrec.layout import Geometry
from shmrec.segment import create, open_segment

from .conftest import WAIT_SECONDS, Script, snapshots, wait_until
from .dumping import dump, failure

native = pytest.mark.skipif(EXTENSION is None, reason="only the extension can bear it")

PRODUCER = """
import sys, shmrec
recorder = shmrec.attach(sys.argv[1], label=sys.argv[2])
shmrec.begin("request", path="/of/" + sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
"""
READER = """
import faulthandler, os, sys
from shmrec import cuts
from shmrec.segment import open_segment
if "faulthandler" in sys.argv:
    faulthandler.enable()
cuts.bear_cuts()
with open_segment(sys.argv[1], writable=False) as segment:
    before = bytes(segment.view[:4096])
    os.truncate("/dev/shm/shmrec." + sys.argv[1], int(sys.argv[2]))
    everything = bytes(segment.view)
    print(segment.cut, everything[:4096] == before, everything.count(0) == len(everything))
    # It is borne again and again, and what is written then is nobody else's.
    os.truncate("/dev/shm/shmrec." + sys.argv[1], 0)
    print(segment.words[0], bytes(segment.view).count(0) == len(everything), segment.left)
"""
ELSEWHERE = """
import faulthandler, mmap, os, sys
from shmrec import cuts
if sys.argv[1] == "faulthandler":
    faulthandler.enable()
cuts.bear_cuts()
if sys.argv[1] == "sent":
    os.kill(os.getpid(), 7)
fd = os.memfd_create("other")
os.ftruncate(fd, 4096)
memory = mmap.mmap(fd, 4096)
os.ftruncate(fd, 0)
memory[0]
"""


@pytest.fixture
def name(recording_name: str) -> str:
    with create(recording_name, Geometry.of(0, 4), keep_size=0, keep_period_ns=0) as made:
        made.take_over()
    return recording_name


@native
@pytest.mark.parametrize("left", [0, 4096, 100_000])
@pytest.mark.parametrize("more", [(), ("faulthandler",)])
def test_a_reader_finds_zeros_behind_the_cut(name: str, left: int, more: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READER, name, str(left), *more], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"True {left > 0} {not left}\n0 True 0\n"


@native
@pytest.mark.parametrize("how", ["plain", "faulthandler", "sent"])
def test_a_fault_elsewhere_ends_the_process_as_ever(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, how], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) == (how == "faulthandler")


def test_a_producers_handling_of_signals_is_its_own(
    recording_name: str, tmp_path: Path
) -> None:
    program = """
import signal, sys, shmrec
def caught():
    with open("/proc/self/status") as file:
        return [line for line in file if line.startswith("SigCgt")][0].split()[1]
before = int(caught(), 16) >> signal.SIGBUS - 1 & 1
with shmrec.FlightRecorder(sys.argv[1], directory=sys.argv[2]):
    shmrec.instant("x")
    print(before, int(caught(), 16) >> signal.SIGBUS - 1 & 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, recording_name, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    # faulthandler has it, for the stacks, which is there to be seen; nothing else.
    print(done.stdout, done.stderr)
    assert done.returncode == 0


def collector(name: str, directory: Path) -> subprocess.Popen[str]:
    found = subprocess.Popen(
        [sys.executable, "-m", "shmrec.commands.collect", name, "--dir", str(directory)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: os.path.exists(f"/dev/shm/shmrec.{name}"))
    wait_until(lambda: "ready" in _served(name))
    return found


def _served(name: str) -> str:
    try:
        with open_segment(name, writable=False) as segment:
            return "ready" if segment.collector() else ""
    except shmrec.ShmrecError:
        return ""


@pytest.mark.parametrize("part", ["nothing", "tables", "first ring"])
def test_a_collector_keeps_what_is_left_and_ends_in_order(
    recording_name: str, tmp_path: Path, script: Callable[..., Script], part: str
) -> None:
    serving = collector(recording_name, tmp_path)
    for label in ("a", "b"):
        assert script(PRODUCER, recording_name, label).line() == "ready"
    with open_segment(recording_name) as segment:
        geometry = segment.geometry
        left = {"nothing": 0, "tables": geometry.rings_offset, "first ring": geometry.ring(1)}
        os.ftruncate(segment.fd, left[part])
    _, said = serving.communicate(timeout=WAIT_SECONDS)
    assert serving.returncode == 1, said
    last = said.splitlines()[-1]
    assert last.startswith(f"shmrec-collect: recording '{recording_name}': the memory was cut")
    assert "Traceback" not in said
    (kept,) = snapshots(tmp_path)
    assert str(kept) in last
    found = shmrec.read(kept)
    spans = [[span.args["path"] for span in each.open_spans] for each in found.producers]
    whole = {"nothing": [], "tables": [[], []], "first ring": [["/of/a"], []]}
    assert spans == whole[part]
    assert not os.path.exists(f"/dev/shm/shmrec.{recording_name}")
    for each in found.producers[spans.count(["/of/a"]) :]:
        assert "cut short" in each.damage[0]


@pytest.mark.parametrize("verb", ["ps", "recover"])
def test_tools_read_what_is_left_of_a_recording(
    recording_name: str, tmp_path: Path, script: Callable[..., Script], verb: str
) -> None:
    with create(recording_name, Geometry.of(0, 4), keep_size=0, keep_period_ns=0) as made:
        made.take_over()
        made.set_word("collector_pid", 0)
        for label in ("a", "b"):
            assert script(PRODUCER, recording_name, label).line() == "ready"
        os.ftruncate(made.fd, made.geometry.ring(1))
        args = ["--dir", tmp_path] if verb == "recover" else []
        done = dump(verb, recording_name, *args)
        assert "cut short by a process that has it open" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        if verb == "recover":
            (kept,) = snapshots(tmp_path)
            shown = dump("info", kept).stdout
        else:
            shown = done.stdout
        assert "/of/a" in shown
        assert "/of/b" not in shown
        said = failure("snapshot", recording_name)
        assert "was cut short by a process that has it open" in said
        os.ftruncate(made.fd, 0)
        assert "cut short" in failure(verb, recording_name)


def test_a_new_collector_keeps_what_is_left(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    with create(recording_name, Geometry.of(0, 4), keep_size=0, keep_period_ns=0) as made:
        made.take_over()
        made.set_word("collector_pid", 0)
        assert script(PRODUCER, recording_name, "a").line() == "ready"
        os.ftruncate(made.fd, made.geometry.ring(1))
    serving = collector(recording_name, tmp_path)
    serving.terminate()
    _, said = serving.communicate(timeout=WAIT_SECONDS)
    assert serving.returncode == 0
    (kept,) = snapshots(tmp_path)
    assert f"kept as {kept}, and replaced" in said
