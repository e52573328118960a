"""Triggers with real processes: what fires, who is named, what is limited and counted."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import shmrec
from shmrec import capture, requests, store
from shmrec.alarms import Alarms
from shmrec.collector import Collector
from shmrec.deaths import Watched
from shmrec.errors import CollectorError, RequestFailedError, SuppressedError
from shmrec.incidents import Plan, Ring
from shmrec.layout import ENTRY, TRIGGERS, Verb
from shmrec.lookout import Finding
from shmrec.manifest import Producer
from shmrec.requests import Request
from shmrec.ring import RingReader
from shmrec.segment import Segment, open_segment
from shmrec.takeover import Settings, establish
from shmrec.triggers import parse_all
from shmrec.wakeup import open_wakeup

from .conftest import Script, snapshots, wait_until
from .dumping import dump, dump_json
from .recordings import rings, unserved

COLLECT = (sys.executable, "-m", "shmrec.commands.collect")

PRODUCER = """
import os, sys, time, shmrec
shmrec.attach(sys.argv[1], label="worker", required=True)
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@contextlib.contextmanager
def serving(name: str, directory: Path, *texts: str) -> Iterator[Collector]:
    """A collector in a thread of this process."""
    settings = Settings(name, directory, size=0, producers=8, triggers=parse_all(texts))
    collector = Collector(establish(settings), settings)
    thread = threading.Thread(target=collector.run)
    thread.start()
    try:
        yield collector
    finally:
        collector.stop()
        thread.join()


@pytest.fixture
def producer(script: Callable[..., Script], recording_name: str) -> Callable[[], Script]:
    def start() -> Script:
        started = script(PRODUCER, recording_name)
        assert started.line() == "ready"
        return started

    return start


def do(script: Script, line: str) -> None:
    script.say(line)
    assert script.line() == "done"


def found(directory: Path, part: str) -> shmrec.Snapshot:
    """The one snapshot of which the file's name holds `part`, waited for."""
    wait_until(lambda: snapshots(directory, part))
    [path] = snapshots(directory, part)
    return shmrec.read(path)


def suspects(snapshot: shmrec.Snapshot) -> list[Producer]:
    return [each for each in snapshot.producers if each.index in snapshot.header.suspects]


def suppressed(name: str) -> dict[str, int]:
    with open_segment(name, writable=False) as segment:
        return {kind: count for kind, count in segment.suppressed().items() if count}


def ask(name: str, verb: int, *argument: int, reason: str = "") -> shmrec.Snapshot:
    with open_segment(name) as segment:
        number, second = argument
        wakeup = open_wakeup(segment)
        path = requests.ask(
            segment, wakeup, verb, reason=reason, argument=(number, second), timeout=30
        )
    return shmrec.read(path)


GOES_ON = """
import threading
def go_on():
    while True:
        shmrec.instant("during")
        time.sleep(0.01)
threading.Thread(target=go_on, daemon=True).start()
"""


