"""Incidents of a real gunicorn, serving a published application with views that fail.

For each: why it ended, what shows that, who is named first, in which request, and for a hang in
which function; and that ``shmrec-dump info`` says what the README's table of cases quotes of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import shmrec
from shmrec.decoder import OpenSpan
from shmrec.forensics import Analysis, Culprit, Finding, analyse
from shmrec.stack_text import parse
from tests.cgroups import little_memory
from tests.conftest import wait_until
from tests.dumping import dump
from tests.integrations.gunicorn_service import ROOT, Service, Start, configure, version
from tests.integrations.watched import MASTER, WORKER

APP: Final = "tests.integrations.failing_app:app"
ASGI: Final = "tests.integrations.failing_app:asgi"
LIMIT: Final = 256 << 20

SAID: Final = {
    "`kill -9` from outside": ["Killed with SIGKILL", 'gunicorn\'s "Perhaps out of memory?"'],
    "the kernel killed it for want of memory": ["Out of memory: the kernel killed it"],
    "`ctypes.string_at(0)`": [
        "Fatal signal: SIGSEGV in `string_at`",
        "called by the application in `read_nowhere`",
    ],
    "`os.abort()`": ["Fatal signal: SIGABRT in `give_up`"],
    "a request sleeps past the timeout": [
        "Host timeout: ended by its host",
        "inside `request`",
        "executing `sleep_for_long`",
    ],
    "a request loops in Python past the timeout": ["executing `loop_for_long`"],
    "a request loops in C, holding the GIL": ["SIGKILL", "executing `hold_the_gil`"],
    "a request is slow, under the timeout": ["Slow span request of gunicorn worker", "open for"],
    "an exception that nobody handles, in a thread": ["unhandled ValueError in thread helper"],
    "`os._exit(3)` inside a request": ["It ended by itself, with exit code 3"],
    "the master is killed": ["Killed with SIGKILL", "gunicorn master"],
    # These two are staged in the tests of the verdict.
    "an exception that nobody handles ends a process": ["Unhandled exception: ValueError"],
    "two are killed while the kernel counts one": [
        "Killed with SIGKILL, possibly for want of memory: that is not certain"
    ],
}
"""What the README's table quotes of the report, by what happened."""
HANGING: Final = {
    "/sleep": "a request sleeps past the timeout",
    "/loop": "a request loops in Python past the timeout",
    "/gil": "a request loops in C, holding the GIL",
}


class Incident:
    """A snapshot of a service, and who is named first in it."""

    def __init__(self, snapshot: shmrec.Snapshot) -> None:
        self.snapshot = snapshot
        self.analysis: Analysis = analyse(snapshot)
        self.first: Culprit = self.analysis.culprits[0]
        self.culprit: Finding = self.analysis.findings[self.first.finding]

    @property
    def kind(self) -> str:
        assert self.culprit.verdict is not None
        return self.culprit.verdict.kind

    @property
    def evidence(self) -> str:
        assert self.culprit.verdict is not None
        return "\n".join([self.culprit.verdict.text, *self.culprit.verdict.evidence])

    @property
    def request(self) -> OpenSpan:
        """That which the culprit was in the middle of.

        Where a thread holds the GIL, another may not get to say that `Service.ready` was answered.
        """
        (span,) = [each for each in self.culprit.requests if each.args["path"] != "/up"]
        return span

    @property
    def path(self) -> object:
        return self.request.args["path"]

    @property
    def function(self) -> str:
        """The innermost application function of the thread that the request was in."""
        for thread in self.culprit.threads:
            if self.request in thread.spans and thread.stack is not None:
                frame = thread.stack.innermost()
                return frame.function if frame is not None else ""
        return ""

    @property
    def status(self) -> int | None:
        """The exit code, or a signal's number, negative."""
        cause = self.culprit.producer.cause
        assert cause is not None
        return -cause.signal if cause.signal is not None else cause.exit_code

    def says(self, happened: str) -> None:
        """Assert that a person reads what the README's table promises."""
        report = " ".join(dump("info", self.snapshot.path).stdout.split())
        for quoted in SAID[happened]:
            assert quoted in report


def died(service: Service, part: str = "death") -> Incident:
    return Incident(service.snapshot(part))


def test_the_readme_quotes_the_report() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    for happened, quotes in SAID.items():
        (row,) = [row for row in rows if row[0] == happened]
        for quoted in quotes:
            assert quoted in " ".join(row[1:])


def begin(service: Service, path: str) -> None:
    """Ask for a view and wait until a worker is in it."""
    service.ask(path)
    wait_until((service.folder / "gates" / "in-view").exists)


def test_killed_from_outside(start: Start) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    begin(service, "/wait")
    victim = service.inside()
    os.kill(victim, signal.SIGKILL)
    found = died(service)
    assert (found.kind, found.status) == ("killed", -signal.SIGKILL)
    assert (found.first.rank, found.culprit.producer.pid) == ("died", victim)
    assert found.path == "/wait"
    assert "signal 9 (SIGKILL), known from " in found.evidence
    # gunicorn asks "Perhaps out of memory?" each time; the whole machine may have had a kill.
    assert found.culprit.producer.memory
    if not found.culprit.producer.memory["kills"]:
        assert "not for want of memory: the kernel killed none" in found.evidence
        found.says("`kill -9` from outside")


