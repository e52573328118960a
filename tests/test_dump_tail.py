"""``shmrec-dump tail``: real processes that come and go, readers that go away, a restart."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from shmrec import follow, process
from shmrec.commands.filters import Wanted
from shmrec.commands.parameters import to_moment
from shmrec.commands.tail_output import Output
from shmrec.commands.verbs import tail as verb
from shmrec.follow import WINDOW_NS, Follower
from shmrec.layout import ENTRY
from shmrec.segment import open_segment

from .conftest import WAIT_SECONDS, wait_until
from .dumping import DUMP, HOSTILE, Scene, a_scene, environment, failure
from .joined import SECOND, joined
from .recordings import rings, unserved


class Tail:
    """`tail` with these arguments, its output read as it comes."""

    def __init__(self, *args: str) -> None:
        self.running = subprocess.Popen(
            [*DUMP, "tail", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.lines: list[str] = []
        self._said: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=pair)
            for pair in (
                (self.running.stdout, self.lines),
                (self.running.stderr, self._said),
            )
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream: Any, into: list[str]) -> None:
        for line in stream:
            into.append(line.rstrip("\n"))

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.lines)]

    @property
    def said(self) -> str:
        return "\n".join(self._said)

    def see(self, part: str) -> None:
        """Wait until it has printed a line with that."""
        wait_until(lambda: any(part in line for line in list(self.lines)))

    def hear(self, part: str) -> None:
        """The same of standard error."""
        wait_until(lambda: part in self.said)

    def end(self, number: int | None = None) -> int:
        """Its status, at the signal or by itself."""
        if number is not None:
            self.running.send_signal(number)
        status = self.running.wait(WAIT_SECONDS)
        for thread in self._threads:
            thread.join()
        return status

    def close(self) -> None:
        self.running.kill()
        self.end()
        for stream in (self.running.stdout, self.running.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def scene(recording_name: str, tmp_path: Path) -> Iterator[Scene]:
    with a_scene(recording_name, tmp_path) as scene:
        yield scene


@pytest.fixture
def tail() -> Iterator[Callable[..., Tail]]:
    """Starts `Tail`s and ends them with the test."""
    started: list[Tail] = []

    def start(*args: str) -> Tail:
        started.append(Tail(*args))
        return started[-1]

    yield start
    for each in started:
        each.close()


JOIN = """
pid = os.fork()
if not pid:
    shmrec.attach(label="late")
    shmrec.instant("late.here")
    shmrec.detach()
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_events_come_as_they_are_recorded(scene: Scene, tail: Callable[..., Tail]) -> None:
    follower = tail(scene.name)
    follower.see("scene.ready")
    before = len(follower.lines)
    assert before == 10
    scene.do("shmrec.instant('now', n=1)")
    follower.see("now  n=1")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{6}  master\[\d+\] +MainThread +instant +now  n=1", follower.lines[-1]
    )
    scene.do(f"exec({JOIN!r})")
    follower.see("late.here")
    follower.see("-- left in order")
    os.kill(scene.workers[0], signal.SIGKILL)
    follower.see("-- ended without leaving")
    late = [line.split("  ", 1)[1].strip() for line in follower.lines if "late[" in line]
    assert [re.sub(r"late\[\d+\] +", "", line) for line in late] == [
        "-- joined", "MainThread    instant   late.here", "-- left in order",
    ]  # fmt: skip
    # Quietly: whoever types Ctrl-C knows.
    assert follower.end(signal.SIGINT) == 130
    assert follower.said == ""
    assert all(line.isprintable() for line in follower.lines)


def test_as_json_in_the_order_of_time(scene: Scene, tail: Callable[..., Tail]) -> None:
    follower = tail(scene.name, "--json", "--since", "1h")
    follower.see("scene.ready")
    scene.do("[shmrec.counter('n', n) for n in range(500)]")
    follower.see('"value": 499')
    events = follower.objects
    assert [each["value"] for each in events if each["name"] == "n"] == list(range(500))
    assert [each["time_ns"] for each in events] == sorted(each["time_ns"] for each in events)
    assert {each["pid"] for each in events} >= set(scene.workers)
    assert f"query {HOSTILE}" in {each["name"] for each in events}
    assert all(line.isascii() for line in follower.lines)
    assert set(events[0]) == {
        "time_ns", "wall", "pid", "label", "thread", "thread_name", "kind", "name", "span", "args",
        "generation",
    }  # fmt: skip


