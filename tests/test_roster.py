"""What a real collector's snapshots say of its producers: facts, memory, words of a host."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import pytest

import shmrec
from shmrec import process, requests
from shmrec.collector import Collector
from shmrec.deaths import UNKNOWN
from shmrec.layout import ENTRY, EntryState, Verb
from shmrec.manifest import FACTS, Producer
from shmrec.ring import RingReader
from shmrec.roster import Roster
from shmrec.segment import Segment, open_segment
from shmrec.takeover import Settings, establish
from shmrec.wakeup import open_wakeup

from .cgroups import little_memory
from .conftest import Script, noticed, snapshots, wait_until

MIB = 1 << 20
SECOND = 1_000_000_000
LIMIT = 96 * MIB

PRODUCER = """
import os, signal, sys, shmrec
if len(sys.argv) > 2:
    open(sys.argv[2], "w").write(str(os.getpid()))
shmrec.attach(sys.argv[1], required=True)
print("ready", flush=True)
with shmrec.span("request", path="/report"):
    for line in sys.stdin:
        exec(line)
        print("done", flush=True)
"""
EATING = "held = []\nwhile True: held.append(b'x' * (1 << 20))"


@pytest.fixture
def segment(recording_name: str, tmp_path: Path) -> Iterator[Segment]:
    made = establish(Settings(recording_name, tmp_path, size=0, producers=4))
    yield made
    made.close()


@pytest.fixture
def roster(segment: Segment) -> Iterator[Roster]:
    made = Roster(segment)
    yield made
    made.close()


@pytest.fixture
def producer(script: Callable[..., Script], recording_name: str) -> Callable[..., Script]:
    def start(*args: str) -> Script:
        started = script(PRODUCER, recording_name, *args)
        assert started.line() == "ready"
        return started

    return start


def details(roster: Roster, segment: Segment, index: int = 0) -> Producer:
    entry = RingReader(segment.view, segment.words, segment.geometry, index).entry()
    return Producer(**roster.details(entry))


def test_facts_are_taken_at_ticks_and_kept_after_the_end(
    roster: Roster, segment: Segment, producer: Callable[..., Script]
) -> None:
    victim = producer()
    # The first when it is met, and one at each tick.
    for now in range(1, 4):
        roster.look(now * SECOND, tick=now > 1)
    roster.look(4 * SECOND)
    living = details(roster, segment)
    times = [row[FACTS.index("time_ns")] for row in living.facts]
    assert times[:-1] == [1 * SECOND, 2 * SECOND, 3 * SECOND][: len(times) - 1]
    assert len(living.facts) == 4
    assert living.peak_rss >= max(row[FACTS.index("rss")] for row in living.facts) > MIB
    assert living.host == {}
    victim.kill()
    victim.wait()
    roster.look(5 * SECOND, tick=True)
    roster.look(6 * SECOND, tick=True)
    dead = details(roster, segment)
    assert dead.facts == living.facts
    assert dead.peak_rss == living.peak_rss
    assert dead.doing == {}
    [death] = roster.deaths
    roster.bury([death])
    assert details(roster, segment).facts == living.facts


def test_what_is_known_of_one_is_not_told_of_the_next_in_its_ring(
    roster: Roster, segment: Segment, producer: Callable[..., Script]
) -> None:
    producer()
    roster.look(SECOND)
    entry = RingReader(segment.view, segment.words, segment.geometry, 0).entry()
    assert entry.state == EntryState.LIVE
    assert roster.details(entry)["facts"]
    entry.incarnation += 1
    assert roster.details(entry) == {}
    entry.index += 1
    assert roster.details(entry) == {}


def test_who_came_and_went_between_two_looks_was_there(
    roster: Roster, segment: Segment, recording_name: str
) -> None:
    roster.look(time.monotonic_ns())
    assert not roster.ever_attached
    shmrec.attach(recording_name, required=True).detach()
    roster.look(time.monotonic_ns())
    # A collector that lingers need not wait for the first one any more.
    assert roster.ever_attached


def test_of_very_many_each_has_its_turn(
    roster: Roster,
    segment: Segment,
    producer: Callable[..., Script],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shmrec.roster._SAMPLED_A_TICK", 1)
    for _ in range(2):
        producer()
    for now in range(1, 6):
        roster.look(now, tick=now > 1)
    rows = [details(roster, segment, index).facts for index in range(2)]
    # When met, in every other tick, and for the details.
    assert [[row[0] for row in each[:-1]] for each in rows] == [[1, 2, 4], [1, 3, 5]]


def test_a_hosts_word_of_a_timeout_stays_with_the_process(
    roster: Roster, segment: Segment, producer: Callable[..., Script]
) -> None:
    victim = producer()
    roster.look(1)
    roster.watcher.timed_out(victim.pid, 30_000, 5)
    victim.kill()
    victim.wait()
    roster.look(6)
    expected = {"timeout_ms": 30_000, "told_ns": 5}
    assert details(roster, segment).host == expected
    roster.bury(list(roster.deaths))
    assert details(roster, segment).host == expected


def test_word_that_comes_late_is_heard_while_the_death_waits(
    roster: Roster,
    producer: Callable[..., Script],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    # A kernel, or a filter of system calls, that tells nothing after the reaping.
    monkeypatch.setattr("fcntl.ioctl", refuse)
    victim = producer()
    roster.look(1)
    victim.kill()
    victim.wait()
    roster.look(2)
    roster.look(3 + SECOND)
    [death] = roster.deaths
    assert death.cause is UNKNOWN
    roster.watcher.told(victim.pid, signal.SIGKILL, "gunicorn's log")
    roster.look(4 + SECOND)
    assert death.cause is not None
    assert (death.cause.signal, death.cause.source) == (signal.SIGKILL, "gunicorn's log")
    assert list(roster.causes().values()) == [death.cause]


def test_another_incarnation_in_a_dead_ones_ring_does_not_keep_the_loop_turning(
    roster: Roster, segment: Segment, producer: Callable[..., Script]
) -> None:
    victim = producer()
    roster.look(1)
    victim.kill()
    wait_until(lambda: not process.alive(victim.pid, 0))
    roster.look(2)
    assert len(roster.deaths) == 1
    # Somebody scribbled; it is not reaped yet, so it can be watched again.
    segment.words[ENTRY.word("incarnation", segment.geometry.entry(0))] += 1
    roster.look(3)
    assert roster.pidfds() == []
    roster.bury(list(roster.deaths))
    victim.wait()


def test_only_who_is_watched_is_asked_for_stacks(
    recording_name: str,
    tmp_path: Path,
    producer: Callable[..., Script],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(recording_name, tmp_path, size=0, producers=4)
    collector = Collector(establish(settings), settings)
    asked: list[int] = []

    def take(segment: Segment, asking: list[object], **_: object) -> dict[object, object]:
        asked.append(len(asking))
        return {}

    monkeypatch.setattr("shmrec.taking.take_stacks", take)
    producer()
    collector.roster.look(1)
    collector._snapshots.stacks_of([0])
    # Taken over since: the descriptor is that of the one before.
    word = ENTRY.word("incarnation", collector.segment.geometry.entry(0))
    collector.segment.words[word] += 1
    collector._snapshots.stacks_of([0])
    assert asked == [1, 0]
    collector._let_go()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with little_memory(LIMIT) as made:
        yield made


def test_a_real_kill_for_want_of_memory_and_one_that_is_none(
    recording_name: str,
    tmp_path: Path,
    producer: Callable[..., Script],
    cgroup: Path,
) -> None:
    with shmrec.FlightRecorder(recording_name, directory=tmp_path) as recorder:
        innocent, victim = (producer(str(cgroup / "cgroup.procs")) for _ in range(2))
        outside = producer()
        noticed(recording_name)
        victim.say("exec(" + repr(EATING) + ")")
        assert victim.wait() == -signal.SIGKILL
        wait_until(lambda: snapshots(tmp_path, "death"))
        outside.kill()
        outside.wait()
        later = shmrec.read(recorder.snapshot("afterwards"))
        innocent.close()
    death = shmrec.read(snapshots(tmp_path, "death")[0])
    by_pid = {each.pid: each for each in death.producers}
    dead = by_pid[victim.pid]
    assert dead.cause is not None
    assert dead.cause.signal == signal.SIGKILL
    assert dead.memory["kills"] == 1
    assert dead.memory["others"] == 0
    assert dead.memory["limit"] == LIMIT
    assert dead.memory["source"].startswith(str(cgroup))
    assert not dead.memory["whole_machine"]
    assert dead.memory["peak"] >= LIMIT - 8 * MIB
    assert dead.facts
    assert dead.peak_rss > MIB
    # It was in the same cgroup, and lives.
    assert by_pid[innocent.pid].cause is None
    assert by_pid[innocent.pid].memory["others"] == 1
    killed = next(each for each in later.producers if each.pid == outside.pid)
    assert killed.memory["kills"] == 0
    assert killed.memory["source"] != dead.memory["source"]


def test_who_said_how_it_ended_is_kept(recording_name: str, tmp_path: Path) -> None:
    settings = Settings(recording_name, tmp_path, size=0, producers=4)
    collector = Collector(establish(settings), settings)
    # One that nobody could watch: it had been reaped before it was seen.
    gone = Popen([sys.executable, "-c", PRODUCER, recording_name], stdin=PIPE, stdout=DEVNULL)
    gone.communicate(b"os.kill(os.getpid(), signal.SIGKILL)\n")
    assert gone.returncode == -signal.SIGKILL
    with open_segment(recording_name) as sending:
        assert requests.tell(
            sending,
            open_wakeup(sending),
            Verb.ENDED,
            reason="gunicorn's log",
            argument=(gone.pid, signal.SIGKILL),
        )
    collector.run(until=lambda: bool(snapshots(tmp_path, "death")))
    [dead] = shmrec.read(snapshots(tmp_path, "death")[0]).producers
    assert dead.cause is not None
    assert (dead.cause.signal, dead.cause.source) == (signal.SIGKILL, "gunicorn's log")
    # In which cgroup it was cannot be known any more.
    assert dead.memory["whole_machine"]
    assert dead.facts == []


def test_who_took_a_ring_over_unseen_is_not_asked_in_its_predecessors_name(
    recording_name: str, tmp_path: Path, script: Callable[..., Script]
) -> None:
    settings = Settings(recording_name, tmp_path, size=0, producers=1)
    collector = Collector(establish(settings), settings)
    source = (
        "import shmrec, sys\nrecorder = shmrec.attach(sys.argv[1], required=True)\n"
        "print('in', flush=True)\nsys.stdin.readline()\n"
        "recorder.detach()\nprint('out', flush=True)\n"
    )
    first = script(source + "sys.stdin.readline()", recording_name)
    first.line()
    collector.roster.look(time.monotonic_ns(), tick=True)
    assert [each.pid for each in collector.roster.living()] == [first.pid]
    assert len(collector._snapshots._take_stacks(lambda _: True)) == 1
    first.say()
    assert first.line() == "out"
    second = script(source, recording_name)
    second.line()
    # The pidfd is still the first one's.
    assert collector._snapshots._take_stacks(lambda _: True) == {}
    collector.roster.look(time.monotonic_ns(), tick=True)
    (stacks,) = collector._snapshots._take_stacks(lambda _: True).values()
    assert stacks[0].text
    for each in (first, second):
        each.say()
        assert each.wait() == 0
    collector._let_go()