def test_a_process_asleep_in_a_span_is_snapshotted_once_and_the_next_one_counted(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    trigger = "slow_span 'request /h*' 300ms window=200ms interval=1h"
    with shmrec.FlightRecorder(recording_name, directory=tmp_path, triggers=[trigger]) as flight:
        hung, other = producer(), producer()
        do(other, "span = shmrec.begin('request /x')")
        do(other, f"exec({GOES_ON!r})")
        hung.say("with shmrec.span('request /hang', n=1): time.sleep(600)")
        snapshot = found(tmp_path, "slow-span")
        header = snapshot.header
        assert header.trigger == "slow_span"
        assert header.reason.startswith(f"slow span request /hang of worker pid {hung.pid}, open")
        [suspect] = suspects(snapshot)
        assert (suspect.pid, suspect.state) == (hung.pid, "running")
        [span] = suspect.open_spans
        assert header.triggered_ns - span.start_ns >= 300_000_000
        assert header.taken_mono_ns - header.triggered_ns >= 200_000_000
        # What happened in the window is there.
        during = [event.time_ns for event in snapshot if event.name == "during"]
        assert max(during) - header.triggered_ns >= 100_000_000
        assert header.first
        assert snapshot.path is not None
        assert snapshot.path.name.endswith("-first-1.shmrec")
        do(other, "shmrec.begin('request /hello')")
        wait_until(lambda: suppressed(recording_name))
        asked = shmrec.read(flight.snapshot("a person is never limited"))
        assert suppressed(recording_name) == asked.header.suppressed == {"slow_span": 1}
        assert (asked.header.first, asked.header.suspects) == (False, [])
        [collector] = [flight._collector[0]]
        os.kill(collector, signal.SIGUSR1)
        signalled = found(tmp_path, "signal-usr1")
        assert (signalled.header.trigger, signalled.header.first) == ("signal", False)
        os.kill(collector, signal.SIGUSR1)
        wait_until(lambda: suppressed(recording_name) == {"slow_span": 1, "signal": 1})
    assert len(snapshots(tmp_path)) == 3


def test_silence_inside_of_a_span_a_heartbeat_that_stopped_and_a_counter(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    texts = ("stall job 200ms", "stall 200ms heartbeat=loop", "counter queue.* > 10")
    with serving(recording_name, tmp_path, *texts):
        worker = producer()
        do(worker, "shmrec.instant('loop')")
        beat = found(tmp_path, "no-loop")
        assert beat.header.trigger == "stall"
        assert [each.pid for each in suspects(beat)] == [worker.pid]
        do(worker, "shmrec.counter('queue.depth', 11)")
        count = found(tmp_path, "counter")
        assert count.header.trigger == "counter"
        assert count.header.reason == f"counter queue.depth of worker pid {worker.pid} at 11"
        do(worker, "shmrec.begin('job')")
        silent = found(tmp_path, "no-event")
        assert [each.pid for each in suspects(silent)] == [worker.pid]
        assert silent.header.triggered_ns == 0
    assert [shmrec.read(path).header.first for path in snapshots(tmp_path)] == [True, False, False]


def test_the_word_of_a_producer_and_of_a_host_is_limited(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    with serving(recording_name, tmp_path, "exception window=100ms interval=1h"):
        worker = producer()
        exception, log = TRIGGERS.index("exception"), TRIGGERS.index("log")
        told = ask(recording_name, Verb.TRIGGER, exception, worker.pid, reason="payment\nfailed")
        assert told.header.trigger == "exception"
        assert told.header.reason == f"exception in worker pid {worker.pid}: payment?failed"
        assert [each.pid for each in suspects(told)] == [worker.pid]
        assert told.header.taken_mono_ns - told.header.triggered_ns >= 100_000_000
        assert [each["pid"] for each in told.header.requests] == [os.getpid()]
        with pytest.raises(SuppressedError, match="one in 3600 s; it was counted"):
            ask(recording_name, Verb.TRIGGER, exception, worker.pid)
        assert suppressed(recording_name) == {"exception": 1}
        assert ask(recording_name, Verb.TRIGGER, log, 1 << 60).header.suspects == []
        late = ask(recording_name, Verb.TIMEOUT, worker.pid, 30_000)
        assert late.header.reason == f"timeout of worker pid {worker.pid} after 30 s"
        assert [each.pid for each in suspects(late)] == [worker.pid]
        for number in (TRIGGERS.index("death"), TRIGGERS.index("request"), 99, (1 << 64) - 1):
            with pytest.raises(RequestFailedError, match="is no trigger that a producer"):
                ask(recording_name, Verb.TRIGGER, number, worker.pid)
    assert len(snapshots(tmp_path)) == 3


def test_an_except_block_and_a_log_record_call_for_a_snapshot_and_list_counts_the_rest(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    handles = "try: 1 / 0\nexcept ZeroDivisionError: path = shmrec.snapshot('orders', timeout=30)"
    with serving(recording_name, tmp_path, "exception interval=1h", "log interval=1h"):
        worker = producer()
        do(worker, f"exec({handles!r})")
        handled = found(tmp_path, "exception")
        do(worker, f"assert path == {str(handled.path)!r}, path")
        assert handled.header.trigger == "exception"
        assert handled.header.reason == f"exception in worker pid {worker.pid}: orders"
        assert [each.pid for each in suspects(handled)] == [worker.pid]
        assert [(event.kind, event.name) for event in handled] == [
            ("exception", "ZeroDivisionError")
        ]
        do(worker, f"exec({handles!r})")
        do(worker, "assert path is None, path")
        do(worker, "import logging; from shmrec.integrations.logging import Handler")
        do(worker, "log = logging.getLogger('app'); log.addHandler(Handler(snapshot='ERROR'))")
        do(worker, "log.warning('not yet')")
        do(worker, "log.error('paid %s twice', 7)")
        logged = found(tmp_path, "-log-")
        assert logged.header.reason == f"log in worker pid {worker.pid}: app: paid 7 twice"
        said = [event.args["message"] for event in logged if event.kind == "log"]
        assert said == ["not yet", "paid 7 twice"]
        listed = dump_json("list", "--dir", tmp_path)["recordings"]
        assert [each["suppressed"] for each in listed if each["name"] == recording_name] == [
            {"exception": 1}
        ]
        shown = dump("list", "--dir", tmp_path).stdout
    text = f"{recording_name}: snapshots not taken because of limits: 1 of exception"
    assert text in shown


def test_a_stop_cuts_a_window_short_and_who_waits_is_answered(
    recording_name: str, tmp_path: Path
) -> None:
    answers: list[object] = []

    def waits() -> None:
        with contextlib.suppress(CollectorError):
            answers.append(ask(recording_name, Verb.TRIGGER, TRIGGERS.index("log"), 1))

    with serving(recording_name, tmp_path, "log window=60s") as collector:
        thread = threading.Thread(target=waits)
        thread.start()
        wait_until(lambda: [r for r in requests.pending(collector.segment)
                            if collector._alarms.holds(r)])  # fmt: skip
    thread.join()
    [answered] = answers
    assert isinstance(answered, shmrec.Snapshot)
    assert [answered.path] == snapshots(tmp_path)


def test_deaths_beyond_the_daily_cap_are_counted_and_their_rings_are_free(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    def settled(segment: Segment, count: int) -> bool:
        words, geometry = segment.words, segment.geometry
        done = [words[ENTRY.word("settled", geometry.entry(index))] for index in range(2)]
        return sum(map(bool, done)) == count

    with serving(recording_name, tmp_path, "death daily=1 interval=0") as collector:
        for number in (1, 2):
            victim = producer()
            wait_until(lambda: len(collector.roster.watcher.watched) == 1)
            victim.kill()
            victim.wait()
            wait_until(lambda expected=number: settled(collector.segment, expected))  # type: ignore[misc]
        assert suppressed(recording_name) == {"death": 1}
    [path] = snapshots(tmp_path)
    [dead] = suspects(shmrec.read(path))
    assert dead.state == "dead"


def test_what_nobody_foresaw_leaves_nobody_waiting_and_the_death_is_told_later(
    recording_name: str,
    tmp_path: Path,
    producer: Callable[[], Script],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[str] = []
    take = capture.take

    def fail(segment: Segment, order: capture.Order) -> Path:
        taken.append(order.trigger)
        raise UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(capture, "take", fail)
    monkeypatch.setattr("shmrec.incidents._RETRY_NS", 200_000_000)
    with serving(recording_name, tmp_path, "death interval=0", "log interval=0") as collector:
        victim = producer()
        wait_until(lambda: len(collector.roster.watcher.watched) == 1)
        for verb in (Verb.SNAPSHOT, Verb.TRANSFER, Verb.TRIGGER):
            with pytest.raises(RequestFailedError, match=r"unexpected: .*UnicodeEncodeError"):
                ask(recording_name, verb, TRIGGERS.index("log"), 1)
        victim.kill()
        victim.wait()
        wait_until(lambda: taken.count("death") == 2)
        monkeypatch.setattr(capture, "take", take)
        [dead] = suspects(found(tmp_path, "death"))
    assert dead.pid == victim.pid
    # In no turn of the loop, but at its time.
    assert len(taken) <= 6


def test_what_cannot_be_removed_makes_no_snapshot_fail(
    recording_name: str,
    tmp_path: Path,
    producer: Callable[[], Script],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store, "enforce_quota", fail)
    monkeypatch.setattr("shmrec.incidents._RETRY_NS", 0)
    with serving(recording_name, tmp_path, "death interval=0") as collector:
        victim = producer()
        wait_until(lambda: len(collector.roster.watcher.watched) == 1)
        assert ask(recording_name, Verb.SNAPSHOT, 0, 0).producers
        victim.kill()
        victim.wait()
        wait_until(lambda: not collector.roster.watcher.watched)
        ask(recording_name, Verb.SNAPSHOT, 0, 0)
    assert len(snapshots(tmp_path, "death")) == 1


def test_nobody_is_asked_for_stacks_where_there_is_no_snapshot(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    with serving(recording_name, tmp_path, "death daily=1 interval=0") as collector:
        collector.settings.stacks = "all"
        asked: list[object] = []
        take = collector._snapshots._take_stacks
        collector._snapshots._take_stacks = (  # type: ignore[method-assign]
            lambda wanted: asked.append(wanted) or take(wanted)  # type: ignore[func-returns-value]
        )
        for number in (1, 2):
            victim = producer()
            wait_until(lambda: len(collector.roster.watcher.watched) == 1)
            victim.kill()
            victim.wait()
            wait_until(lambda: not collector.roster.watcher.watched)
            assert suppressed(recording_name).get("death", 0) == number - 1
        assert len(asked) == 1


def test_many_that_stall_together_are_asked_for_their_stacks_together(
    recording_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(recording_name, tmp_path, triggers=parse_all(["stall 1s"]))
    [stall] = settings.triggers
    asked: list[list[int]] = []

    def take(indexes: Iterable[int]) -> dict[Ring, object]:
        # Each that hangs in the kernel takes all the time there is for one asking.
        asked.append(list(indexes))
        return {(index, 1): index for index in asked[-1]}

    with unserved(recording_name) as segment:
        made = Alarms(segment, settings, rings(segment), take)
        findings = [Finding(stall, "stall", index, 1) for index in range(64)]
        monkeypatch.setattr(made._lookout, "look", lambda live, now: findings)
        hung = [Watched(70, 1, 7, 1, -1), Watched(71, 1, 8, 1, -1)]
        monkeypatch.setattr(
            made, "_readers", [RingReader(segment.view, segment.words, segment.geometry, 0)] * 72
        )
        for slot, pid in enumerate((7, 8)):
            request = Request(slot, 1, Verb.TIMEOUT, 1, "", (pid, 30_000))
            made.serve(request, hung, time.monotonic_ns())
        made.look_around(range(64), time.monotonic_ns())
        plan = made.due([], last=True)
    assert asked == [[70, 71, *range(64)]]
    assert plan is not None
    assert len(plan.stacks) == 66


@pytest.mark.parametrize(("ago", "first"), [(590, False), (610, True)])
def test_another_collector_knows_whether_an_incident_goes_on(
    recording_name: str, tmp_path: Path, ago: int, first: bool
) -> None:
    names = store.file_names(recording_name, "stall of pid 1", time.time_ns() - ago * 10**9)
    (tmp_path / next(names)).touch()
    with serving(recording_name, tmp_path):
        asked = ask(recording_name, Verb.SNAPSHOT, 0, 0)
        fired = ask(recording_name, Verb.TIMEOUT, 1, 1)
    assert (asked.header.first, fired.header.first) == (False, first)


def test_what_producers_hold_back_is_suppressed_too_and_counted_once(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    with serving(recording_name, tmp_path):
        worker = producer()
        do(worker, "for _ in range(1000): shmrec.recorder.default.trigger('log', 'storm')")
        snapshot = found(tmp_path, "log")
        # All became the one snapshot, was refused by the collector, or was held back.
        wait_until(lambda: suppressed(recording_name).get("log", 0) == 999)
        do(worker, "shmrec.detach()")
        assert snapshot.header.suppressed.get("log", 0) <= 999
        with open_segment(recording_name) as segment:
            heartbeat = segment.word("heartbeat_ns")
            wait_until(lambda: segment.word("heartbeat_ns") != heartbeat)
            entry = segment.geometry.entry(0)
            segment.words[ENTRY.word("held_back", entry)] = 1 << 61
            heartbeat = segment.word("heartbeat_ns")
            wait_until(lambda: segment.word("heartbeat_ns") != heartbeat)
        assert suppressed(recording_name) == {"log": 999}


def test_a_suppressed_count_goes_on_from_before_and_is_never_implausible(
    recording_name: str, tmp_path: Path
) -> None:
    with serving(recording_name, tmp_path) as collector:
        collector.segment.set_suppressed(dict.fromkeys(TRIGGERS, (1 << 64) - 1))
        assert all(count < 1 << 62 for count in suppressed(recording_name).values())
        ask(recording_name, Verb.TIMEOUT, 1, 1)
        with pytest.raises(SuppressedError):
            ask(recording_name, Verb.TIMEOUT, 1, 1)
        assert suppressed(recording_name) == {"timeout": 1}


def test_who_took_the_ring_over_is_no_suspect_and_looks_are_as_frequent_as_needed(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    with serving(recording_name, tmp_path, "slow_span 150ms") as collector:
        producer()
        for incarnation, expected in ((1, [0]), (2, [])):
            plan = Plan("stall", "x", suspects=[(0, incarnation)])
            assert collector._alarms.facts(plan)["suspects"] == expected
        waits = collector._alarms.wait_ns([], time.monotonic_ns())
        assert waits is not None
        assert waits <= 150_000_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trigger", "slow_span soon"], "'soon' is no time"),
        (["--trigger", "signal HUP", "--", "true"], "signals are passed on"),
        (["--stacks", "some"], "'some' is not one of"),
    ],
)
def test_a_trigger_that_is_none_is_one_line(
    recording_name: str, tmp_path: Path, options: list[str], said: str
) -> None:
    ended = subprocess.run(
        [*COLLECT, recording_name, "--dir", str(tmp_path), *options], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_flight_recorder_refuses_what_it_does_not_understand() -> None:
    with pytest.raises(ValueError, match="takes one of USR1"):
        shmrec.FlightRecorder(triggers=["signal KILL"])
    with pytest.raises(ValueError, match="stacks must be one of"):
        shmrec.FlightRecorder(stacks="mine")


def test_one_that_hangs_on_gets_its_snapshot_when_the_limit_allows(
    recording_name: str, tmp_path: Path, producer: Callable[[], Script]
) -> None:
    with serving(recording_name, tmp_path, "slow_span 100ms interval=700ms"):
        first, second = producer(), producer()
        do(first, "span = shmrec.begin('hang')")
        wait_until(lambda: snapshots(tmp_path))
        do(second, "span = shmrec.begin('hang')")
        wait_until(lambda: len(snapshots(tmp_path)) == 2)
    (suspect,) = suspects(shmrec.read(snapshots(tmp_path)[-1]))
    assert suspect.pid == second.pid
