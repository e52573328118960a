"""Joining a recording: attach, fork in all its forms, losses, coming and going."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmrec
from shmrec import layout, naming, recorder, segment
from shmrec.errors import (
    LayoutMismatchError,
    NoSuchRecordingError,
    RecordingNameError,
    SegmentError,
    ShmrecError,
    SpaceError,
    WrongOwnerError,
)
from shmrec.layout import ENTRY, EntryState, Geometry
from shmrec.segment import open_segment

from .conftest import Script, wait_until


@pytest.fixture
def flight(recording_name: str, tmp_path: Path) -> Iterator[shmrec.FlightRecorder]:
    made = shmrec.FlightRecorder(recording_name, directory=tmp_path, max_producers=40)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def unattached(flight: shmrec.FlightRecorder) -> shmrec.FlightRecorder:
    """A recording that this process is not attached to."""
    flight.recorder.detach()
    return flight


def recorded(flight: shmrec.FlightRecorder) -> list[tuple[int, str]]:
    """Pid and name of every event of a new snapshot."""
    return [(event.pid, event.name) for event in shmrec.read(flight.snapshot())]


def run(source: str, *args: str, status: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *args],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout


# Attaching.


def test_before_any_attach_the_functions_do_nothing() -> None:
    shmrec.instant("x", n=1)
    assert shmrec.begin("x") == 0
    shmrec.end(0)
    shmrec.counter("x", 1)
    shmrec.exception(ValueError())
    with shmrec.span("x"):
        pass
    assert shmrec.snapshot("x") is None
    shmrec.detach()


@pytest.mark.skipif(shmrec.engine != "native", reason="the python engine has Python frames")
@pytest.mark.parametrize("name", ["instant", "begin", "end", "span", "counter"])
def test_no_python_frame_stands_between_the_caller_and_the_native_engine(name: str) -> None:
    for call in (getattr(shmrec, name), getattr(shmrec.Recorder(), name)):
        assert type(call) is type(len)


def test_no_module_takes_the_place_of_a_function() -> None:
    source = (
        "import pkgutil, importlib, shmrec\n"
        "for found in pkgutil.walk_packages(shmrec.__path__, 'shmrec.'):\n"
        "    if '.integrations.' not in found.name: importlib.import_module(found.name)\n"
        "print([name for name in shmrec.__all__ if type(getattr(shmrec, name)) is type(shmrec)])\n"
    )
    assert run(source) == "[]\n"


def test_attaching_twice_gives_the_same_recorder_under_the_new_label(
    flight: shmrec.FlightRecorder,
) -> None:
    first = shmrec.attach(flight.name, label="one", required=True)
    assert shmrec.attach(flight.name, required=True) is first
    shmrec.instant("a")
    assert shmrec.attach(flight.name, label="two", required=True) is first
    snapshot = shmrec.read(flight.snapshot())
    assert [p.label for p in snapshot.producers if p.state == "running"] == ["two"]
    shmrec.detach()


def test_the_name_comes_from_the_environment(unattached: shmrec.FlightRecorder) -> None:
    assert os.environ[recorder.ENVIRONMENT] == unattached.name
    assert shmrec.attach(required=True).recording == unattached.name
    shmrec.detach()


def test_who_cannot_join_is_warned_once_and_records_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(recorder.ENVIRONMENT, raising=False)
    with pytest.warns(RuntimeWarning, match="no recording was named"):
        made = shmrec.attach()
    made.instant("x")
    assert made.begin("x") == 0
    assert not made.attached


@pytest.mark.parametrize(
    ("name", "error"),
    [("no-such-recording", NoSuchRecordingError), ("a/b", RecordingNameError)],
)
def test_who_must_join_and_cannot_gets_the_precise_error(
    name: str, error: type[ShmrecError]
) -> None:
    with pytest.raises(error):
        shmrec.attach(name, required=True)
    with pytest.warns(RuntimeWarning, match="not recording"):
        shmrec.attach(name)


def test_another_layout_is_refused(recording_name: str) -> None:
    # Without a collector, which would put it back.
    with segment.create(
        recording_name, Geometry.of(0, 1), keep_size=1 << 20, keep_period_ns=10**10
    ) as made:
        made.set_word("layout_id", made.word("layout_id") ^ 1)
        with pytest.raises(LayoutMismatchError, match="same version"):
            shmrec.attach(made.name, required=True)


def test_wider_permissions_are_refused(unattached: shmrec.FlightRecorder) -> None:
    with open_segment(unattached.name) as opened:
        os.fchmod(opened.fd, 0o640)
        with pytest.raises(WrongOwnerError):
            shmrec.attach(unattached.name, required=True)
        os.fchmod(opened.fd, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(flight: shmrec.FlightRecorder) -> None:
    source = (
        "import os, sys, shmrec\n"
        "os.setuid(65534)\n"
        "try: shmrec.attach(sys.argv[1], required=True)\n"
        "except shmrec.ShmrecError as error: print(type(error).__name__)\n"
    )
    assert run(source, flight.name) == "WrongOwnerError\n"


class Unbindable:
    """An engine that has no memory to be bound with."""

    def __init__(self, engine: object) -> None:
        self._engine = engine

    def bind(self, *_: object, **__: object) -> None:
        raise MemoryError

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


def full(fd: int, offset: int, size: int) -> None:
    raise OSError(28, "No space left on device")


def test_no_space_is_a_clear_error_at_attach(
    recording_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry.of(0, 2)
    with segment.create(recording_name, geometry, keep_size=0, keep_period_ns=0) as made:
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(SpaceError, match="enlarge it"):
            shmrec.attach(made.name, required=True)
        with pytest.warns(RuntimeWarning, match="no room"):
            shmrec.attach(made.name)
        assert made.word("refused_space") == 2
        monkeypatch.undo()
        assert shmrec.attach(made.name, required=True).attached
        shmrec.detach()


def test_without_space_for_a_fresh_ring_a_used_one_serves(
    unattached: shmrec.FlightRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    rec = shmrec.attach(unattached.name, required=True)
    rec.instant("second life")
    with open_segment(unattached.name, writable=False) as opened:
        entries = [opened.geometry.entry(index) for index in range(2)]
        assert [opened.words[ENTRY.word("incarnation", at)] for at in entries] == [2, 0]
        assert opened.word("refused_space") == 0
    assert recorded(unattached) == [(os.getpid(), "second life")]
    rec.detach()


def test_who_cannot_load_what_attaching_needs_takes_no_ring_and_can_try_again(
    unattached: shmrec.FlightRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as starved:
        starved.setattr(recorder, "_unhandled", no_descriptor)
        with pytest.warns(RuntimeWarning, match="a part of shmrec cannot be loaded") as told:
            late = shmrec.attach(unattached.name)
        assert len(told) == 1
        late.instant("nowhere")
        assert (late.attached, late._index) == (False, -1)
    assert shmrec.attach(unattached.name, required=True).attached
    shmrec.detach()


@pytest.mark.parametrize("where", ["reserve", "bind", "install"])
def test_a_ring_that_cannot_be_had_after_all_is_given_back(
    unattached: shmrec.FlightRecorder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SegmentError("not now") if where == "reserve" else MemoryError

    late = shmrec.Recorder()
    if where == "reserve":
        monkeypatch.setattr(segment.Segment, "reserve", refuse)
    elif where == "bind":
        monkeypatch.setattr(late, "_engine", Unbindable(late._engine))
    else:
        monkeypatch.setattr(recorder._unhandled(), "install", refuse)
    opened = open_segment(unattached.name)
    with pytest.raises((SegmentError, MemoryError)):
        late.join(opened, "late")
    with open_segment(unattached.name) as seen:
        states = {
            seen.words[ENTRY.word("state", seen.geometry.entry(index))]
            for index in range(seen.geometry.producers)
        }
    assert states <= {EntryState.FREE, EntryState.DETACHED}
    assert not late.attached
    opened.close()


def test_a_recording_that_ends_is_noticed_and_costs_nothing_further(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    made = shmrec.FlightRecorder(recording_name, directory=tmp_path)
    made.start()
    other = script(
        "import sys, shmrec\n"
        "rec = shmrec.attach(sys.argv[1], required=True)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "shmrec.instant('too late'); shmrec.instant('too late')\n"
        "print(rec.attached, rec.snapshot('x'), flush=True)\n",
        made.name,
    )
    assert other.line() == "ready"
    made.stop()
    other.say()
    assert other.line() == "False None"
    assert other.wait() == 0


def test_attaching_after_the_recording_was_started_again_joins_the_new_one(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    made = shmrec.FlightRecorder(recording_name, directory=tmp_path)
    made.start()
    other = script(
        "import sys, shmrec\n"
        "for name in sys.stdin:\n"
        "    shmrec.attach(sys.argv[1], required=True)\n"
        "    shmrec.instant(name.strip())\n"
        "    print('ready', flush=True)\n",
        made.name,
    )
    other.say("first")
    assert other.line() == "ready"
    made.stop()
    made.start()
    other.say("second")
    assert other.line() == "ready"
    assert recorded(made) == [(other.pid, "second")]
    made.stop()


# What the calls record.


def test_an_exception_is_recorded_with_its_message_and_origin(
    flight: shmrec.FlightRecorder,
) -> None:
    rec = shmrec.attach(flight.name, required=True)

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> None:
        raise ValueError("bad\ud800 value " + "x" * 10_000)

    try:
        fail()
    except ValueError as error:
        rec.exception(error, order=7)
    rec.exception(Unprintable())
    rec.exception(None)  # type: ignore[arg-type]
    first, second = shmrec.read(flight.snapshot())
    assert (first.kind, first.name) == ("exception", "ValueError")
    assert first.args["order"] == 7
    assert first.args["message"].startswith("bad\\ud800 value xxx")
    assert first.args["where"][0].endswith(" fail")
    assert second.args["message"] == "<str raised RuntimeError>"
    rec.detach()


def test_traced_functions_of_all_sorts_are_spans(flight: shmrec.FlightRecorder) -> None:
    import asyncio

    rec = shmrec.attach(flight.name, required=True)

    @rec.traced
    def plain(a: int, b: int = 1) -> int:
        """Add."""
        return a + b

    @rec.traced(name="named")
    def generator() -> Iterator[int]:
        yield 1
        yield 2

    @rec.traced
    async def asynchronous() -> str:
        await asyncio.sleep(0)
        return "x"

    assert plain(1, b=2) == 3
    assert (plain.__name__, plain.__doc__) == ("plain", "Add.")
    assert list(generator()) == [1, 2]
    assert asyncio.run(asynchronous()) == "x"
    events = list(shmrec.read(flight.snapshot()))
    here = "test_traced_functions_of_all_sorts_are_spans.<locals>."
    assert [(e.kind, e.name.removeprefix(here)) for e in events] == [
        (kind, name) for name in ("plain", "named", "asynchronous") for kind in ("begin", "end")
    ]
    rec.detach()


def test_overlapping_tasks_have_spans_of_their_own(flight: shmrec.FlightRecorder) -> None:
    import asyncio

    rec = shmrec.attach(flight.name, required=True)

    async def task(n: int) -> None:
        with rec.span("task", n=n):
            await asyncio.sleep(0.001 * (5 - n))

    async def main() -> None:
        await asyncio.gather(*(task(n) for n in range(5)))

    asyncio.run(main())
    events = list(shmrec.read(flight.snapshot()))
    begun = {e.span: e.args["n"] for e in events if e.kind == "begin"}
    ended = [begun[e.span] for e in events if e.kind == "end"]
    assert sorted(begun.values()) == sorted(ended) == list(range(5))
    assert ended != [begun[e.span] for e in events if e.kind == "begin"]
    rec.detach()


# Forks.


def test_a_forked_child_has_a_ring_of_its_own_from_its_first_event(
    flight: shmrec.FlightRecorder,
) -> None:
    rec = shmrec.attach(flight.name, label="parent", required=True)
    with rec.span("parents"):
        pid = os.fork()
        if pid == 0:
            rec.instant("child")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    rec.instant("parent")
    found = [name for name in recorded(flight) if name[1] != "parents"]
    assert found == [(pid, "child"), (os.getpid(), "parent")]
    rec.detach()


def test_a_child_that_records_nothing_takes_no_ring(flight: shmrec.FlightRecorder) -> None:
    rec = shmrec.attach(flight.name, required=True)
    with open_segment(flight.name, writable=False) as opened:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        entries = [opened.geometry.entry(index) for index in range(2)]
        assert [opened.words[ENTRY.word("incarnation", at)] for at in entries] == [1, 0]
    rec.detach()


def test_leaving_the_parents_span_in_the_child_ends_nothing(
    flight: shmrec.FlightRecorder,
) -> None:
    rec = shmrec.attach(flight.name, required=True)
    with rec.span("parents"):
        pid = os.fork()
        if pid == 0:
            rec.instant("child")
    if pid == 0:
        rec.instant("child again")
        os._exit(0)
    os.waitpid(pid, 0)
    snapshot = shmrec.read(flight.snapshot())
    child = [event for event in snapshot if event.pid == pid]
    assert [event.name for event in child] == ["child", "child again"]
    ends = [event for event in snapshot if event.kind == "end"]
    assert [event.pid for event in ends] == [os.getpid()]
    losses = {p.pid: p.losses["unmatched"] for p in snapshot.producers}
    assert losses[pid] == 0
    rec.detach()


def test_a_warning_made_an_error_does_not_come_out_of_a_recording_call(
    recording_name: str, tmp_path: Path
) -> None:
    made = shmrec.FlightRecorder(recording_name, directory=tmp_path, max_producers=2)
    made.start()
    source = (
        "import os, sys, shmrec\n"
        "shmrec.attach(sys.argv[1], required=True)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    shmrec.instant('no ring is left'); os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    assert run(source, made.name) == "0\n"
    made.stop()


def test_a_fork_from_a_thread_while_others_record(flight: shmrec.FlightRecorder) -> None:
    rec = shmrec.attach(flight.name, required=True)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            rec.instant("busy")

    def fork() -> None:
        with warnings.catch_warnings():
            # Python 3.12 warns of forks in threads, which is what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    rec.instant("forked")
                    os._exit(0)
                pids.append(pid)
                assert os.waitpid(pid, 0)[1] == 0

    pids: list[int] = []
    threads = [threading.Thread(target=busy) for _ in range(3)]
    forking = threading.Thread(target=fork)
    for thread in [*threads, forking]:
        thread.start()
    forking.join()
    stop.set()
    for thread in threads:
        thread.join()
    found = recorded(flight)
    assert [pid for pid, name in found if name == "forked"] == pids
    assert {pid for pid, name in found if name == "busy"} == {os.getpid()}
    rec.detach()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_in_all_start_methods(
    flight: shmrec.FlightRecorder, method: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, sys, shmrec\n"
        "def work(n):\n"
        "    shmrec.attach(required=True)\n"
        "    with shmrec.span('work', n=n):\n"
        "        shmrec.instant('inside', n=n)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    shmrec.attach(label='main', required=True)\n"
        "    shmrec.instant('main')\n"
        "    context = multiprocessing.get_context(sys.argv[1])\n"
        "    children = [context.Process(target=work, args=(n,)) for n in range(3)]\n"
        "    [child.start() for child in children]\n"
        "    [child.join() for child in children]\n"
        "    assert not any(child.exitcode for child in children)\n"
        "    print(*(child.pid for child in children))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(program), method], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    pids = {int(pid) for pid in ended.stdout.split()}
    path = flight.snapshot()
    snapshot = shmrec.read(path)
    inside = {event.pid for event in snapshot if event.name == "inside"}
    assert inside == pids
    states = {producer.pid: producer.state for producer in snapshot.producers}
    assert {states[pid] for pid in pids} == {"detached"}
    assert not list(path.parent.glob("*death*"))


# Losses and crowds.


def test_a_wrapping_ring_counts_its_losses_exactly(flight: shmrec.FlightRecorder) -> None:
    rec = shmrec.attach(flight.name, label="wrapping", required=True)
    with open_segment(flight.name, writable=False) as opened:
        ring = opened.geometry.ring_size
    total = 0
    while total * 40 < 3 * ring:
        for _ in range(1000):
            rec.instant("wrap", n=total, text="x" * 30)
            total += 1
    snapshot = shmrec.read(flight.snapshot())
    producer = next(p for p in snapshot.producers if p.label == "wrapping")
    numbers = [event.args["n"] for event in snapshot if event.name == "wrap"]
    assert numbers == list(range(total - len(numbers), total))
    assert producer.recorded == total
    assert producer.events == len(numbers)
    assert producer.losses["overwritten"] == total - len(numbers) > total // 2
    assert sum(producer.losses.values()) == producer.losses["overwritten"]
    rec.detach()


CROWD = """
import os, random, sys, shmrec
name, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
choose = random.Random(seed)
for n in range(rounds):
    rec = shmrec.attach(name, label=f"{seed}-{n}", required=True)
    for i in range(choose.randrange(50, 400)):
        with shmrec.span("work", i=i):
            pass
    if n < rounds - 1:
        rec.detach()
    print(rec.recording or "-", flush=True)
