"""What gunicorn's log says of deaths, in the words of all its versions; names; chains."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

import pytest

from shmrec import requests
from shmrec.integrations import gunicorn as hooks
from shmrec.integrations import gunicorn_master
from shmrec.integrations.gunicorn_chain import add
from shmrec.integrations.gunicorn_deaths import DeathFilter, status_in, timeout_in
from shmrec.integrations.gunicorn_master import MasterRecording
from shmrec.integrations.gunicorn_names import service_name
from shmrec.layout import REQUESTS, Geometry, Verb
from shmrec.naming import check_name
from shmrec.segment import create
from tests.conftest import end_recording
from tests.recordings import Answering

WORDS = [
    ("Worker (pid:41) was sent SIGKILL! Perhaps out of memory?", (41, 9)),
    ("Worker (pid:41) was sent SIGSEGV!", (41, 11)),
    ("Worker (pid:41) was sent code 134!", (41, 134)),
    ("Worker (pid:41) was sent signal 42!", (41, 42)),
    ("Worker (pid:41) was sent SIGRTMIN+3!", None),
    ("Worker with pid 41 was terminated due to signal 9", (41, 9)),
    ("Worker (pid:41) exited with code 3", (41, 3 << 8)),
    ("Worker (pid:41) exited with code 255.", (41, 255 << 8)),
    ("Worker exiting (pid: 41)", None),
    ("Worker (pid:41) was sent SIGNOTHING!", None),
    ("Worker (pid:x) was sent SIGKILL!", None),
]


@pytest.mark.parametrize(("message", "told"), WORDS)
def test_words_of_a_death(message: str, told: tuple[int, int] | None) -> None:
    assert status_in(message) == told


def test_words_of_a_timeout() -> None:
    assert timeout_in("WORKER TIMEOUT (pid:41)") == 41
    assert timeout_in("Worker (pid:41) exited with code 1.") is None


def record(message: str, *args: Any) -> logging.LogRecord:
    return logging.LogRecord("gunicorn.error", logging.ERROR, "", 0, message, args, None)


def test_a_filter_passes_everything_and_never_raises() -> None:
    seen: list[Any] = []
    judge = DeathFilter(lambda pid, status: seen.append((pid, status)), seen.append)
    assert judge.filter(record("Worker (pid:%s) was sent %s!", 41, "SIGKILL"))
    assert judge.filter(record("WORKER TIMEOUT (pid:%s)", 42))
    assert judge.filter(record("Worker (pid:%s) was sent %s!", 41))
    assert judge.filter(record("Worker %d", "x"))
    assert seen == [(41, 9), 42]

    def fail(*_: object) -> None:
        raise OSError("no")

    assert DeathFilter(fail, fail).filter(record("WORKER TIMEOUT (pid:%s)", 42))


def test_a_filter_is_silent_in_a_forked_worker() -> None:
    seen: list[int] = []
    judge = DeathFilter(lambda pid, status: None, seen.append)
    child = os.fork()
    if child == 0:
        judge.filter(record("WORKER TIMEOUT (pid:%s)", 42))
        os._exit(len(seen))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("app:app", "gunicorn-app-app"),
        ("gunicorn", "gunicorn"),
        ("shop.wsgi:make('x')", "gunicorn-shop.wsgi-make-x"),
        ("/", "gunicorn"),
        ("ü", "gunicorn"),
        ("x" * 80, "gunicorn-" + "x" * 39),
    ],
)
def test_names_of_services(service: str, name: str) -> None:
    assert service_name(service) == name
    assert check_name(name)


def test_only_hooks_bear_names_of_settings() -> None:
    config = pytest.importorskip("gunicorn.config")
    settings = {setting.name: setting for setting in config.KNOWN_SETTINGS}
    known = set(vars(hooks)) & set(settings)
    assert known == set(hooks._HOOKS) & set(settings)
    for name in known:
        settings[name].validator(getattr(hooks, name))


def test_a_chain_is_made_once() -> None:
    config = pytest.importorskip("gunicorn.config")
    calls: list[str] = []
    namespace: dict[str, Any] = {"on_exit": lambda server: calls.append("theirs")}

    def ours(server: Any) -> None:
        calls.append("ours")

    for _ in range(3):
        add(namespace, "on_exit", ours, config.OnExit.validator)
        add(namespace, "on_starting", ours, config.OnStarting.validator)
    namespace["on_exit"](None)
    assert calls == ["theirs", "ours"]
    assert namespace["on_starting"] is ours


def test_triggers_are_passed_on_to_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gunicorn.config")
    monkeypatch.setattr(hooks._recording, "settings", hooks._recording.settings)
    hooks.install({}, triggers=iter(["stall 5s", "log"]), stacks="all")
    settings = hooks._recording.settings
    assert (settings.triggers, settings.stacks) == (("stall 5s", "log"), "all")
    given: dict[str, Any] = {}

    def start(name: str, **options: Any) -> int:
        given.update(options)
        return os.getpid()

    monkeypatch.setattr(gunicorn_master, "start_collector", start)
    master = MasterRecording()
    master.settings = settings
    master._start_collector("x")
    assert (given["triggers"], given["stacks"]) == (("stall 5s", "log"), "all")
    with pytest.raises(ValueError, match="is no time"):
        hooks.install({}, triggers=["stall soon"])


def test_word_that_comes_at_a_bad_moment_is_passed_on_later(recording_name: str) -> None:
    geometry = Geometry.of(1 << 16, 2)
    with create(recording_name, geometry, keep_size=1, keep_period_ns=1) as segment:
        master = MasterRecording()
        master._segment, master._pid = segment, os.getpid()
        with master._alone():
            # As from a handler of SIGCHLD, while a request of the master's own is being made.
            master.tell(41, signal.SIGKILL)
            assert not requests.pending(segment)
            master.timed_out(42, 1.5)
            assert not requests.pending(segment)
        ended, timed_out = requests.pending(segment)
        assert (ended.verb, ended.argument) == (Verb.ENDED, (41, signal.SIGKILL))
        assert ended.reason == "gunicorn's log"
        assert (timed_out.verb, timed_out.argument) == (Verb.TIMEOUT, (42, 1500))
    end_recording(recording_name)


def test_word_of_many_deaths_at_once_waits_for_room(recording_name: str) -> None:
    geometry = Geometry.of(1 << 16, 2)
    with create(recording_name, geometry, keep_size=1, keep_period_ns=1) as segment:
        master = MasterRecording()
        master._segment, master._pid = segment, os.getpid()
        began = time.monotonic()
        for pid in range(1, 1001):
            master.tell(pid, signal.SIGKILL)
        # The collector is busy: the master is not held up, nor does it keep them all.
        assert time.monotonic() - began < 5
        assert len(master._word) <= 256
        seen: list[int] = []
        while waiting := requests.pending(segment):
            for request in waiting:
                seen.append(request.argument[0])
                requests.answer(segment, request, "")
            master.keep()
        assert seen == [*range(1, REQUESTS + 1), *range(1001 - 256, 1001)]
        for _ in range(REQUESTS):
            assert requests.tell(segment, None, Verb.ENDED)
        segment.take_over()
        master.timed_out(7, 1.5)
        assert list(master._word) == [(Verb.TIMEOUT, (7, 1500))]
    end_recording(recording_name)


def test_word_waits_for_a_collector_that_makes_room_at_once(recording_name: str) -> None:
    geometry = Geometry.of(1 << 16, 2)
    with create(recording_name, geometry, keep_size=1, keep_period_ns=1) as segment:
        master = MasterRecording()
        master._segment, master._pid = segment, os.getpid()
        with Answering(segment, "") as answering:
            for pid in range(200):
                master.tell(pid, signal.SIGKILL)
            while master._word or requests.pending(segment):
                master.keep()
        assert sorted(request.argument[0] for request in answering.seen) == [*range(200)]
    end_recording(recording_name)
