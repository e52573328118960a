"""Memory that a process of the recording cuts short while others read it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmrec
from shmrec import cuts, naming, process
from shmrec.collector import Collector
from shmrec.errors import CutShortError, ShmrecError
from shmrec.extension import EXTENSION
from shmrec.layout import Geometry
from shmrec.segment import create, open_segment
from shmrec.takeover import Settings

from .conftest import WAIT_SECONDS, Script, noticed, snapshots, wait_until
from .dumping import dump, failure
from .recordings import unserved

native = pytest.mark.skipif(EXTENSION is None, reason="only the extension can bear it")

PRODUCER = """
import sys, shmrec
recorder = shmrec.attach(sys.argv[1], label=sys.argv[2])
shmrec.begin("request", path="/of/" + sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
shmrec.instant("last")
"""
READER = """
import faulthandler, os, sys
from shmrec import cuts
from shmrec.layout import Geometry
from shmrec.segment import create, open_segment
from shmrec.takeover import Settings
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
def name(recording_name: str) -> Iterator[str]:
    with unserved(recording_name):
        yield recording_name
    naming.remove(recording_name)


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
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, how], capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) == (how == "faulthandler")


def test_a_producer_that_is_cut_off_is_ended_by_the_signal(
    recording_name: str, script: Callable[..., Script]
) -> None:
    with unserved(recording_name) as made:
        producer = script(PRODUCER, recording_name, "a", env={"SHMREC_SIGNAL": "0"})
        assert producer.line() == "ready"
        # An application's handling of signals is its own: nothing of ours catches this one.
        assert not process.signals(producer.pid).caught & process.signal_bit(signal.SIGBUS)
        os.ftruncate(made.fd, 0)
        producer.say()
        assert producer.wait() == -signal.SIGBUS
    naming.remove(recording_name)


def collector(name: str, directory: Path) -> subprocess.Popen[str]:
    found = subprocess.Popen(
        [sys.executable, "-m", "shmrec.commands.collect", name, "--dir", str(directory)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: served(name))
    noticed(name)
    return found


def served(name: str) -> bool:
    try:
        with open_segment(name, writable=False) as segment:
            return segment.collector() is not None
    except ShmrecError:
        return False


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
    with unserved(recording_name) as made:
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
    naming.remove(recording_name)


def test_a_new_collector_keeps_what_is_left(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    with unserved(recording_name) as made:
        made.set_word("collector_pid", 0)
        assert script(PRODUCER, recording_name, "a").line() == "ready"
        os.ftruncate(made.fd, made.geometry.ring(1))
    serving = collector(recording_name, tmp_path)
    serving.terminate()
    _, said = serving.communicate(timeout=WAIT_SECONDS)
    assert serving.returncode == 0
    (kept,) = snapshots(tmp_path)
    assert f"kept as {kept}, and replaced" in said


@native
def test_a_semaphore_that_is_cut_short_costs_a_wait(recording_name: str, tmp_path: Path) -> None:
    serving = collector(recording_name, tmp_path)
    os.truncate(f"/dev/shm/sem.shmrec.{recording_name}", 0)
    # A tool that has it open bears it as well; whoever opens it now does without.
    dump("snapshot", recording_name)
    serving.terminate()
    _, said = serving.communicate(timeout=WAIT_SECONDS)
    assert (serving.returncode, said) == (0, "")


def test_without_the_extension_the_files_size_tells(
    recording_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "EXTENSION", None)
    said: list[str] = []
    with create(
        recording_name, Geometry.of(0, 1), keep_size=0, keep_period_ns=0, collected=True
    ) as made:
        serving = Collector(made, Settings(recording_name, tmp_path, log=said.append))
        os.ftruncate(made.fd, made.geometry.stacks_offset)
        serving.wake()
        with pytest.raises(CutShortError, match="are left, and nobody had recorded anything"):
            serving.run()
    assert not os.path.exists(f"/dev/shm/shmrec.{recording_name}")
