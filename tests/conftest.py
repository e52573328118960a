"""Fixtures for tests with real processes: names, waiting, and nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import posix_ipc
import pytest

import shmrec
from shmrec import _engine, naming, process, recorder, requests
from shmrec.errors import ShmrecError
from shmrec.layout import Verb
from shmrec.manifest import Producer
from shmrec.segment import Segment, open_segment
from shmrec.wakeup import open_wakeup
from tools.stress.ended import end

WAIT_SECONDS = 30.0

# What a shell runs in the background ignores SIGINT, and so would what the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
_numbers = itertools.count(1)


# Modules of tests that involve no engine, or several by themselves: with another engine they
# would find the same. `tools/test` leaves them out of every run but its first.
ONCE = {
    "test_bench",
    "test_culprits",
    "test_cuts",
    "test_cgroup",
    "test_comparison",
    "test_corpora",
    "test_counters",
    "test_damage",
    "test_deaths",
    "test_dump_checks",
    "test_dump_completion",
    "test_dump_diff",
    "test_dump_doctor",
    "test_dump_pager",
    "test_dump_export",
    "test_dump_report",
    "test_dump_stacks",
    "test_dump_top",
    "test_dump_usage",
    "test_dump_wording",
    "test_ending",
    "test_engine_choice",
    "test_export_clients",
    "test_exports",
    "test_forensics",
    "test_facts",
    "test_heading",
    "test_generation",
    "test_gunicorn_incidents",
    "test_gunicorn_words",
    "test_kills",
    "test_life",
    "test_hostile_text",
    "test_incidents",
    "test_interpreters",
    "test_killed_at_every_step",
    "test_layers",
    "test_log",
    "test_lookout",
    "test_model",
    "test_native",
    "test_native_leaks",
    "test_native_memory",
    "test_owners",
    "test_packaging",
    "test_random_kills",
    "test_requests",
    "test_scrubbing",
    "test_security",
    "test_segment",
    "test_soak",
    "test_stack_text",
    "test_starved",
    "test_stillness",
    "test_store",
    "test_store_life",
    "test_tracks",
    "test_triggers",
    "test_twins",
    "test_validator",
    "test_verdict",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--again",
        action="store_true",
        help="leave out what a run with another engine has tested already",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--again"):
        left = [item for item in items if item.path.stem in ONCE]
        items[:] = [item for item in items if item.path.stem not in ONCE]
        config.hook.pytest_deselected(items=left)


def pytest_report_header() -> str:
    missing = "".join(
        f"; no {name} engine: {_engine.refusal(name)}"
        for name in _engine.NAMES
        if _engine.refusal(name)
    )
    return f"shmrec {shmrec.__version__}, engine {shmrec.engine}{missing}"


def wait_until(condition: Callable[[], object], timeout: float = WAIT_SECONDS) -> None:
    """Wait until `condition()` is true; fails the test when it does not become so."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {condition}")
        time.sleep(0.005)


@pytest.fixture
def recording_name() -> Iterator[str]:
    """A name that no other test uses; its recording is gone afterwards."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    yield name
    end_recording(name)


def end_recording(name: str) -> None:
    """Kill the recording's collector if there is one, and remove its traces."""
    with contextlib.suppress(ShmrecError), open_segment(name) as left:
        kill_collector(left)
    with contextlib.suppress(posix_ipc.Error):
        posix_ipc.unlink_semaphore(f"/shmrec.{name}")
    naming.remove(name)


def kill_collector(opened: Segment) -> None:
    """SIGKILL the recording's collector, if another process is it, and wait until it is gone."""
    pid, started = opened.collector(), opened.word("collector_start")
    if pid is not None and pid != os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not process.alive(pid, started))


def leftovers(name: str) -> list[str]:
    """What /dev/shm still holds of the recording."""
    names = (f"shmrec.{name}", f"sem.shmrec.{name}")
    return [entry for entry in os.listdir("/dev/shm") if entry in names]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves this worker's segments, or a default recorder that is attached."""
    yield
    mine = [
        entry for entry in os.listdir("/dev/shm") if entry.startswith(f"shmrec.test-{os.getpid()}-")
    ]
    for entry in mine:
        end_recording(entry.removeprefix("shmrec."))
    attached = recorder.default.attached
    if attached:
        shmrec.detach()
    assert not mine, f"left behind: {mine}"
    assert not attached, "the default recorder was left attached"


def noticed(name: str) -> None:
    """Wait until the collector has looked around: it watches everybody who has attached."""
    with open_segment(name) as segment:
        assert requests.tell(segment, open_wakeup(segment), Verb.ENDED)
        wait_until(lambda: not requests.pending(segment))


class Script:
    """A Python program under test: started with source text, spoken to by lines."""

    def __init__(self, source: str, *args: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **(env or {})},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line that it prints; fails the test if it ends instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait()} instead of speaking"
        return line.strip()

    def say(self, line: str = "") -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end_input(self) -> None:
        """It, and whom it forked, read no more lines."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        end(self.process)


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Starts `Script`s and ends them with the test."""
    started: list[Script] = []

    def start(source: str, *args: str, env: dict[str, str] | None = None) -> Script:
        started.append(Script(source, *args, env=env))
        return started[-1]

    yield start
    for each in started:
        each.close()


def by_pid(snapshot: shmrec.Snapshot, pid: int) -> Producer:
    """The first producer of the process in the snapshot."""
    return next(producer for producer in snapshot.producers if producer.pid == pid)


def snapshots(directory: Path, part: str = "") -> list[Path]:
    """The snapshot files whose names hold `part`, oldest first."""
    found = [path for path in directory.glob("*.shmrec") if part in path.name]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)