FILTERS: list[tuple[tuple[str, ...], list[str]]] = [
    (("--kind", "counter", "-n", "999"), ["queue"] * 3),
    (("--name", "scene.*", "-n", "999"), ["scene.ready"]),
    (("--kind", "begin", "--name", "req*", "-n", "2"), ["request"] * 2),
    (("--kind", "begin", "--thread", "nobody"), []),
    (("-n", "0"), []),
    (("-n", "1"), ["scene.ready"]),
    (("--since", "0", "--kind", "counter"), []),
]
LAST = """
import threading
def last():
    shmrec.end(shmrec.begin("req.scene.last"))
    shmrec.counter("req.scene.last", 1)
    shmrec.instant("scene.last")
thread = threading.Thread(target=last, name="nobody")
thread.start()
thread.join()
"""


def test_filters(scene: Scene, tail: Callable[..., Tail]) -> None:
    followers = [tail(scene.name, "--json", *args) for args, _ in FILTERS]

    def started() -> bool:
        # What is wanted by all of them: who shows it has begun, and has shown what came before.
        scene.do(f"exec({LAST!r})")
        return all(any(".last" in line for line in each.lines) for each in followers)

    wait_until(started)
    for each, (args, expected) in zip(followers, FILTERS, strict=True):
        names = [event["name"] for event in each.objects if "name" in event]
        before = [name for name in names if ".last" not in name]
        # Of who began a little later the last ones are others.
        assert before in (expected, []) if "1" in args or "2" in args else before == expected, args


def test_of_one_process(scene: Scene, tail: Callable[..., Tail]) -> None:
    pid = scene.workers[1]
    follower = tail(scene.name, "--json", "-n", "100", "--pid", str(pid))
    wait_until(lambda: len(follower.lines) >= 7)
    for each in scene.workers[:2]:
        os.kill(each, signal.SIGKILL)
    follower.see('"died"')
    assert {each["pid"] for each in follower.objects} == {pid}
    assert len(follower.lines) == 8


def test_gaps_are_shown_and_counted(
    recording_name: str, tmp_path: Path, script: Callable[..., Any], tail: Callable[..., Tail]
) -> None:
    program = script(
        "import shmrec, sys\n"
        "name, directory = sys.argv[1:]\n"
        "with shmrec.FlightRecorder(name, directory=directory, size=65536):\n"
        "    shmrec.instant('first')\n"
        "    print('ready', flush=True)\n"
        "    for line in sys.stdin:\n"
        "        for n in range(int(line)): shmrec.counter('n', n)\n"
        "        print('done', flush=True)\n",
        recording_name,
        str(tmp_path),
    )
    assert program.line() == "ready"
    follower = tail(recording_name, "--json")
    follower.see("first")
    follower.running.send_signal(signal.SIGSTOP)
    wait_until(lambda: (process.stat(follower.running.pid) or process.Stat("", 0, 0)).state == "T")
    program.say("50000")
    assert program.line() == "done"
    follower.running.send_signal(signal.SIGCONT)
    follower.see('"value": 49999')
    [gap] = [each for each in follower.objects if each["kind"] == "gap"]
    values = [each["value"] for each in follower.objects if each["kind"] == "counter"]
    assert values == list(range(50000 - len(values), 50000))
    assert gap["lost"] == gap["lost_so_far"] == 50000 - len(values)
    kinds = [each["kind"] for each in follower.objects]
    assert kinds.index("gap") == kinds.index("counter") - 1


def test_a_reader_that_goes_away(scene: Scene) -> None:
    read, write = os.pipe()
    running = subprocess.Popen(
        [*DUMP, "tail", scene.name],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment({"PYTHONUNBUFFERED": ""}),
    )
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    # Nothing more is recorded: it notices all the same.
    assert running.wait(WAIT_SECONDS) == 141
    assert running.stderr is not None
    assert running.stderr.read() == b""
    running.stderr.close()


