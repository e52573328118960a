"""gunicorn under a flight recorder: real services whose processes die, and what is found."""

from __future__ import annotations

import os
import signal

import pytest

from shmrec.manifest import Producer
from tests.conftest import by_pid, leftovers, wait_until
from tests.integrations.gunicorn_service import Start, configure
from tests.integrations.watched import MASTER, WORKER

SYNC = pytest.param(("-k", "sync"), id="sync")
GTHREAD = pytest.param(("-k", "gthread", "--threads", "4"), id="gthread")
GEVENT = pytest.param(("-k", "gevent"), id="gevent")


def paths_in(producer: Producer) -> list[object]:
    return [span.args.get("path") for span in producer.open_spans if span.name == "request"]


@pytest.mark.parametrize("kind", [SYNC, GTHREAD, GEVENT])
def test_a_killed_worker_is_found_in_the_middle_of_its_request(
    start: Start, kind: tuple[str, ...]
) -> None:
    service = start(*kind, "-w", "3").ready(workers=3)
    path = service.enter("slow", query="?token=do-not-record-this")
    victim = service.inside()

    os.kill(victim, signal.SIGKILL)
    found = service.snapshot("death")

    assert f"pid {victim}: signal 9" in found.header.reason
    dead = by_pid(found, victim)
    assert dead.state == "dead"
    assert dead.cause is not None
    assert dead.cause.signal == signal.SIGKILL
    assert [span.name for span in dead.open_spans] == ["request", "work"]
    assert dead.open_spans[0].args == {"method": "GET", "path": path}
    running = [producer.label for producer in found.producers if producer.state == "running"]
    assert running.count(WORKER) >= 2
    assert running.count(MASTER) == 1
    assert b"do-not-record-this" not in service.snapshots("death")[0].read_bytes()
    wait_until(lambda: len(service.workers()) == 3)


def test_a_view_that_kills_its_worker(start: Start) -> None:
    service = start("-w", "2").ready(workers=2)
    assert service.get_or_none("/die") is None
    found = service.snapshot("death")
    (dead,) = [producer for producer in found.producers if producer.state == "dead"]
    assert paths_in(dead) == ["/die"]
    service.wait_for("worker ended", pid=dead.pid, signal=9)


def test_a_view_that_leaves_without_a_word(start: Start) -> None:
    service = start().ready()
    assert service.get_or_none("/leave") is None
    found = service.snapshot("death")
    (dead,) = [producer for producer in found.producers if producer.state == "dead"]
    assert dead.cause is not None
    assert dead.cause.exit_code == 7
    assert paths_in(dead) == ["/leave"]


def test_a_timeout_is_caught_while_the_request_is_open(start: Start) -> None:
    service = start("-w", "2", "-t", "1").ready(workers=2)
    path = service.enter("stuck")
    victim = service.inside()
    found = service.snapshot("timeout")
    assert found.header.reason == f"timeout of gunicorn worker pid {victim} after 1 s"
    assert found.header.trigger == "timeout"
    assert found.header.suspects == [by_pid(found, victim).index]
    assert paths_in(by_pid(found, victim)) == [path]
    timeouts = [event for event in found if event.name == "worker timeout"]
    assert [(event.label, event.args) for event in timeouts] == [(MASTER, {"pid": victim})]
    wait_until(lambda: victim not in service.workers() and len(service.workers()) == 2)
    # Aborted it leaves by way of sys.exit, and yet as one that died, its request still open.
    dead = by_pid(service.snapshot("death"), victim)
    assert (dead.state, paths_in(dead)) == ("dead", [path])
    assert dead.host["timeout_ms"] == 1000


def test_a_worker_that_cannot_even_be_aborted(start: Start) -> None:
    service = start("-k", "gthread", "--threads", "2", "-w", "2", "-t", "1").ready(workers=2)
    path = service.enter("stopped")
    victim = service.inside()
    os.kill(victim, signal.SIGSTOP)
    found = service.snapshot("timeout")
    assert paths_in(by_pid(found, victim)) == [path]
    dead = by_pid(service.snapshot("death"), victim)
    assert paths_in(dead) == [path]
    assert dead.cause is not None
    assert dead.cause.signal in (signal.SIGABRT, signal.SIGKILL)


def test_a_killed_master_is_recorded_and_the_collector_ends_by_itself(start: Start) -> None:
    service = start("-w", "2", config=configure("install(globals(), linger=0.5)")).ready(2)
    service.collector()
    service.stop(signal.SIGKILL)
    found = service.snapshot("death")
    dead = by_pid(found, service.pid)
    assert dead.label == MASTER
    assert dead.cause is not None
    assert dead.cause.signal == signal.SIGKILL
    wait_until(service.gone)
    assert not leftovers(service.recording)


def test_an_orderly_stop_leaves_nothing(start: Start) -> None:
    service = start("-w", "2").ready(workers=2)
    service.collector()
    assert service.stop() == 0
    wait_until(service.gone, timeout=2)
    assert not leftovers(service.recording)
    assert not service.snapshots()


def test_workers_recycled_all_day_reuse_rings(start: Start) -> None:
    config = configure("install(globals(), producers=6)")
    service = start("-w", "2", "--max-requests", "5", config=config).ready(workers=2)
    pids: set[str] = set()
    while len(pids) < 12:
        pids.add(service.get("/up")[1])
    wait_until(lambda: len(service.workers()) == 2)
    assert service.word("refused_full") == service.word("refused_space") == 0
    assert not service.snapshots()
    assert service.stop() == 0
    assert not service.snapshots()


def test_a_killed_collector_is_replaced_when_a_worker_is(start: Start) -> None:
    service = start("-w", "2").ready(workers=2)
    first = service.collector()
    path = service.enter("slow")
    victim = service.inside()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: service.collector() == 0)
    os.kill(victim, signal.SIGKILL)
    found = service.snapshot("death")
    dead = by_pid(found, victim)
    assert paths_in(dead) == [path]
    assert dead.cause is not None
    assert dead.cause.signal == signal.SIGKILL
    assert service.collector() not in (0, first)
    assert service.stop() == 0
    wait_until(service.gone)
    assert not leftovers(service.recording)


def test_a_stop_after_the_collector_was_killed_leaves_nothing(start: Start) -> None:
    service = start().ready()
    os.kill(service.collector(), signal.SIGKILL)
    wait_until(lambda: service.collector() == 0)
    assert service.stop() == 0
    wait_until(service.gone)
    assert not leftovers(service.recording)


def test_a_recording_that_cannot_be_started_breaks_nothing(start: Start) -> None:
    service = start("-w", "2", environment={"SHMREC_DIR": __file__})
    wait_until(service.up)
    os.kill(service.children()[0], signal.SIGKILL)
    wait_until(lambda: len(service.children()) == 2 and service.up())
    assert service.log().count("[WARNING] shmrec: this service is not recorded") == 1
    assert not leftovers(service.recording)
    assert service.stop() == 0
