"""The collector as a process: deaths, requests, adoption, stopping; with real kills."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmrec
from shmrec import process, requests
from shmrec.collector import Collector
from shmrec.durable import DurableFile
from shmrec.errors import CollectorRunningError, SnapshotWriteError, WrongOwnerError
from shmrec.launch import start_collector
from shmrec.layout import CONTROL, ENTRY, Geometry, SegmentState, Verb
from shmrec.process import signal_bit
from shmrec.segment import Segment, create, open_segment
from shmrec.takeover import Settings, establish, recover
from shmrec.wakeup import open_wakeup

from .conftest import Script, by_pid, leftovers, noticed, snapshots, wait_until

COMMAND = (sys.executable, "-c")
COLLECT = (sys.executable, "-m", "shmrec.commands.collect")

PRODUCER = """
import os, signal, sys, shmrec
rec = shmrec.attach(sys.argv[1], label=sys.argv[2], required=True)
shmrec.instant("started", label=sys.argv[2])
with shmrec.span("request", path="/slow/" + sys.argv[2]):
    print("ready", flush=True)
    for line in sys.stdin:
        exec(line)
"""


class Service:
    """A `shmrec-collect` process."""

    def __init__(self, name: str, directory: Path, *options: str) -> None:
        self.name = name
        self.directory = directory
        self.options = options
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Service:
        self.process = subprocess.Popen(
            [*COLLECT, self.name, "--dir", str(self.directory), *self.options],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: self.serving() or self.process.poll() is not None)  # type: ignore[union-attr]
        return self

    def serving(self) -> bool:
        try:
            with open_segment(self.name, writable=False) as segment:
                assert self.process is not None
                return segment.collector() == self.process.pid
        except shmrec.ShmrecError:
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal; the exit status and what it said."""
        assert self.process is not None
        self.process.send_signal(number)
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said