def test_a_restart(scene: Scene, tmp_path: Path, tail: Callable[..., Tail]) -> None:
    waiting, leaving = tail(scene.name, "--json"), tail(scene.name, "--no-wait")
    for each in (waiting, leaving):
        each.see("scene.ready")
    scene.do("shmrec.instant('last.words')")
    assert scene.script.process.stdin is not None
    scene.script.process.stdin.close()
    assert leaving.end() == 0
    assert f"recording {scene.name} has ended" in leaving.said
    assert any("last.words" in line for line in leaving.lines)
    waiting.hear("has ended: waiting for the next")
    before = len(waiting.lines)
    with a_scene(scene.name, tmp_path / "again") as again:
        waiting.hear("has begun anew")
        wait_until(
            lambda: any(each.get("name") == "scene.ready" for each in waiting.objects[before:])
        )
        fresh = waiting.objects[before:]
        assert fresh[0]["kind"] == "begun"
        # From its very beginning.
        names = [each["name"] for each in fresh if each["pid" if "pid" in each else "kind"]
                 in again.workers and "name" in each]  # fmt: skip
        assert names.count("warm-up") == 6
    assert waiting.objects[before - 1] == {
        **waiting.objects[before - 1], "kind": "ended", "recording": scene.name,
    }  # fmt: skip


def test_until_a_time_that_has_passed(scene: Scene, tail: Callable[..., Tail]) -> None:
    scene.do("import time")
    scene.do("time.sleep(0.05); middle = time.time_ns(); time.sleep(0.05)")
    scene.do("shmrec.instant('behind')")
    scene.do("open(directory + '/middle', 'w').write(str(middle // 1000))")
    micros = int((scene.directory / "middle").read_text())
    middle = datetime.fromtimestamp(micros / 1e6, UTC).replace(tzinfo=None)
    for when in (middle.isoformat(), middle.time().isoformat()):
        for more in ((), ("-n", "3"), ("--since", "1h")):
            follower = tail(scene.name, "--json", "--until", when, *more)
            assert (follower.end(), follower.said) == (0, "")
            names = [each["name"] for each in follower.objects if "name" in each]
            assert names[-1] == "scene.ready"
            assert len(names) == {(): 10, ("-n", "3"): 3}.get(more, len(names))


NOON = 43_200 * SECOND


@pytest.mark.parametrize(
    ("when", "since", "expected"),
    [
        ("5", None, -5),
        ("+5", None, 5),
        ("+250ms", None, 0.25),
        ("1970-01-02T12:00:07Z", None, 86_407),
        # A time of day: the nearest, or the first since.
        ("12:00:30", None, 30),
        ("11:59:30", None, -30),
        ("23:00", None, 39_600),
        ("01:00", None, -39_600),
        ("01:00", 39_000, 46_800),
        ("01:00", 40_000, -39_600),
        ("11:59:30", 60, -30),
        ("11:59:30", 20, 86_370),
    ],
)
def test_what_until_means(when: str, since: int | None, expected: float) -> None:
    now = 1_000_000 * SECOND
    since_ns = now - since * SECOND if since is not None else None
    found = to_moment(when).ending(now, NOON, since_ns)
    assert 0 <= found - (now + expected * SECOND) < 1000


@pytest.mark.parametrize("when", ["+", "+5s ago", "++5", "+-5", "5+"])
def test_what_until_does_not_mean(when: str) -> None:
    with pytest.raises(click.BadParameter):
        to_moment(when)


