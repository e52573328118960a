"""Exceptions that nobody handles: the hooks, chained; processes that end by one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmrec
from shmrec import unhandled
from shmrec.layout import EntryState
from shmrec.segment import Segment

from .conftest import Script, snapshots, wait_until
from .recordings import events_of, recorded, rings, unserved, words


class Watching:
    """What a recorder is told, kept in lists."""

    exceptions = True

    def __init__(self) -> None:
        self.seen: list[tuple[BaseException, Any]] = []
        self.words: list[tuple[str, str]] = []

    def exception(self, exc: BaseException, /, **args: Any) -> None:
        self.seen.append((exc, args["unhandled"]))

    def trigger(self, kind: str, reason: str) -> bool:
        self.words.append((kind, reason))
        return True


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> tuple[Watching, list[Any]]:
    """Hooks installed over ones that keep in a list what they are given."""
    before: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: before.append(args))
    monkeypatch.setattr(threading, "excepthook", before.append)
    monkeypatch.setattr(unhandled, "_witnesses", None)
    monkeypatch.setattr(unhandled, "_ended_pid", 0)
    made = Watching()
    unhandled.install(lambda: [made])
    return made, before


def meet(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


def fail_in_thread(error: BaseException, name: str = "worker") -> None:
    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail, name=name)
    thread.start()
    thread.join()


def test_the_main_threads_exception_is_seen_and_goes_on(
    watching: tuple[Watching, list[Any]],
) -> None:
    made, before = watching
    error = ValueError("x")
    meet(error)
    assert made.seen == [(error, "main")]
    # The process is about to end, which speaks for itself.
    assert made.words == []
    assert before == [(ValueError, error, None)]


def test_a_threads_exception_is_seen_and_told_and_goes_on(
    watching: tuple[Watching, list[Any]],
) -> None:
    made, before = watching
    error = ValueError("x")
    fail_in_thread(error)
    assert made.seen == [(error, "thread")]
    assert made.words == [("exception", "unhandled ValueError in thread worker")]
    assert [args.exc_value for args in before] == [error]
    assert unhandled._ended_pid == 0


def test_a_host_that_goes_on_after_one_has_the_next_recorded_too(
    watching: tuple[Watching, list[Any]],
) -> None:
    meet(ValueError())
    meet(LookupError())
    assert [type(error) for error, _ in watching[0].seen] == [ValueError, LookupError]


def test_ends_in_order_are_no_exceptions(watching: tuple[Watching, list[Any]]) -> None:
    made, before = watching
    meet(KeyboardInterrupt())
    fail_in_thread(SystemExit())
    assert made.seen == []
    assert unhandled._ended_pid == 0
    assert len(before) == 2


def test_a_prompt_goes_on_after_an_exception(
    watching: tuple[Watching, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    meet(ValueError())
    assert [what for _, what in watching[0].seen] == ["main"]
    assert unhandled._ended_pid == 0


def test_a_recorder_that_does_not_want_to_know_is_not_told(
    watching: tuple[Watching, list[Any]],
) -> None:
    made, before = watching
    made.exceptions = False
    meet(ValueError())
    fail_in_thread(ValueError())
    assert (made.seen, made.words) == ([], [])
    assert len(before) == 2


def test_what_was_there_is_called_though_recording_fails(
    watching: tuple[Watching, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, before = watching

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("recording failed")

    monkeypatch.setattr(made, "exception", refuse)
    meet(ValueError())
    fail_in_thread(ValueError())
    assert len(before) == 2


def test_installing_again_changes_nothing(watching: tuple[Watching, list[Any]]) -> None:
    hooks = sys.excepthook, threading.excepthook
    unhandled.install(list)
    assert (sys.excepthook, threading.excepthook) == hooks


def test_a_hook_of_the_applications_that_chains_to_ours_keeps_working(
    watching: tuple[Watching, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, before = watching
    ours = sys.excepthook
    calls = []

    def theirs(*args: Any) -> None:
        calls.append(args)
        ours(*args)

    monkeypatch.setattr(sys, "excepthook", theirs)
    meet(ValueError())
    assert (len(calls), len(made.seen), len(before)) == (1, 1, 1)


def test_hooks_in_a_circle_end_with_pythons_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def theirs(*args: Any) -> None:
        calls.append(args)
        ours(*args)

    monkeypatch.setattr(sys, "excepthook", theirs)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(unhandled, "_witnesses", None)
    monkeypatch.setattr(unhandled, "_ended_pid", 0)
    made = Watching()
    unhandled.install(lambda: [made])
    ours = sys.excepthook
    monkeypatch.setattr(sys, "excepthook", theirs)
    meet(ValueError("in a circle"))
    # Theirs, ours, theirs as what was there before, and ours entered again.
    assert (len(calls), len(made.seen)) == (2, 1)
    assert capsys.readouterr().err == "ValueError: in a circle\n"


# Real processes.


@pytest.fixture
def made(recording_name: str) -> Iterator[Segment]:
    with unserved(recording_name) as opened:
        yield opened


def run(source: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source, *args], capture_output=True, text=True, timeout=60
    )


def states(segment: Segment) -> list[int]:
    return [reader.entry().state for reader in rings(segment)]


def test_a_process_that_an_exception_ends_does_not_detach(made: Segment) -> None:
    source = (
        "import sys, shmrec\n"
        "shmrec.attach(sys.argv[1], required=True)\n"
        "def fail(): raise LookupError('what')\n"
        "fail()\n"
    )
    ended = run(source, made.name)
    assert ended.returncode == 1
    assert ended.stderr.endswith("LookupError: what\n")
    assert states(made) == [EntryState.LIVE]
    [event] = recorded(made)
    assert (event.kind, event.name) == ("exception", "LookupError")
    assert event.args["unhandled"] == "main"
    assert event.args["message"] == "what"
    assert event.args["where"][0].endswith(" fail")


def test_that_is_a_death_to_the_collector(recording_name: str, tmp_path: Path) -> None:
    with shmrec.FlightRecorder(recording_name, directory=tmp_path):
        run("import sys, shmrec; shmrec.attach(sys.argv[1]); 1 / 0", recording_name)
        wait_until(lambda: snapshots(tmp_path, "death"))
    [path] = snapshots(tmp_path, "death")
    snapshot = shmrec.read(path)
    [dead] = [producer for producer in snapshot.producers if producer.state == "dead"]
    assert dead.cause is not None
    assert dead.cause.exit_code == 1
    [event] = [event for event in snapshot if event.kind == "exception"]
    assert (event.pid, event.name, event.args["unhandled"]) == (
        dead.pid,
        "ZeroDivisionError",
        "main",
    )


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("sys.exit(3)", 3),
        ("raise KeyboardInterrupt", -2),
        ("rec.detach(); 1 / 0", 1),
    ],
)
def test_other_ends_are_in_order(made: Segment, source: str, status: int) -> None:
    setup = "import sys, shmrec; rec = shmrec.attach(sys.argv[1], required=True); "
    assert run(setup + source, made.name).returncode == status
    assert states(made) == [EntryState.DETACHED]
    assert recorded(made) == []


def test_without_exceptions_it_is_as_if_there_were_no_hooks(made: Segment) -> None:
    source = (
        "import sys, threading, shmrec\n"
        "hooks = sys.excepthook, threading.excepthook\n"
        "shmrec.attach(sys.argv[1], required=True, exceptions=False)\n"
        "assert not shmrec.attach(sys.argv[1], required=True).exceptions\n"
        "assert hooks == (sys.excepthook, threading.excepthook)\n"
        "1 / 0\n"
    )
    assert run(source, made.name).stderr.endswith("ZeroDivisionError: division by zero\n")
    assert states(made) == [EntryState.DETACHED]
    assert recorded(made) == []


def test_a_thread_that_fails_sends_word_and_the_process_goes_on(
    made: Segment, script: Callable[..., Script]
) -> None:
    other = script(
        "import sys, threading, shmrec\n"
        "shmrec.attach(sys.argv[1], required=True)\n"
        "def fail(): raise ValueError('x')\n"
        "threading.excepthook = lambda args, ours=threading.excepthook: ours(args)\n"
        "sys.stderr = open('/dev/null', 'w')\n"
        "thread = threading.Thread(target=fail, name='poller')\n"
        "thread.start(); thread.join()\n"
        "print('on', flush=True); sys.stdin.readline()\n",
        made.name,
    )
    assert other.line() == "on"
    assert words(made) == [
        ("exception", other.pid, "unhandled ValueError in thread poller"),
    ]
    [event] = recorded(made)
    assert (event.args["unhandled"], event.thread_name) == ("thread", "poller")
    other.say()
    assert other.wait() == 0
    assert states(made) == [EntryState.DETACHED]


def test_a_forked_child_that_fails_before_its_first_event_has_a_ring_for_it(
    made: Segment,
) -> None:
    source = (
        "import os, sys, shmrec\n"
        "shmrec.attach(sys.argv[1], required=True)\n"
        "if os.fork() == 0: raise ValueError('child')\n"
        "os.wait()\n"
    )
    assert run(source, made.name).returncode == 0
    parent, child = rings(made)
    assert (parent.entry().state, child.entry().state) == (EntryState.DETACHED, EntryState.LIVE)
    assert events_of(parent) == []
    assert [event.args["message"] for event in events_of(child)] == ["child"]


CHILDREN = """
import multiprocessing, sys, shmrec