@pytest.mark.parametrize(
    ("path", "number", "said", "function", "happened"),
    [
        ("/segv", signal.SIGSEGV, "Segmentation fault", "read_nowhere", "`ctypes.string_at(0)`"),
        ("/abort", signal.SIGABRT, "Aborted", "give_up", "`os.abort()`"),
    ],
)
def test_a_fatal_signal(
    start: Start, path: str, number: signal.Signals, said: str, function: str, happened: str
) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    service.ask(path)
    found = died(service)
    assert (found.kind, found.status) == ("fatal signal", -number)
    assert f"faulthandler wrote its stacks at '{said}'" in found.evidence
    assert f"({number.name})" in found.evidence
    assert f"`{function}`" in found.evidence
    assert found.path == path
    assert found.function == function
    assert (found.first.rank, found.culprit.producer.label) == ("died", WORKER)
    found.says(happened)


HANGS: Final = [
    # worker class, view, function, whether gunicorn times it out
    ("sync", "/sleep", "sleep_for_long", True),
    ("sync", "/loop", "loop_for_long", True),
    ("sync", "/gil", "hold_the_gil", True),
    pytest.param("gthread", "/sleep", "sleep_for_long", False, marks=pytest.mark.stress),
    pytest.param("gthread", "/loop", "loop_for_long", False, marks=pytest.mark.stress),
    pytest.param("gthread", "/gil", "hold_the_gil", True, marks=pytest.mark.stress),
    pytest.param("gevent", "/sleep", "", False, marks=pytest.mark.stress),
    pytest.param("gevent", "/loop", "loop_for_long", True, marks=pytest.mark.stress),
    pytest.param("gevent", "/gil", "hold_the_gil", True, marks=pytest.mark.stress),
    pytest.param("asgi", "/sleep", "sleep_for_long", True, marks=pytest.mark.stress),
    pytest.param("asgi", "/loop", "loop_for_long", True, marks=pytest.mark.stress),
    pytest.param("asgi", "/gil", "hold_the_gil", True, marks=pytest.mark.stress),
]


@pytest.mark.parametrize(("kind", "path", "function", "timed_out"), HANGS)
def test_a_hang(start: Start, kind: str, path: str, function: str, timed_out: bool) -> None:
    if kind == "asgi" and version() < 24:
        pytest.skip("gunicorn has an ASGI worker from version 24 on")
    config = configure("install(globals(), triggers=['slow_span request* 1.5s'])")
    threads = ["--threads", "2"] if kind == "gthread" else []
    app = ASGI if kind == "asgi" else APP
    service = start("-k", kind, "--timeout", "1", *threads, app=app, config=config).ready()
    service.ask(path)
    if timed_out:
        # Of the worker as it hangs, before gunicorn does anything about it.
        hung = died(service, "timeout")
        assert hung.snapshot.header.trigger == "timeout"
        assert (hung.first.rank, hung.culprit.producer.state) == ("suspect", "running")
        assert hung.path == path
        assert hung.function == function
        # And as it ended.
        found = died(service)
        assert found.kind == "host timeout"
        assert "after 1.0 s" in found.evidence
        assert "its host gave up on it: no answer for longer than 1.0 s" in found.evidence
        assert f"open: `request method=GET path={path}` for " in found.evidence
        assert found.first.rank == "died"
        assert found.culprit.producer.pid == hung.culprit.producer.pid
        # Written as gunicorn aborted it, in C: also where no handler in Python gets to run.
        assert found.culprit.fatal == "Aborted"
        assert ("SIGKILL" in found.evidence) or path != "/gil"
        found.says(HANGING[path])
    else:
        # A thread or greenlet that hangs keeps nobody else from saying that the worker is well.
        found = died(service, "slow-span")
        assert found.snapshot.header.trigger == "slow_span"
        assert (found.first.rank, found.culprit.producer.state) == ("suspect", "running")
    assert found.path == path
    assert found.function == function
    assert found.culprit.producer.label == WORKER