"""


@pytest.mark.stress
def test_thirty_two_producers_join_and_leave_during_snapshots(
    flight: shmrec.FlightRecorder, script: Callable[..., Script]
) -> None:
    crowd = [script(CROWD, flight.name, str(n), "6") for n in range(32)]
    seen: set[str] = set()
    ended = False
    while not ended:
        # The last look is at what all of them left: on a busy machine it may be the only one.
        ended = all(each.process.poll() is not None for each in crowd)
        snapshot = shmrec.read(flight.snapshot())
        assert not snapshot.verify()
        for producer in snapshot.producers:
            assert not producer.damage
            numbers = [
                event.args["i"]
                for event in snapshot.events(producers={producer.index})
                if event.kind == "begin"
            ]
            assert numbers == list(range(len(numbers)))
            seen.add(producer.label)
        for path in snapshot.path.parent.glob("*.shmrec"):
            path.unlink()
    assert [each.wait() for each in crowd] == [0] * 32
    assert len(seen) > 1
    with open_segment(flight.name, writable=False) as opened:
        claimed = [
            opened.words[ENTRY.word("incarnation", opened.geometry.entry(index))]
            for index in range(opened.geometry.producers)
        ]
        assert sum(claimed) == 1 + 32 * 6
        assert opened.word("refused_full") == 0


def test_a_process_that_execs_leaves_its_ring_and_takes_one_again(
    flight: shmrec.FlightRecorder, script: Callable[..., Script]
) -> None:
    again = script(
        "import os, sys, shmrec\n"
        "shmrec.attach(sys.argv[1], label=sys.argv[2], required=True)\n"
        "shmrec.instant(sys.argv[2])\n"
        "if sys.argv[2] == 'first':\n"
        "    code = sys.orig_argv[sys.orig_argv.index('-c') + 1]\n"
        "    os.execv(sys.executable, [sys.executable, '-c', code, sys.argv[1], 'second'])\n"
        "print('ready', flush=True); sys.stdin.readline()\n",
        flight.name,
        "first",
    )
    assert again.line() == "ready"
    snapshot = shmrec.read(flight.snapshot())
    states = {p.label: p.state for p in snapshot.producers if p.pid == again.pid}
    assert states == {"first": "detached", "second": "running"}


def test_scribbled_counters_do_not_reach_the_application(
    flight: shmrec.FlightRecorder,
) -> None:
    rec = shmrec.attach(flight.name, required=True)
    with open_segment(flight.name) as opened:
        at = opened.geometry.entry(0)
        for word in range(len(layout.LOSSES)):
            opened.words[ENTRY.word("losses", at) + word] = (1 << 64) - 1
        for name in ("opening", "writing", "closed_generation"):
            opened.words[ENTRY.word(name, at)] = (1 << 64) - 1
        opened.set_word("generation", (1 << 64) - 1)
        rec.end(12345)
        rec.instant("x")
        wait_until(lambda: opened.word("generation") < 1 << 63)
        rec.instant("y")
    assert shmrec.read(flight.snapshot()).path.exists()
    rec.detach()


def test_every_ring_taken_is_counted_and_warned_of_once(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    made = shmrec.FlightRecorder(recording_name, directory=tmp_path, max_producers=1)
    made.start()
    source = (
        "import sys, warnings, shmrec\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    shmrec.attach(sys.argv[1])\n"
        "    for n in range(100): shmrec.instant('x')\n"
        "print(len(caught), caught[0].message)\n"
    )
    assert script(source, made.name).line().startswith("1 shmrec: not recording: all 1 rings")
    with open_segment(made.name, writable=False) as opened:
        assert opened.word("refused_full") == 1
        assert opened.words[ENTRY.word("pid", opened.geometry.entry(0))] == os.getpid()
    made.stop()


FORKED = (
    "import os, sys, shmrec\n"
    "shmrec.attach(sys.argv[1], required=True)\n"
    "print('joined', flush=True)\n"
    "child = os.fork()\n"
    "if child:\n    os.waitpid(child, 0)\n    os._exit(0)\n"
    "for _ in sys.stdin:\n    shmrec.instant('x')\n    print('told', flush=True)\n"
)
TWICE = (
    "import ctypes, os, sys, shmrec\n"
    "one, two = (shmrec.attach(name, required=True) for name in sys.argv[1:])\n"
    "both, fork = (one, two), ctypes.PyDLL(None).fork\n"
    "held = [each.begin('held') for each in both]\n"
    "for generation in range(3):\n"
    "    for n in range(5):\n"
    "        for each in both: each.instant(str(generation), n=n)\n"
    "    child = fork()\n"
    "    if child: break\n"
    "else:\n"
    "    os._exit(0)\n"
    "status = os.waitpid(child, 0)[1]\n"
    "for each, span in zip(both, held):\n"
    "    each.instant(str(generation), n=5)\n"
    "    each.end(span)\n"
    "if generation: os._exit(status)\n"
    "print(status, flush=True)\n"
    "sys.stdin.readline()\n"
)


def test_what_c_code_forks_has_a_ring_of_its_own_in_each_recording(
    flight: shmrec.FlightRecorder,
    tmp_path: Path,
    recording_name: str,
    script: Callable[..., Script],
) -> None:
    with shmrec.FlightRecorder(f"{recording_name}-b", directory=tmp_path / "b") as other:
        parent = script(TWICE, flight.name, other.name)
        assert parent.line() == "0"
        for each in (flight, other):
            snapshot = shmrec.read(each.snapshot())
            assert not snapshot.verify()
            found: dict[str, list[tuple[int, int]]] = {}
            for event in snapshot:
                if event.kind == "instant":
                    found.setdefault(event.name, []).append((event.pid, event.args["n"]))
            assert sorted(found) == ["0", "1", "2"]
            assert {pid for pid, _ in found["0"]} == {parent.pid}
            assert len({pid for said in found.values() for pid, _ in said}) == 3
            for said in found.values():
                assert said == [(said[0][0], n) for n in range(6)]
            for producer in snapshot.producers:
                assert not any(producer.losses.values())
                assert not producer.open_spans
        parent.end_input()


RECORDED = FORKED.replace("print('told'", "print(shmrec.recorder.default.attached")


def test_a_fork_that_finds_no_ring_because_of_the_lock_is_counted(
    flight: shmrec.FlightRecorder, script: Callable[..., Script]
) -> None:
    parent = script(FORKED, flight.name)
    assert parent.line() == "joined"
    with open_segment(flight.name) as opened:
        with opened.locked():
            for _ in range(3):
                parent.say()
                assert parent.line() == "told"
            assert opened.word("refused_busy") == opened.refused() == 1
        # Once it has a ring, what it could not record is counted there.
        told = 0
        while opened.refused():
            parent.say()
            assert parent.line() == "told"
            told += 1
        snapshot = shmrec.read(flight.snapshot())
        (child,) = [p for p in snapshot.producers if p.losses.get("late")]
        events = [each for each in snapshot.events() if each.producer == child.index]
        assert len(events) + child.losses["late"] == 3 + told
        assert len(events) >= 1
    parent.end_input()


def test_a_fork_that_ends_before_it_gets_a_ring_stays_counted(
    flight: shmrec.FlightRecorder, script: Callable[..., Script]
) -> None:
    parent = script(FORKED, flight.name)
    assert parent.line() == "joined"
    with open_segment(flight.name) as opened:
        with opened.locked():
            parent.say()
            assert parent.line() == "told"
            parent.end_input()
            parent.wait()
        assert opened.word("refused_busy") == 1


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_who_counts_that_and_is_stopped_or_killed_falsifies_nothing(
    flight: shmrec.FlightRecorder, script: Callable[..., Script], number: int
) -> None:
    counted, uncounted = script(RECORDED, flight.name), script(RECORDED, flight.name)
    counting = script(
        "import fcntl, sys\n"
        "from shmrec.segment import open_segment\n"
        "opened = open_segment(sys.argv[1])\n"
        "opened._lock('busy_lock', fcntl.LOCK_EX)\n"
        "print('counting', flush=True)\n"
        "sys.stdin.readline()\n",
        flight.name,
    )
    assert (counted.line(), uncounted.line()) == ("joined", "joined")

    def attached(child: Script) -> bool:
        child.say()
        return child.line() == "True"

    with open_segment(flight.name) as opened:
        with opened.locked():
            assert counting.line() == "counting"
            counting.process.send_signal(number)
            if number == signal.SIGKILL:
                counting.wait()
            assert not attached(uncounted)
            assert opened.refused() == (number == signal.SIGKILL)
            counting.process.kill()
            counting.process.wait()
            assert not attached(counted)
            assert opened.refused() == 1 + (number == signal.SIGKILL)
        wait_until(lambda: attached(uncounted))
        assert opened.refused() == 1
        wait_until(lambda: attached(counted))
        assert opened.refused() == 0
    for child in (counted, uncounted):
        child.end_input()


def test_who_is_refused_for_another_reason_then_is_not_counted_twice(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    made = shmrec.FlightRecorder(recording_name, directory=tmp_path, max_producers=1)
    made.start()
    made.recorder.detach()
    parent = script(FORKED, made.name)
    assert parent.line() == "joined"
    with open_segment(made.name) as opened:
        with opened.locked():
            parent.say()
            assert parent.line() == "told"
            assert opened.refused() == 1
        while not opened.word("refused_full"):
            parent.say()
            assert parent.line() == "told"
        assert opened.refused() == 1
    parent.end_input()
    parent.process.wait()
    made.stop()


def test_who_is_killed_as_it_claims_a_ring_does_not_keep_it_while_its_old_owner_lives(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    made = shmrec.FlightRecorder(recording_name, directory=tmp_path, max_producers=1)
    made.start()
    shmrec.attach(made.name, required=True).detach()
    killed = script(
        "import os, signal, sys\n"
        "from shmrec import claim, recorder, segment\n"
        "from shmrec.layout import EntryState\n"
        "class Words:\n"
        "    def __init__(self, words): self.words = words\n"
        "    def __getitem__(self, at): return self.words[at]\n"
        "    def __setitem__(self, at, value):\n"
        "        self.words[at] = value\n"
        "        if value == EntryState.CLAIMING and at in states:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "opened = segment.open_segment(sys.argv[1])\n"
        "states = [claim.ENTRY.word('state', opened.geometry.entry(0))]\n"
        "opened.words = Words(opened.words)\n"
        "recorder.Recorder().join(opened, '')\n",
        made.name,
    )
    assert killed.wait() == -signal.SIGKILL
    with open_segment(made.name, writable=False) as opened:
        entry = opened.geometry.entry(0)
        assert opened.words[ENTRY.word("state", entry)] == EntryState.CLAIMING
        assert opened.words[ENTRY.word("pid", entry)] == os.getpid()
    again = shmrec.attach(made.name, required=True)
    assert again.attached
    again.detach()
    made.stop()


def test_events_are_in_shared_memory_when_the_call_returns(
    flight: shmrec.FlightRecorder, script: Callable[..., Script]
) -> None:
    child = script(
        "import os, sys, shmrec\n"
        "shmrec.attach(sys.argv[1], required=True)\n"
        "n = 0\n"
        "while True:\n"
        "    shmrec.instant('n', n=n)\n"
        "    os.write(1, b'%d\\n' % n)\n"
        "    n += 1\n",
        flight.name,
    )
    lines = [child.line() for _ in range(2000)]
    child.kill()
    child.wait()
    assert child.process.stdout is not None
    acknowledged = int([*lines, *child.process.stdout.read().split()][-1])
    wait_until(lambda: list(flight.snapshot().parent.glob("*death*")))
    path = next(flight.snapshot().parent.glob("*death*"))
    last = [event.args["n"] for event in shmrec.read(path) if event.pid == child.pid][-1]
    assert last in (acknowledged, acknowledged + 1)


def test_signal_handlers_garbage_collection_and_threads_at_once(
    flight: shmrec.FlightRecorder,
) -> None:
    source = (
        "import gc, signal, sys, threading, shmrec\n"
        "rec = shmrec.attach(sys.argv[1], required=True)\n"
        "count = 0\n"
        "def handler(*_):\n"
        "    global count; count += 1; rec.instant('signal', n=count)\n"
        "signal.signal(signal.SIGALRM, handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, .001, .0005)\n"
        "gc.callbacks.append(lambda phase, info: rec.instant('gc'))\n"
        "gc.set_threshold(50)\n"
        "def work(t):\n"
        "    for n in range(2000):\n"
        "        with rec.span('work', t=t, n=[n]): pass\n"
        "threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(count)\n"
    )
    handled = int(run(source, flight.name))
    snapshot = shmrec.read(flight.snapshot())
    assert not snapshot.verify()
    events = list(snapshot)
    # A handler may be interrupted by the next one between counting and recording.
    signals = [e.args["n"] for e in events if e.name == "signal"]
    assert sorted(signals) == list(range(1, handled + 1))
    for t in range(3):
        begun = [e for e in events if e.kind == "begin" and e.args.get("t") == t]
        assert [e.args["n"] for e in begun] == [[n] for n in range(2000)]
    assert not any(p.open_spans for p in snapshot.producers)


def test_segments_are_removed_by_name_only() -> None:
    naming.remove("test-that-never-was")
