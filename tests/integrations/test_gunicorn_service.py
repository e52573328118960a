"""gunicorn's ways of running a service: reload, upgrade, names, users, configurations."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import shmrec
from shmrec.segment import open_segment
from tests.conftest import leftovers, wait_until
from tests.integrations.gunicorn_service import Service, Start, configure, version
from tests.integrations.watched import MASTER


def reload(service: Service, before: set[int]) -> None:
    service.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: not before & set(service.workers()) and len(service.workers()) == len(before)
    )


def test_a_reload_keeps_the_recording_and_records_nothing_twice(start: Start) -> None:
    config = configure("install(globals(), fields=['query'])", "install(globals())")
    service = start("-w", "2", config=config).ready(workers=2)
    collector, before = service.collector(), set(service.workers())
    reload(service, before)
    reload(service, set(service.workers()))
    service.ready(workers=2)
    service.get("/once")
    assert service.collector() == collector
    assert len(service.attached(MASTER)) == 1
    begun = [event for event in service.now() if event.args.get("path") == "/once"]
    assert len(begun) == 1
    assert not service.snapshots("death")
    victim = service.workers()[0]
    os.kill(victim, signal.SIGKILL)
    service.wait_for("worker ended", pid=victim, signal=9)


def test_an_upgrade_runs_two_masters_in_one_recording(start: Start) -> None:
    config = configure("install(globals(), linger=0.5)")
    service = start("-w", "2", config=config).ready(workers=2)
    collector = service.collector()
    service.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(service.attached(MASTER)) == 2 and len(service.workers()) == 4)
    (heir,) = set(service.attached(MASTER)) - {service.pid}
    assert service.stop(signal.SIGQUIT) == 0
    wait_until(lambda: service.attached(MASTER) == [heir] and len(service.workers()) == 2)
    assert service.up()
    assert service.collector() == collector
    assert not service.snapshots()
    os.kill(service.workers()[0], signal.SIGKILL)
    service.snapshot("death")
    wait_until(lambda: len(service.workers()) == 2)
    os.kill(heir, signal.SIGTERM)
    wait_until(service.gone)
    assert not leftovers(service.recording)


@pytest.fixture
def service_names(recording_name: str) -> list[str]:
    """The names that services called after the recording will get."""
    return [f"gunicorn-{recording_name}", f"gunicorn-{recording_name}-2"]


def test_a_name_is_derived_and_namesakes_get_another(
    start: Start, recording_name: str, service_names: list[str], tmp_path: Path
) -> None:
    first, second = service_names
    unnamed = {"SHMREC_RECORDING": ""}
    one = start("-n", recording_name, recording=first, environment=unnamed).ready()
    two = start("-n", recording_name, recording=second, environment=unnamed).ready()
    assert one.collector() != two.collector()
    assert one.attached(MASTER) == [one.pid]
    assert two.attached(MASTER) == [two.pid]

    one.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: len(one.attached(MASTER)) == 2)
    assert two.attached(MASTER) == [two.pid]
    (heir,) = set(one.attached(MASTER)) - {one.pid}
    wait_until(lambda: len(one.workers()) == 2)
    os.kill(heir, signal.SIGTERM)
    wait_until(lambda: one.attached(MASTER) == [one.pid])

    assert one.stop() == two.stop() == 0
    assert not leftovers(first)
    assert not leftovers(second)


def test_what_a_killed_service_left_is_recovered_at_its_next_start(
    start: Start, recording_name: str, service_names: list[str]
) -> None:
    name, unnamed = service_names[0], {"SHMREC_RECORDING": ""}
    service = start("-n", recording_name, recording=name, environment=unnamed).ready()
    path = service.enter("slow")
    service.close(keep=True)
    assert leftovers(name)

    again = start("-n", recording_name, recording=name, environment=unnamed).ready()
    recovered = again.snapshot("recovered")
    spans = [span.args for producer in recovered.producers for span in producer.open_spans]
    assert {"method": "GET", "path": path} in spans
    assert again.stop() == 0
    assert not leftovers(name)


def test_a_recording_that_runs_is_joined_and_outlives_the_service(
    start: Start, recording_name: str, tmp_path: Path
) -> None:
    with shmrec.FlightRecorder(recording_name, directory=tmp_path):
        service = start().ready()
        with open_segment(recording_name, writable=False) as segment:
            collector = segment.collector()
        assert service.stop() == 0
        with open_segment(recording_name, writable=False) as segment:
            assert segment.collector() == collector


def test_a_killed_service_that_is_started_at_once_joins_what_lingers(start: Start) -> None:
    service = start().ready()
    service.stop(signal.SIGKILL)
    again = start().ready()
    assert again.pid in again.attached(MASTER)
    assert again.stop() == 0


def test_an_application_that_records_while_it_is_preloaded(start: Start) -> None:
    service = start("--preload", "-w", "2")
    service.ready(workers=2)
    seen = [event for event in service.now() if event.name == "application imported"]
    assert not seen  # It was imported before there was a recording.
    assert service.attached(MASTER) == [service.pid]


@pytest.mark.parametrize("arguments", ["worker, req", "worker, req, environ", "w, q, e, r"])
def test_hooks_of_ones_own_are_chained(start: Start, arguments: str) -> None:
    config = configure(
        "install(globals())",
        before=f"""
            import os
            def note(what):
                with open("notes", "a") as file:
                    file.write(f"{{what}} {{os.getpid()}}\\n")
            def on_starting(server): note("on_starting")
            def on_reload(server): note("on_reload")
            def on_exit(server): note("on_exit")
            def pre_fork(server, worker): note("pre_fork")
            def post_fork(server, worker): note("post_fork")
            def pre_request(worker, req): note("pre_request")
            def post_request({arguments}): note("post_request")
            post_worker_init = "tests.integrations.gunicorn_app.when_initialised"
        """,
    )
    service = start(config=config).ready()
    reload(service, set(service.workers()))
    service.get("/noted")
    assert service.stop() == 0
    noted = (service.folder / "notes").read_text().split("\n")
    words = [line.split(" ")[0] for line in noted if line]
    assert words[0] == "on_starting"
    assert words[-1] == "on_exit"
    assert words.count("pre_fork") == words.count("post_fork") == words.count("initialised") == 2
    assert words.count("pre_request") == words.count("post_request") >= 2


def test_a_hook_that_raises_is_gunicorns_business(start: Start) -> None:
    before = "def post_request(worker, req): raise RuntimeError('mine')"
    service = start(config=configure("install(globals())", before=before)).ready()
    service.get("/raised")
    ended = [event for event in service.now() if event.kind == "end"]
    assert ended
    assert all(event.args == {"status": 200} for event in ended)
    wait_until(lambda: "RuntimeError: mine" in service.log())


def test_a_hook_of_the_wrong_arity_is_refused_as_ever(start: Start) -> None:
    service = start(config=configure("install(globals())", before="def on_starting(): pass"))
    assert service.process.wait(30) == 1
    assert "Invalid value for on_starting" in service.log()


def lose_collector_and_worker(service: Service) -> None:
    collector, worker = service.collector(), service.workers()[0]
    os.kill(collector, signal.SIGKILL)
    wait_until(lambda: service.collector() == 0)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(set(service.workers()) - {worker}) == 2)
    assert service.collector() not in (0, collector)


def test_a_master_that_gevent_has_patched(start: Start) -> None:
    pytest.importorskip("gevent")
    before = "from gevent import monkey; monkey.patch_all()"
    config = configure("install(globals())", before=before)
    service = start("-k", "gevent", "-w", "2", config=config).ready(workers=2)
    for _ in range(2):
        # The collector's replacement, too, must leave gunicorn its SIGCHLD.
        lose_collector_and_worker(service)
    assert service.stop() == 0
    wait_until(service.gone)


@pytest.mark.skipif(version() < 25, reason="gunicorn before 25 has no dirty workers")
def test_dirty_workers(start: Start) -> None:
    dirty = "tests.integrations.gunicorn_dirty"
    options = ("--dirty-workers", "1", "--dirty-app", f"{dirty}:Task")
    service = start(*options, app=f"{dirty}:app").ready()
    wait_until(lambda: len(service.attached("gunicorn dirty worker")) == 1)
    assert len(service.attached("gunicorn dirty arbiter")) == 1
    (victim,) = service.attached("gunicorn dirty worker")
    # From Python 3.12 on, gunicorn's arbiter does not answer, nor end, once a dirty worker has died
    # in the middle of its work.
    service.ask("/die")
    found = service.snapshot("death")
    (dead,) = [producer for producer in found.producers if producer.state == "dead"]
    assert (dead.pid, dead.label) == (victim, "gunicorn dirty worker")
    assert [span.name for span in dead.open_spans] == ["dirty work"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change user")
def test_workers_of_another_user(start: Start) -> None:
    service = start("-w", "2", "-u", "nobody", "-g", "nogroup", "--preload").ready(workers=2)
    path = service.enter("slow")
    victim = service.inside()
    # It ends with the service, or a little later: it is waited for as well.
    service.collector()
    assert os.stat(f"/proc/{victim}").st_uid != 0
    os.kill(victim, signal.SIGKILL)
    found = service.snapshot("death")
    (dead,) = [producer for producer in found.producers if producer.state == "dead"]
    assert dead.open_spans[0].args["path"] == path
    assert service.stop() == 0
    wait_until(service.gone)
    assert not leftovers(service.recording)
