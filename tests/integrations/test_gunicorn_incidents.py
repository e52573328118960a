"""Incidents of a real gunicorn, serving a published application with views that fail.

For each: why it ended, what shows that, who is named first, in which request, and for a hang in
which function.
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
from shmrec.forensics import Analysis, Finding, analyse
from tests.cgroups import little_memory
from tests.conftest import wait_until
from tests.integrations.gunicorn_service import Service, Start, configure, version
from tests.integrations.watched import MASTER, WORKER

APP: Final = "tests.integrations.failing_app:app"
ASGI: Final = "tests.integrations.failing_app:asgi"
LIMIT: Final = 256 << 20


class Incident:
    """A snapshot of a service, and who is named first in it."""

    def __init__(self, snapshot: shmrec.Snapshot) -> None:
        self.snapshot = snapshot
        self.analysis: Analysis = analyse(snapshot)
        self.culprit: Finding = self.analysis.findings[self.analysis.culprits[0].finding]

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


def died(service: Service, part: str = "death") -> Incident:
    return Incident(service.snapshot(part))


def begin(service: Service, path: str) -> None:
    """Ask for a view and wait until a worker is in it."""
    service.ask(path)
    wait_until((service.folder / "gates" / "in-view").exists)


def test_killed_from_outside(start: Start) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    begin(service, "/wait")
    os.kill(service.inside(), signal.SIGKILL)
    found = died(service)
    assert found.kind == "killed"
    assert found.path == "/wait"
    assert "SIGKILL" in found.evidence
    assert found.culprit.producer.cause is not None
    # gunicorn asks "Perhaps out of memory?" each time.
    if found.culprit.producer.memory:
        assert "memory" in found.evidence


@pytest.mark.parametrize(
    ("path", "number", "function"),
    [("/segv", "SIGSEGV", "read_nowhere"), ("/abort", "SIGABRT", "give_up")],
)
def test_a_fatal_signal(start: Start, path: str, number: str, function: str) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    service.ask(path)
    found = died(service)
    assert found.kind == "fatal signal"
    assert number in found.evidence
    assert function in found.evidence
    assert found.path == path
    assert found.function == function
    assert found.culprit.producer.label == WORKER


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
        assert hung.path == path
        assert hung.function == function
        # And as it ended.
        found = died(service)
        assert found.kind == "host timeout"
        assert "after 1.0 s" in found.evidence
        # Its own handler of SIGABRT never gets to run there.
        assert ("SIGKILL" in found.evidence) or path != "/gil"
    else:
        # A thread or greenlet that hangs keeps nobody else from saying that the worker is well.
        found = died(service, "slow-span")
        assert found.snapshot.header.trigger == "slow_span"
    assert found.path == path
    assert found.function == function
    assert found.culprit.producer.label == WORKER


def test_a_hosts_own_hook_still_runs_when_a_worker_is_aborted(start: Start) -> None:
    before = """
    def worker_abort(worker):
        with open("notes", "a") as file:
            file.write(f"aborted {worker.pid}\\n")
    """
    config = configure("install(globals())", before=before)
    service = start("--timeout", "1", app=APP, config=config).ready()
    service.ask("/sleep")
    victim = died(service).culprit.producer.pid
    assert (service.folder / "notes").read_text() == f"aborted {victim}\n"


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
    assert found.kind == "out of memory", found.evidence
    assert found.path == "/memory"
    assert "256.0 MiB of 256.0 MiB allowed" in found.evidence
    assert found.culprit.producer.facts


def test_an_exception_that_nobody_handles_in_a_thread(start: Start) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    begin(service, "/thread")
    found = died(service, "unhandled")
    assert found.snapshot.header.trigger == "exception"
    assert found.path == "/thread"
    assert found.culprit.verdict is None
    told = " ".join(found.analysis.culprits[0].reasons)
    assert "ValueError" in told
    assert "nobody handles this" in told


def test_an_exit_in_the_middle_of_a_request(start: Start) -> None:
    service = start("-w", "2", app=APP).ready(workers=2)
    service.ask("/leave")
    found = died(service)
    assert found.kind == "exit code"
    assert "3" in found.evidence
    assert found.path == "/leave"


def test_a_killed_master(start: Start) -> None:
    service = start("-w", "1", app=APP).ready()
    begin(service, "/wait")
    os.kill(service.pid, signal.SIGKILL)
    found = died(service)
    assert found.kind == "killed"
    assert found.culprit.producer.label == MASTER
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
    assert found.culprit.verdict is None
    assert found.culprit.producer.state == "running"


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