def test_until_is_over_as_soon_as_all_has_been_printed(
    recording_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(recording_name) as made:
        made.join(0)
        follower = Follower(made.segment)
        follower.from_now()
        made.put(0, "x")
        until = made.now
        for after, over in ((0, False), (WINDOW_NS - 1, False), (WINDOW_NS, True)):
            follower.poll(until + after)
            assert verb._passed(until, until + after, follower) == over
        # Who cannot be read as fast as it records holds up, but not for ever.
        monkeypatch.setattr(follow, "BATCHES_A_POLL", 1)
        while not follower.behind:
            made.put(0, "y", filler="x" * 900)
            made.put(0, "y", filler="x" * 900)
            if made.reader(0).announced()[1] > 3:
                follower.poll(made.now)
        until = made.now
        assert not verb._passed(until, until + 2 * SECOND, follower)
        assert verb._passed(until, until + 31 * SECOND, follower)
        assert verb._passed(until, until)


def test_looking_back_ends_however_fast_and_whatever_is_wanted(
    recording_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # What the filter lets pass never comes, and whenever it has read there is more.
    class Faster(Follower):
        polls = 0

        @property
        def behind(self) -> bool:
            Faster.polls += 1
            assert Faster.polls < 1000
            return True

    with joined(recording_name) as made:
        made.join(0)
        made.put(0, "x")
        output = Output(Wanted(name="nothing"), None, None, False)
        verb._catch_up(Faster(made.segment, window_ns=0), output, 10)
        assert capsys.readouterr().out == ""


def test_until_a_time_to_come(scene: Scene, tail: Callable[..., Tail]) -> None:
    began = time.monotonic()
    following = tail(scene.name, "--json", "--until", "+1.5s")
    following.see("scene.ready")
    # More often than it looks, till it has ended.
    while following.running.poll() is None:
        scene.do("shmrec.instant('tick')")
    assert time.monotonic() - began >= 1.5
    assert (following.end(), following.said) == (0, "")
    ticks = [each["time_ns"] for each in following.objects if each.get("name") == "tick"]
    asked = began * 1e9 + 1.5e9
    assert ticks
    # What happened just before is not held back; nothing later is shown.
    assert asked - 0.5e9 < max(ticks) < asked + 5e9


def test_until_while_there_is_no_recording(scene: Scene, tail: Callable[..., Tail]) -> None:
    following = tail(scene.name, "--until", "+4s")
    following.see("scene.ready")
    assert scene.script.process.stdin is not None
    scene.script.process.stdin.close()
    following.hear("has ended: waiting for the next")
    assert following.end() == 0


def test_a_count_that_is_a_lie(scene: Scene, tail: Callable[..., Tail]) -> None:
    pid = scene.workers[0]
    with open_segment(scene.name) as segment:
        [index] = [each.index for each in rings(segment) if each.entry().pid == pid]
        at = ENTRY.word("opening", segment.geometry.entry(index))
        honest = tail(scene.name, "--json", "-n", "99", "--pid", str(pid), "--until", "0")
        assert honest.end() == 0
        running = tail(scene.name, "--pid", str(pid))
        running.see("exception")
        kept, segment.words[at] = segment.words[at], 1 << 40
        running.see("-- its count of batches is not to be believed: ring")
        for more in (("-n", "99"), ("--since", "1h")):
            lied = tail(scene.name, "--json", *more, "--pid", str(pid), "--until", "+0.5s")
            assert lied.end() == 0
            found = lied.objects
            [doubt] = [each for each in found if each["kind"] == "doubted"]
            assert str(1 << 40) in doubt["text"]
            assert [each for each in found if "name" in each] == [
                {**each, "wall": mine["wall"]}
                for each, mine in zip(
                    honest.objects, (e for e in found if "name" in e), strict=True
                )
            ]
        segment.words[at] = kept


def test_it_disturbs_nobody(scene: Scene, tail: Callable[..., Tail]) -> None:
    with open_segment(scene.name, writable=False) as segment:
        scene.kill_collector()
        before = bytes(segment.view[: segment.geometry.rings_offset])
        follower = tail(scene.name, "-n", "1000")
        follower.see("scene.ready")
        assert follower.end(signal.SIGINT) == 130
        assert bytes(segment.view[: segment.geometry.rings_offset]) == before


def test_of_another_boot(recording_name: str) -> None:
    with unserved(recording_name) as segment:
        boot = segment.field("boot_id")
        where = bytes(segment.view[:4096]).index(boot)
        segment.view[where] ^= 1
        assert "another boot" in failure("tail", recording_name)