def attach():
    shmrec.attach(sys.argv[1] if len(sys.argv) > 1 else None, required=True)

def fail():
    attach()
    raise ValueError("in the child")

def return_in_order():
    attach()

def exit_in_order():
    attach()
    sys.exit(3)

if __name__ == "__main__":
    attach()
    context = multiprocessing.get_context(sys.argv[2])
    try:
        raise RuntimeError("handled")
    except RuntimeError:
        # Where children fork, this exception is in flight in them as well.
        for target in (fail, return_in_order, exit_in_order):
            child = context.Process(target=target)
            child.start()
            child.join()
            print(child.exitcode)
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(type(pool.submit(fail).exception()).__name__)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessings_children(recording_name: str, tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(CHILDREN)
    with unserved(recording_name, producers=6) as made:
        ended = subprocess.run(
            [sys.executable, str(program), made.name, method],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.stdout.split() == ["1", "0", "3", "ValueError"]
        assert "ValueError: in the child" in ended.stderr
        [event] = recorded(made)
        assert (event.name, event.args["unhandled"]) == ("ValueError", "main")
        [failed] = [reader for reader in rings(made) if events_of(reader)]
        assert failed.entry().state == EntryState.LIVE
        # The pool handles its task's exception: its worker leaves in order, as the rest do.
        assert sorted(states(made)) == [EntryState.LIVE] + [EntryState.DETACHED] * 4


LEAVING = """
import atexit, os, sys, shmrec

def come_and_go():
    shmrec.attach(sys.argv[1], required=True)
    shmrec.detach()

come_and_go()
before = atexit._ncallbacks()
for _ in range(10):
    come_and_go()
# One that forks on and on, as some servers do for every upgrade of theirs.
shmrec.attach(sys.argv[1], required=True)
for _ in range(3):
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    shmrec.instant("forked")
print(atexit._ncallbacks() - before)
"""


def test_leaving_at_the_end_is_kept_once_however_often_one_joins(recording_name: str) -> None:
    with unserved(recording_name, producers=6) as made:
        ended = subprocess.run(
            [sys.executable, "-c", LEAVING, made.name], capture_output=True, text=True, timeout=60
        )
        assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", "", 0)
        # The youngest has left in order, through what it has inherited or what it asked for.
        assert states(made).count(EntryState.DETACHED) >= 2
