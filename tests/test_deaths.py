"""Noticing deaths and learning their causes, from every source."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shmrec import process
from shmrec.deaths import PARENT, Watcher, cause_of_status, signal_name

from .conftest import wait_until

WAITING = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(WAITING) as made:
        yield made
        made.kill()


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("pidfds", [True, False])
def test_a_killed_process_is_noticed_as_a_zombie_and_after_reaping(
    watcher: Watcher,
    child: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    pidfds: bool,
) -> None:
    if not pidfds:
        without("pidfd_open", monkeypatch)
    watched = watcher.watch(0, 1, child.pid, process.start_ticks(child.pid))
    assert (watched.pidfd >= 0) is pidfds
    assert not watcher.gone(watched)
    child.kill()
    wait_until(lambda: watcher.gone(watched))
    found = watcher.cause(watched)
    assert found is not None
    assert (found.signal, found.exit_code) == (9, None)
    child.wait()
    assert watcher.gone(watched)


def test_the_kernel_tells_the_status_of_a_reaped_process_where_it_can(
    watcher: Watcher, child: subprocess.Popen[bytes]
) -> None:
    watched = watcher.watch(0, 1, child.pid, process.start_ticks(child.pid))
    child.terminate()
    child.wait()
    found = watcher.cause(watched)
    if found is not None:
        assert (found.signal, found.source) == (15, "kernel (pidfd)")


def test_without_the_kernels_word_a_hosts_word_counts_and_else_nothing_is_known(
    watcher: Watcher, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("pidfd_open", monkeypatch)
    watched = watcher.watch(0, 1, child.pid, process.start_ticks(child.pid))
    child.kill()
    child.wait()
    assert watcher.cause(watched) is None
    watcher.told(child.pid, 1 << 70)
    watcher.told(child.pid, -1)
    assert watcher.cause(watched) is None
    watcher.told(child.pid, 9)
    found = watcher.cause(watched)
    assert found is not None
    assert (found.signal, found.source) == (9, "host")
    watcher.told(child.pid, 9, PARENT)
    found = watcher.cause(watched)
    assert found is not None
    assert found.source == PARENT
    watcher.told(child.pid, 9, "x" * 1000)
    found = watcher.cause(watched)
    assert found is not None
    assert len(found.source) < 100


def test_words_are_bounded(watcher: Watcher) -> None:
    for pid in range(10_000):
        watcher.told(pid, 9)
        watcher.timed_out(pid, 1, 1)
    assert len(watcher._told) == len(watcher._timeouts) < 1_000


def test_a_word_of_a_timeout_is_of_that_process(
    watcher: Watcher, child: subprocess.Popen[bytes]
) -> None:
    started = process.start_ticks(child.pid)
    # Of an earlier process with this pid, which had not attached.
    watcher.timed_out(child.pid, 30_000, 5)
    watched = watcher.watch(0, 1, child.pid, started, attached_ns=10)
    assert watched.timeout is None
    watcher.timed_out(child.pid + 1, 30_000, 11)
    watcher.timed_out(child.pid, 1 << 60, 12)
    watcher.timed_out(child.pid, -1, 13)
    assert watched.timeout is None
    watcher.timed_out(child.pid, 20_000, 15)
    assert watched.timeout == (20_000, 15)
    # It came before the process was known.
    watcher.forget(0)
    watcher.timed_out(child.pid, 30_000, 20)
    assert watcher.watch(0, 1, child.pid, started, attached_ns=10).timeout == (30_000, 20)


LEADERLESS = """
import ctypes, os, threading, time
def go_on():
    while open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    os.write(1, b"x")
    os.read(0, 1)
    os._exit(3)
main = threading.main_thread()
threading.Thread(target=go_on).start()
ctypes.CDLL(None).syscall(60, 0)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of exit(2) is of x86-64")
def test_a_process_whose_first_thread_has_ended_has_not(watcher: Watcher) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEADERLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as made:
        assert made.stdout is not None
        watched = watcher.watch(0, 1, made.pid, process.start_ticks(made.pid))
        if watched.pidfd < 0:
            pytest.skip("no pidfds here")
        assert made.stdout.read(1) == b"x"
        assert not watcher.gone(watched)
        made.communicate(b"x")
        assert watcher.gone(watched)
        found = watcher.cause(watched)
        assert found is None or found.exit_code == 3


def test_a_zombie_that_we_may_not_inspect_tells_no_exit_code(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("pidfd_open", monkeypatch)

    def forbidden(path: object) -> str:
        raise PermissionError(path)

    with subprocess.Popen([sys.executable, "-c", "pass"]) as ending:
        started = process.start_ticks(ending.pid)
        wait_until(lambda: not process.alive(ending.pid, started))
        watched = watcher.watch(0, 1, ending.pid, started)
        told = watcher.cause(watched)
        assert told is not None
        assert told.exit_code == 0
        monkeypatch.setattr(os, "readlink", forbidden)
        assert watcher.cause(watched) is None


def test_a_reused_pid_is_another_process(watcher: Watcher) -> None:
    watched = watcher.watch(0, 1, os.getpid(), process.start_ticks(os.getpid()) + 1)
    assert watcher.gone(watched)
    assert watched.pidfd < 0


def test_statuses_are_told_in_words() -> None:
    assert cause_of_status(9, "x").text == "signal 9 (SIGKILL)"
    assert cause_of_status(11 | 0x80, "x").text == "signal 11 (SIGSEGV), core dumped"
    assert cause_of_status(3 << 8, "x").text == "exit code 3"
    assert signal_name(signal.SIGTERM) == "SIGTERM"
    assert signal_name(99) == "SIG99"


def test_no_descriptor_left_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "stat", lambda pid: None)
    assert process.alive(os.getpid(), 1)