@pytest.mark.parametrize(
    ("kind", "path", "function", "timed_out"),
    [
        ("sync", "/sleep", "sleep_for_long", True),
        pytest.param("gthread", "/sleep", "sleep_for_long", False, marks=pytest.mark.stress),
        # A greenlet that sleeps is in no stack.
        pytest.param("gevent", "/loop", "loop_for_long", True, marks=pytest.mark.stress),
        # Nor is a coroutine; but a loop that is blocked never comes to gunicorn's handler.
        pytest.param("asgi", "/await", "", False, marks=pytest.mark.stress),
    ],
)
def test_at_an_abort_the_stacks_come_first_and_then_the_hosts_own_handling(
    start: Start, kind: str, path: str, function: str, timed_out: bool
) -> None:
    if kind == "asgi" and version() < 24:
        pytest.skip("gunicorn has an ASGI worker from version 24 on")
    before = """
    def worker_abort(worker):
        with open("notes", "a") as file:
            file.write(f"aborted {worker.pid}\\n")
    """
    config = configure("install(globals())", before=before)
    threads = ["--threads", "2"] if kind == "gthread" else []
    app = ASGI if kind == "asgi" else APP
    service = start("-k", kind, "--timeout", "1", *threads, app=app, config=config).ready()
    begin(service, path)
    if not timed_out:
        os.kill(service.inside(), signal.SIGABRT)
    found = died(service)
    victim = found.culprit.producer
    assert (service.folder / "notes").read_text().startswith(f"aborted {victim.pid}\n")
    assert found.culprit.fatal == "Aborted"
    # Of what it was in as the signal came, and not of its handling.
    first = parse(victim.stacks[-1].text)[0]
    functions = [frame.function for thread in first.threads for frame in thread.frames]
    assert function in (*functions, "")
    assert not {"handle_abort", "handle_abort_signal", "worker_abort"} & set(functions)
    assert (found.path, found.function) == (path, function)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with little_memory(LIMIT) as made:
        yield made


def test_out_of_memory(cgroup: Path, start: Start) -> None:
    service = start("-w", "2", app=APP)
    # All that it will start is in there too, as in a container.
    (cgroup / "cgroup.procs").write_text(str(service.pid))
    service.ready(workers=2)
    begin(service, "/memory")
    service.let_out("view")
    found = died(service)
    assert (found.kind, found.status) == ("out of memory", -signal.SIGKILL), found.evidence
    assert (found.first.rank, found.culprit.producer.label) == ("died", WORKER)
    assert "the kernel killed 1 process for want of memory in its cgroup" in found.evidence
    assert found.path == "/memory"
    assert "256.0 MiB of 256.0 MiB allowed" in found.evidence
    assert found.culprit.producer.facts
    found.says("the kernel killed it for want of memory")


def test_an_exception_that_nobody_handles_in_a_thread(start: Start) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    begin(service, "/thread")
    found = died(service, "unhandled")
    assert found.snapshot.header.trigger == "exception"
    assert found.path == "/thread"
    assert found.culprit.verdict is None
    assert (found.first.rank, found.culprit.producer.label) == ("suspect", WORKER)
    told = " ".join(found.first.reasons)
    assert "ValueError: nobody handles this, raised at " in told
    assert "failing_app.py" in told
    found.says("an exception that nobody handles, in a thread")


def test_an_exit_in_the_middle_of_a_request(start: Start) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    service.ask("/leave")
    found = died(service)
    assert (found.kind, found.status) == ("exit code", 3)
    assert "exit code 3, known from " in found.evidence
    assert "it did not detach" in found.evidence
    assert (found.first.rank, found.culprit.producer.label) == ("died", WORKER)
    assert found.path == "/leave"
    found.says("`os._exit(3)` inside a request")


def test_a_killed_master(start: Start) -> None:
    service = start("-w", "1", app=APP).ready()
    begin(service, "/wait")
    os.kill(service.pid, signal.SIGKILL)
    found = died(service)
    assert (found.kind, found.status) == ("killed", -signal.SIGKILL)
    assert "signal 9 (SIGKILL), known from " in found.evidence
    assert (found.first.rank, found.culprit.producer.label) == ("died", MASTER)
    assert found.culprit.producer.pid == service.pid
    found.says("the master is killed")
    (worker,) = [each for each in found.analysis.findings if each.producer.label == WORKER]
    assert [span.args["path"] for span in worker.producer.open_spans] == ["/wait"]
    service.let_out("view")


def test_a_slow_request_below_the_timeout(start: Start) -> None:
    config = configure("install(globals(), triggers=['slow_span request* 0.5s'])")
    service = start("-w", "2", app=APP, config=config).ready(workers=2)
    service.ask("/sleep")
    found = died(service, "slow-span")
    assert found.snapshot.header.trigger == "slow_span"
    assert found.path == "/sleep"
    assert found.function == "sleep_for_long"
    # It lives: the cause is that of the snapshot.
    assert found.culprit.verdict is None
    pid = found.culprit.producer.pid
    reason = f"slow span request of gunicorn worker pid {pid}, open for "
    assert found.snapshot.header.reason.startswith(reason)
    assert found.first.rank == "suspect"
    assert found.first.reasons[0] == "the trigger names it"
    assert (found.culprit.producer.label, found.culprit.producer.state) == (WORKER, "running")
    found.says("a request is slow, under the timeout")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change user")
def test_a_worker_of_another_user_hangs(start: Start) -> None:
    # The application that needs no file later that such a user may not read.
    service = start("-u", "65534", "-g", "65534", "--preload", "--timeout", "1").ready()
    path = service.enter("slow")
    hung = died(service, "timeout")
    assert (hung.path, hung.function) == (path, "app")
    found = died(service)
    assert found.kind == "host timeout"
    assert (found.path, found.function) == (path, "app")