@pytest.fixture
def service(recording_name: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(*options: str) -> Service:
        made.append(Service(recording_name, tmp_path, *options))
        return made[-1].start()

    yield make
    for each in made:
        if each.process is not None and each.process.poll() is None:
            each.process.send_signal(signal.SIGCONT)
            each.process.kill()
            each.process.communicate()
        elif each.process is not None and each.process.stderr is not None:
            each.process.stderr.close()


@pytest.fixture
def producer(script: Callable[..., Script], recording_name: str) -> Callable[[str], Script]:
    def start(label: str) -> Script:
        started = script(PRODUCER, recording_name, label)
        assert started.line() == "ready"
        return started

    return start


def death_snapshot(directory: Path, count: int = 1) -> shmrec.Snapshot:
    wait_until(lambda: len(snapshots(directory, "-death-")) >= count)
    return shmrec.read(snapshots(directory, "-death-")[count - 1])


def ask(name: str, reason: str = "") -> Path:
    with open_segment(name) as segment:
        return Path(
            requests.ask(segment, open_wakeup(segment), Verb.SNAPSHOT, reason=reason, timeout=30)
        )


@pytest.mark.parametrize("by_itself", [False, True], ids=["from outside", "by itself"])
def test_a_sigkill_inside_a_span_is_told_with_the_span_and_the_others(
    service: Callable[..., Service], producer: Callable[[str], Script], by_itself: bool
) -> None:
    serving = service()
    victim, other = producer("victim"), producer("other")
    noticed(serving.name)
    if by_itself:
        victim.say("os.kill(os.getpid(), signal.SIGKILL)")
    else:
        victim.kill()
    victim.wait()
    snapshot = death_snapshot(serving.directory)
    assert f"pid {victim.pid}" in snapshot.header.reason
    assert "SIGKILL" in snapshot.header.reason
    assert snapshot.header.trigger == "death"
    dead = by_pid(snapshot, victim.pid)
    assert (dead.state, dead.evidence) == ("dead", "ended")
    assert dead.cause is not None
    assert dead.cause.signal == 9
    [span] = dead.open_spans
    assert (span.name, span.args) == ("request", {"path": "/slow/victim"})
    assert span.start_ns < snapshot.reference_ns(dead)
    alive = by_pid(snapshot, other.pid)
    assert alive.state == "running"
    assert [span.args["path"] for span in alive.open_spans] == ["/slow/other"]
    assert snapshot.complete
    assert not snapshot.verify()
    assert serving.end()[0] == 0
    assert not leftovers(serving.name)


@pytest.mark.parametrize(
    ("how", "signal_number", "exit_code"),
    [("os._exit(7)", None, 7), ("os.abort()", 6, None), ("os._exit(0)", None, None)],
)
def test_how_a_producer_ended_is_learnt(
    service: Callable[..., Service],
    producer: Callable[[str], Script],
    how: str,
    signal_number: int | None,
    exit_code: int | None,
) -> None:
    serving = service()
    ended = producer("ended")
    noticed(serving.name)
    ended.say(how)
    ended.wait()
    marker = producer("marker")
    marker.kill()
    marker.wait()
    found = [
        each
        for path in _until_death_of(serving.directory, marker.pid)
        for each in shmrec.read(path).producers
        if each.pid == ended.pid and each.cause is not None
    ]
    if signal_number is None and exit_code is None:
        assert {each.state for each in found} == {"exited"}
        assert not [p for p in snapshots(serving.directory) if f"pid-{ended.pid}" in p.name]
    else:
        assert found[0].cause is not None
        assert (found[0].cause.signal, found[0].cause.exit_code) == (signal_number, exit_code)
    serving.end()


def test_later_snapshots_still_know_how_the_dead_one_ended(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service()
    victim, leaving = producer("victim"), producer("leaving")
    noticed(serving.name)
    leaving.say("os._exit(0)")
    leaving.wait()
    victim.kill()
    victim.wait()
    first = by_pid(death_snapshot(serving.directory), victim.pid)
    assert not first.reported
    later = shmrec.read(ask(serving.name))
    told, left = by_pid(later, victim.pid), by_pid(later, leaving.pid)
    assert told.cause is not None
    assert (told.state, told.cause.signal, told.reported) == ("dead", 9, True)
    assert (left.state, left.reported) == ("exited", True)
    serving.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace")
def test_a_recording_of_another_pid_namespace_is_left_alone(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service()
    working = producer("working")
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no pid namespaces here")
    ended = subprocess.run(
        [*apart, *COLLECT, serving.name, "--dir", str(serving.directory)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "another pid namespace" in ended.stderr
    joining = "import sys, shmrec; shmrec.attach(sys.argv[1], required=True)"
    ended = subprocess.run(
        [*apart, *COMMAND, joining, serving.name], capture_output=True, text=True
    )
    assert "AttachError" in ended.stderr
    assert by_pid(shmrec.read(ask(serving.name)), working.pid).state == "running"
    serving.end()


def _until_death_of(directory: Path, pid: int) -> list[Path]:
    """All death snapshots, once one has the dead process `pid` in it."""

    def there() -> bool:
        return any(
            producer.pid == pid and producer.cause is not None
            for path in snapshots(directory, "-death-")
            for producer in shmrec.read(path).producers
        )

    wait_until(there)
    return snapshots(directory, "-death-")


@pytest.mark.parametrize("how", ["sys.exit(0)", "sys.exit(3)", "shmrec.detach(); os._exit(5)"])
def test_a_producer_that_detached_causes_no_snapshot(
    service: Callable[..., Service], producer: Callable[[str], Script], how: str
) -> None:
    serving = service()
    leaving = producer("leaving")
    leaving.say(how)
    leaving.wait()
    snapshot = shmrec.read(ask(serving.name, "afterwards"))
    assert by_pid(snapshot, leaving.pid).state == "detached"
    assert by_pid(snapshot, leaving.pid).evidence == "ended"
    assert len(snapshots(serving.directory)) == 1
    serving.end()


def test_deaths_at_the_same_time_share_a_snapshot(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service()
    victims = [producer(f"v{n}") for n in range(4)]
    noticed(serving.name)
    os.kill(serving.pid, signal.SIGSTOP)
    for victim in victims:
        victim.kill()
    for victim in victims:
        victim.wait()
    os.kill(serving.pid, signal.SIGCONT)
    snapshot = death_snapshot(serving.directory)
    assert {p.pid for p in snapshot.producers if p.cause and p.cause.signal == 9} == {
        victim.pid for victim in victims
    }
    assert "and 3 more" in snapshot.header.reason
    serving.end()
    assert len(snapshots(serving.directory)) == 1


def test_a_killed_collector_is_adopted_and_nothing_is_lost(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    first = service()
    working = producer("working")
    working.say("shmrec.instant('before the kill'); print('done', flush=True)")
    assert working.line() == "done"
    first.end(signal.SIGKILL)
    working.say("shmrec.instant('without a collector'); print('done', flush=True)")
    assert working.line() == "done"
    second = service()
    working.say("shmrec.instant('adopted'); print('done', flush=True)")
    assert working.line() == "done"
    names = [event.name for event in shmrec.read(ask(second.name))]
    assert names == ["started", "begin", "before the kill", "without a collector", "adopted"] or (
        [n for n in names if n != "request"]
        == ["started", "before the kill", "without a collector", "adopted"]
    )
    working.kill()
    working.wait()
    assert by_pid(death_snapshot(second.directory), working.pid).cause is not None
    assert second.end()[0] == 0
    assert not leftovers(second.name)


def test_nothing_is_handed_over_to_who_does_not_wait_any_more(
    service: Callable[..., Service], script: Callable[..., Script]
) -> None:
    first = service()
    os.kill(first.pid, signal.SIGSTOP)
    asking = script(
        "import sys\n"
        "from shmrec import requests, segment\n"
        "opened = segment.open_segment(sys.argv[1])\n"
        "requests.ask(opened, None, requests.Verb.TRANSFER, timeout=60)\n",
        first.name,
    )
    with open_segment(first.name) as segment:
        wait_until(lambda: requests.pending(segment))
        asking.kill()
        asking.wait()
        os.kill(first.pid, signal.SIGCONT)
        wait_until(lambda: not requests.pending(segment))
    assert not list(first.directory.iterdir())


def test_a_death_without_a_collector_is_told_by_the_next_one(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    first = service()
    victim, survivor = producer("victim"), producer("survivor")
    first.end(signal.SIGKILL)
    victim.kill()
    victim.wait()
    second = service()
    dead = by_pid(death_snapshot(second.directory), victim.pid)
    assert dead.state == "dead"
    assert dead.cause is not None
    assert dead.cause.text == "unknown"
    assert [span.name for span in dead.open_spans] == ["request"]
    assert survivor.process.poll() is None
    second.end()


def test_everything_is_killed_and_recover_gives_the_same_snapshot(
    service: Callable[..., Service], producer: Callable[[str], Script], tmp_path: Path
) -> None:
    serving = service()
    workers = [producer(f"w{n}") for n in range(3)]
    before = shmrec.read(ask(serving.name))
    serving.end(signal.SIGKILL)
    for worker in workers:
        worker.kill()
        worker.wait()
    with open_segment(serving.name, writable=False) as segment:
        memory = bytes(segment.view)
        path = recover(segment, tmp_path)
        assert bytes(segment.view) == memory
    after = shmrec.read(path)
    assert not after.damage
    assert after.header.trigger == "recover"
    assert list(after) == list(before)
    for then, now in zip(before.producers, after.producers, strict=True):
        assert (then.pid, then.label, then.open_spans) == (now.pid, now.label, now.open_spans)
        assert now.state == "dead"


def test_recovering_late_keeps_what_recovering_at_once_would(
    service: Callable[..., Service],
    producer: Callable[[str], Script],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serving = service("--period", "30")
    victim = producer("victim")
    for n in range(3):
        before = generation(serving.name)
        wait_until(lambda known=before: generation(serving.name) > known)  # type: ignore[misc]
        victim.say(f"shmrec.instant('round', n={n}); print('done', flush=True)")
        assert victim.line() == "done"
    serving.end(signal.SIGKILL)
    victim.kill()
    victim.wait()
    with open_segment(serving.name, writable=False) as segment:
        at_once = shmrec.read(recover(segment, tmp_path))
        real, hour = time.monotonic_ns, 3_600_000_000_000
        monkeypatch.setattr(time, "monotonic_ns", lambda: real() + hour)
        late = shmrec.read(recover(segment, tmp_path))
        monkeypatch.undo()
    assert [event.args["n"] for event in at_once if event.name == "round"] == [0, 1, 2]
    assert list(late) == list(at_once)
    assert late.header.taken_mono_ns == at_once.header.taken_mono_ns


def test_a_name_that_was_scribbled_into_the_memory_leads_nowhere(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service()
    producer("working")
    with open_segment(serving.name) as segment:
        evil = b"../../evil"
        start = CONTROL.bytes_at("name").start
        segment.view[start : start + 64] = evil.ljust(64, b"\0")
    path = ask(serving.name)
    assert path.parent == serving.directory
    assert shmrec.read(path).header.recording == serving.name
    serving.end()


def test_a_stale_segment_is_recovered_before_it_is_replaced(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    first = service()
    victim = producer("victim")
    first.end(signal.SIGKILL)
    victim.kill()
    victim.wait()
    second = service()
    [path] = snapshots(second.directory)
    recovered = shmrec.read(path)
    assert [span.args for span in recovered.producers[0].open_spans] == [{"path": "/slow/victim"}]
    assert shmrec.read(ask(second.name)).producers == []
    code, said = second.end()
    assert code == 0
    assert str(path) in said


def test_a_segment_of_another_layout_is_kept_as_it_is_before_it_is_replaced(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    first = service("--size", "64K", "--producers", "2")
    victim = producer("victim")
    first.end(signal.SIGKILL)
    victim.kill()
    victim.wait()
    with open_segment(first.name) as segment:
        segment.set_word("layout_version", 999)
        memory = bytes(segment.view)
    second = service()
    assert second.serving()
    [kept] = second.directory.glob("*.segment")
    assert kept.read_bytes() == memory
    assert kept.stat().st_mode & 0o777 == 0o600
    second.end()


def test_a_segment_of_another_layout_that_is_in_use_is_left_alone(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    first = service()
    producer("working")
    first.end(signal.SIGKILL)
    with open_segment(first.name) as segment:
        segment.set_word("layout_version", 999)
        ended = subprocess.run(
            [*COLLECT, first.name, "--dir", str(first.directory)], capture_output=True, text=True
        )
        assert ended.returncode == 1
        assert "another version of shmrec, pid" in ended.stderr
        assert segment.linked()


def test_a_second_collector_refuses_and_names_the_first(
    service: Callable[..., Service], tmp_path: Path
) -> None:
    first = service()
    ended = subprocess.run(
        [*COLLECT, first.name, "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert f"pid {first.pid}" in ended.stderr
    assert ended.stderr.count("\n") == 1
    with pytest.raises(CollectorRunningError):
        establish(Settings(first.name, tmp_path))
    assert first.serving()
    first.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_obeyed_within_a_second_and_leaves_nothing(
    service: Callable[..., Service], producer: Callable[[str], Script], number: int
) -> None:
    serving = service()
    producer("left over")
    begun = time.monotonic()
    code, _ = serving.end(number)
    assert code == 0
    assert time.monotonic() - begun < 5  # A second, on a machine with nothing else to do.
    assert not leftovers(serving.name)


def test_a_stop_in_mid_snapshot_leaves_no_file_and_tells_the_requester(
    service: Callable[..., Service],
    producer: Callable[[str], Script],
    script: Callable[..., Script],
    recording_name: str,
) -> None:
    serving = service("--deadline", "60")
    stuck = producer("stuck")
    stopped_inside_a_record(stuck, recording_name)
    before = generation(recording_name)
    asking = script(
        "import sys, shmrec\n"
        "from shmrec import requests\n"
        "from shmrec.segment import open_segment\n"
        "segment = open_segment(sys.argv[1])\n"
        "print('asking', flush=True)\n"
        "try:\n"
        "    print(requests.ask(segment, None, 1, timeout=60))\n"
        "except shmrec.ShmrecError as error:\n"
        "    print('failed:', error)\n",
        recording_name,
    )
    assert asking.line() == "asking"
    in_mid_snapshot(recording_name, before)
    assert serving.end()[0] == 0
    assert asking.line().startswith("failed: the ")
    assert not list(serving.directory.iterdir())


def stopped_inside_a_record(stuck: Script, name: str) -> None:
    """Stop the process and make its entry look as if it was inside its critical section."""
    stuck.kill(signal.SIGSTOP)
    with open_segment(name) as segment:
        index = next(
            i
            for i in range(segment.geometry.producers)
            if segment.words[ENTRY.word("pid", segment.geometry.entry(i))] == stuck.pid
        )
        word = ENTRY.word("writing", segment.geometry.entry(index))
        wait_until(lambda: process.stat(stuck.pid).state == "T")  # type: ignore[union-attr]
        segment.words[word] |= 1


def generation(name: str) -> int:
    with open_segment(name, writable=False) as segment:
        return segment.word("generation")


def in_mid_snapshot(name: str, before: int) -> None:
    """Wait until the collector has taken the request up and is flushing."""
    with open_segment(name, writable=False) as segment:
        wait_until(lambda: requests.pending(segment))
        beat = heartbeat(segment)

        def flushing() -> bool:
            # In a flush the generation moves and the heartbeat does not.
            nonlocal beat
            still, beat = heartbeat(segment) == beat, heartbeat(segment)
            return still and time.monotonic_ns() - beat > 1_500_000_000

        wait_until(flushing)
        assert segment.word("generation") > before


def test_a_stopped_producer_holds_nobody_up(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service("--deadline", "0.3")
    between, inside, running = producer("between"), producer("inside"), producer("running")
    between.kill(signal.SIGSTOP)
    stopped_inside_a_record(inside, serving.name)
    snapshot = shmrec.read(ask(serving.name))
    assert (by_pid(snapshot, between.pid).state, by_pid(snapshot, between.pid).evidence) in {
        ("running", "idle"),
        ("running", "closed"),
    }
    stalled = by_pid(snapshot, inside.pid)
    assert (stalled.state, stalled.evidence) == ("stalled", "stalled")
    assert [span.name for span in stalled.open_spans] == ["request"]
    assert by_pid(snapshot, running.pid).state == "running"
    assert not snapshot.complete
    assert not snapshot.damage
    serving.end()


def test_requests_that_wait_share_a_snapshot_that_began_after_each_asked(
    service: Callable[..., Service], script: Callable[..., Script], recording_name: str
) -> None:
    serving = service()
    os.kill(serving.pid, signal.SIGSTOP)
    source = (
        "import sys, shmrec\n"
        "rec = shmrec.attach(sys.argv[1], required=True)\n"
        "shmrec.instant('asked', by=sys.argv[2])\n"
        "print('asking', flush=True)\n"
        "print(rec.snapshot('reason ' + sys.argv[2]), flush=True)\n"
    )
    asking = [script(source, recording_name, str(n)) for n in range(3)]
    for each in asking:
        assert each.line() == "asking"
    with open_segment(recording_name, writable=False) as segment:
        wait_until(lambda: len(requests.pending(segment)) == 3)
    os.kill(serving.pid, signal.SIGCONT)
    [path] = {each.line() for each in asking}
    snapshot = shmrec.read(path)
    assert sorted(event.args["by"] for event in snapshot) == ["0", "1", "2"]
    assert len(snapshot.header.requests) == 3
    assert "and 2 more" in snapshot.header.reason
    serving.end()


def test_unwritten_evidence_is_left_in_memory(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service()
    victim = producer("victim")
    # Nobody can write into a directory that is not there, root included.
    moved = serving.directory.rename(serving.directory.with_name("moved"))
    serving.directory.write_text("in the way")
    victim.kill()
    victim.wait()
    code, said = serving.end()
    assert code == 0
    assert "recover" in said
    with open_segment(serving.name, writable=False) as segment:
        assert segment.state == SegmentState.CLOSED
        path = recover(segment, moved)
    assert by_pid(shmrec.read(path), victim.pid).open_spans
    serving.directory.unlink()


def test_the_quota_never_takes_the_newest_death_snapshot(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service("--quota-count", "3")
    victim = producer("victim")
    victim.kill()
    victim.wait()
    death = death_snapshot(serving.directory).path
    for n in range(6):
        ask(serving.name, f"request {n}")
    found = snapshots(serving.directory)
    assert death in found
    assert len(found) == 3
    assert "request-5" in found[-1].name
    serving.end()


def test_rings_are_reused_but_not_those_of_unsaved_deaths(
    service: Callable[..., Service],
    producer: Callable[[str], Script],
    script: Callable[..., Script],
) -> None:
    serving = service("--producers", "2")
    victim, leaving = producer("victim"), producer("leaving")
    os.kill(serving.pid, signal.SIGSTOP)
    victim.kill()
    victim.wait()
    leaving.say("sys.exit(0)")
    leaving.wait()
    taking = producer("taking")
    refused = script(
        "import sys, shmrec\n"
        "try:\n"
        "    shmrec.attach(sys.argv[1], required=True)\n"
        "except shmrec.ShmrecError as error:\n"
        "    print(type(error).__name__, error)\n",
        serving.name,
    )
    assert refused.line().startswith("RingsTakenError all 2 rings")
    with open_segment(serving.name, writable=False) as segment:
        assert segment.word("refused_full") == 1
    os.kill(serving.pid, signal.SIGCONT)
    dead = by_pid(death_snapshot(serving.directory), victim.pid)
    assert dead.open_spans

    def joined() -> bool:
        with open_segment(serving.name, writable=False) as segment:
            at = segment.geometry.entry(dead.index)
            return bool(segment.words[ENTRY.word("settled", at)] == dead.incarnation)

    wait_until(joined)
    late = producer("late")
    snapshot = shmrec.read(ask(serving.name))
    assert {p.pid for p in snapshot.producers} == {taking.pid, late.pid}
    serving.end()


@pytest.mark.parametrize(
    ("source", "status", "died"),
    [
        ("import shmrec; shmrec.attach(required=True); raise SystemExit(7)", 7, False),
        ("import shmrec, os; shmrec.attach(required=True); os.kill(os.getpid(), 9)", 137, True),
        ("pass", 0, False),
    ],
)
def test_a_command_runs_under_a_recording_and_its_status_is_passed_on(
    recording_name: str, tmp_path: Path, source: str, status: int, died: bool
) -> None:
    ended = subprocess.run(
        [*COLLECT, recording_name, "--dir", str(tmp_path), "--", *COMMAND, source],
        timeout=60,
    )
    assert ended.returncode == status
    assert len(snapshots(tmp_path, "-death-")) == int(died)
    if died:
        [dead] = shmrec.read(snapshots(tmp_path)[0]).producers
        assert dead.cause is not None
        assert dead.cause.signal == 9
    assert not leftovers(recording_name)


SILENT_KERNEL = """
import sys
from shmrec import deaths, process
from shmrec.commands.collect import main

# Neither after reaping nor of a zombie does it tell how one ended.
deaths._exit_status = lambda pidfd: None
real = process.stat
def stat(pid):
    found = real(pid)
    return found if found is not None and found.state not in "ZX" else None
process.stat = stat
main()
"""


def test_of_its_own_command_a_collector_knows_how_it_ended(
    recording_name: str, tmp_path: Path
) -> None:
    source = "import shmrec, os; shmrec.attach(required=True); os.kill(os.getpid(), 9)"
    collect = (*COMMAND, SILENT_KERNEL, recording_name, "--dir", str(tmp_path))
    ended = subprocess.run([*collect, "--", *COMMAND, source], timeout=60)
    assert ended.returncode == 137
    [path] = snapshots(tmp_path, "-death-")
    [dead] = shmrec.read(path).producers
    assert dead.cause is not None
    assert (dead.cause.signal, dead.cause.source) == (9, "parent")


def test_a_commands_signals_are_passed_on(recording_name: str, tmp_path: Path) -> None:
    source = (
        "import signal, sys, time, shmrec\n"
        "shmrec.attach(required=True)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    running = subprocess.Popen(
        [*COLLECT, recording_name, "--dir", str(tmp_path), "--", *COMMAND, source],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.terminate()
    running.communicate(timeout=30)
    assert running.returncode == 42
    assert not snapshots(tmp_path)


@pytest.mark.parametrize("options", [(), ("--trigger", "signal USR2")])
def test_a_signal_that_may_be_a_trigger_ends_no_collector(
    service: Callable[..., Service], options: tuple[str, ...]
) -> None:
    serving = service(*options)
    # It says that it serves a moment before it has its handlers.
    for wait in (False, True):
        if wait:
            wait_until(lambda: process.signals(serving.pid).caught & signal_bit(signal.SIGTERM))
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            os.kill(serving.pid, number)
    assert serving.end()[0] == 0


def test_a_signal_to_the_group_does_not_end_a_collector_that_is_being_started(
    recording_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, masks = tmp_path / "python", tmp_path / "masks"
    python.write_text(f"#!/bin/sh\nexec grep SigBlk /proc/self/status > {masks}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(shmrec.ShmrecError, match="without a word"):
        start_collector(recording_name, size=0, period=1, producers=1)
    blocked = int(masks.read_text().split()[1], 16)
    assert [number for number in range(1, 65) if blocked >> number - 1 & 1] == [
        signal.SIGUSR1,
        signal.SIGUSR2,
    ]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_command_that_is_not_there_is_one_line(recording_name: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COLLECT, recording_name, "--dir", str(tmp_path), "--", "/no/such/command"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 127
    assert ended.stderr.count("\n") == 1
    assert not leftovers(recording_name)


def test_a_collector_that_lingers_ends_after_the_last_producer(
    service: Callable[..., Service], producer: Callable[[str], Script]
) -> None:
    serving = service("--linger", "0.2")
    last = producer("last")
    last.kill()
    last.wait()
    assert serving.process is not None
    assert serving.process.wait(30) == 0
    assert by_pid(death_snapshot(serving.directory), last.pid).cause is not None
    assert not leftovers(serving.name)


def test_no_snapshot_is_half_visible_when_the_collector_is_killed_in_the_middle(
    service: Callable[..., Service],
    producer: Callable[[str], Script],
    script: Callable[..., Script],
) -> None:
    serving = service("--deadline", "60")
    stuck = producer("stuck")
    stopped_inside_a_record(stuck, serving.name)
    before = generation(serving.name)
    asking = script(
        "import sys, shmrec\n"
        "rec = shmrec.attach(sys.argv[1], required=True)\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "print('asking', flush=True); print(rec.snapshot('x'), flush=True)\n",
        serving.name,
    )
    assert asking.line() == "asking"
    in_mid_snapshot(serving.name, before)
    serving.end(signal.SIGKILL)
    assert asking.line() == "None"
    assert not snapshots(serving.directory)
    stuck.kill(signal.SIGCONT)
    second = service()
    assert not [path for path in second.directory.iterdir() if path.name.startswith(".")]
    assert not shmrec.read(ask(second.name)).verify()
    second.end()


def test_a_segment_others_may_open_is_refused(recording_name: str, tmp_path: Path) -> None:
    settings = Settings(recording_name, tmp_path, size=0, producers=1)
    segment = establish(settings)
    os.fchmod(segment.fd, 0o644)
    with pytest.raises(WrongOwnerError, match="mode 644"):
        open_segment(recording_name)
    os.fchmod(segment.fd, 0o600)
    segment.close()


def heartbeat(segment: Segment) -> int:
    return segment.word("heartbeat_ns")


def test_the_generation_advances_about_once_a_second(service: Callable[..., Service]) -> None:
    serving = service()
    with open_segment(serving.name, writable=False) as segment:
        first, begun = segment.word("generation"), heartbeat(segment)
        wait_until(lambda: segment.word("generation") >= first + 3)
        assert 1.9e9 < heartbeat(segment) - begun < 20e9
    serving.end()


def test_a_collector_that_gets_no_thread_says_so_and_serves(
    recording_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    said: list[str] = []
    settings = Settings(recording_name, tmp_path, size=0, producers=1, log=said.append)
    collector = Collector(establish(settings), settings)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    collector.run(until=lambda: collector.segment.word("generation") > 1)
    assert [line for line in said if "thread" in line] == [
        "no memory or no leave for a thread: requests may wait for a second"
    ]
    assert not leftovers(recording_name)


def test_a_segment_that_can_neither_be_read_nor_kept_is_untouched(
    recording_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: DurableFile, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with create(recording_name, Geometry.of(0, 1), keep_size=0, keep_period_ns=0) as made:
        made.set_word("layout_version", 999)
        monkeypatch.setattr(DurableFile, "write", full)
        with pytest.raises(SnapshotWriteError, match="No space left on device; it is untouched"):
            establish(Settings(recording_name, tmp_path, size=0, producers=1))
        assert made.linked()
    assert list(tmp_path.iterdir()) == []
