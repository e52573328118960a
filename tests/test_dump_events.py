"""``shmrec-dump events``: JSON lines as a contract, filters, moments, long outputs."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest

from shmrec.commands.timeline import event_parts
from shmrec.decoder import Event
from shmrec.manifest import Header, Producer
from shmrec.snapshot_file import read

from .dumping import (
    DUMP,
    HOSTILE,
    batch,
    crash,
    dump,
    environment,
    failure,
    on_terminal,
    write_file,
)

SECOND = 1_000_000_000
TAKEN = datetime(2026, 1, 31, 12, 30, 5, 250_000, tzinfo=UTC)
KEYS = {
    "time_ns",
    "wall",
    "pid",
    "label",
    "thread",
    "thread_name",
    "kind",
    "name",
    "span",
    "args",
    "generation",
}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crash(f"test-{os.getpid()}-events", tmp_path_factory.mktemp("events"))[0]


@pytest.fixture
def seconds(tmp_path: Path) -> Path:
    """Events s0 to s9, one a second, the last a second before the snapshot; two threads."""
    happenings: list[list[Any]] = []
    for n in range(10):
        thread, name = (11, "MainThread") if n % 2 else (12, "helper")
        happenings += [[1, 0, thread, name], [3, SECOND if n else 0, f"s{n}"]]
    head = Header(
        recording="web",
        taken_mono_ns=1_000 * SECOND,
        taken_wall_ns=int(TAKEN.timestamp() * 1_000_000) * 1_000,
        generation=1,
        flushes=2,
    )
    first = batch(*happenings, start_ns=990 * SECOND + 123)
    second = batch([1, 0, 13, "other"], [3, 0, "late"], start_ns=(999 * SECOND) + 999)
    producers = [Producer(index=n, pid=100 + n, label=f"w{n}", state="running") for n in (0, 1)]
    return write_file(
        tmp_path / "web-20260131T123005Z-x-1.shmrec",
        head,
        [(producers[0], [first]), (producers[1], [second])],
    )


def found(path: Path, *args: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dump("events", path, *args, "--json").stdout.splitlines()]


def names(path: Path, *args: object) -> list[str]:
    return [each["name"] for each in found(path, *args)]


def test_json_lines(crashed: Path) -> None:
    snapshot = read(crashed)
    shown = found(crashed)
    expected = list(snapshot.events())
    assert len(shown) == len(expected) == sum(each.events for each in snapshot.producers)
    for each, event in zip(shown, expected, strict=True):
        assert each.keys() >= KEYS
        assert each["time_ns"] == event.time_ns
        wall = datetime.fromisoformat(each["wall"])
        assert wall.utcoffset() is not None
        assert abs(wall.timestamp() - snapshot.wall_ns(event.time_ns) / 1e9) < 1e-5
        assert (each["pid"], each["label"]) == (event.pid, event.label)
        assert (each["thread"], each["thread_name"]) == (event.thread, event.thread_name)
        assert (each["kind"], each["name"]) == (event.kind, event.name)
        assert each["generation"] == event.generation
        assert ("duration_ns" in each) == (event.kind == "end")
        assert ("value" in each) == (event.kind == "counter")
        assert (each["span"] or 0) == event.span
    times = [each["time_ns"] for each in shown]
    assert times == sorted(times)


def test_json_of_odd_arguments(crashed: Path) -> None:
    missed = found(crashed, "--name", "cache.miss")[0]
    assert missed["args"] == {"key": "k0", "blob": {"base64": "/wA="}, "ratio": "nan"}
    assert missed["span"] is None
    queue = found(crashed, "--kind", "counter")
    assert [each["value"] for each in queue] == [0, 1, 2]
    ended = found(crashed, "--kind", "end")
    assert {each["name"] for each in ended} == {"warm-up"}
    assert all(each["duration_ns"] > 0 for each in ended)
    raised = found(crashed, "--kind", "exception")[0]
    assert raised["name"] == "ValueError"
    assert raised["args"]["message"] == HOSTILE


def test_text(crashed: Path) -> None:
    shown = dump("events", crashed, env={}).stdout
    assert all(char.isprintable() or char == "\n" for char in shown)
    lines = shown.splitlines()
    assert len(lines) == len(found(crashed))
    miss = next(line for line in lines if "cache.miss" in line)
    assert miss.endswith(r"instant   cache.miss  key=k0 blob=b'\xff\x00' ratio=nan")
    assert "worker 0[" in miss
    assert "MainThread" in miss
    assert any("end       warm-up took " in line for line in lines)
    assert any("counter   queue = 2" in line for line in lines)
    coloured = on_terminal("events", crashed, "--tail", "2", columns=20)
    assert "\x1b[" in coloured
    assert coloured.count("\n") == 2
    assert "\x1b" not in on_terminal("events", crashed, env={"NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("args", "style"),
    [
        ({"level": "DEBUG"}, "dim"),
        ({"level": "INFO"}, ""),
        ({"level": "WARNING"}, "warn"),
        ({"level": "ERROR"}, "bad"),
        ({"level": "NOTICE", "levelno": 25}, ""),
        ({"level": "\x1b[31mERROR", "levelno": 40}, "bad"),
        # Not by our handler.
        ({"level": ["ERROR"]}, ""),
        ({"level": "ERROR", "levelno": "loud"}, ""),
        ({"levelno": -1}, ""),
        ({}, ""),
    ],
)
def test_a_log_looks_as_its_level(args: dict[str, Any], style: str) -> None:
    event = Event(1, "log", "shop.orders", 1, "MainThread", 1, args=args)
    kind, name, *_ = event_parts(event)
    assert kind == ("log       ", style)
    assert name == ("shop.orders", "name")


def test_filters(seconds: Path) -> None:
    everything = [f"s{n}" for n in range(10)] + ["late"]
    assert names(seconds) == everything
    assert names(seconds, "--pid", 101) == ["late"]
    assert names(seconds, "--pid", 101, "--pid", 100) == everything
    assert names(seconds, "--thread", 12) == ["s0", "s2", "s4", "s6", "s8"]
    assert names(seconds, "--thread", "helper") == ["s0", "s2", "s4", "s6", "s8"]
    assert names(seconds, "--name", "s[3-5]") == ["s3", "s4", "s5"]
    assert names(seconds, "--kind", "instant", "--kind", "end") == everything
    assert names(seconds, "--kind", "counter") == []
    assert names(seconds, "--kind", "log") == []
    assert names(seconds, "--tail", 2) == ["s9", "late"]
    assert names(seconds, "--tail", 0) == []
    assert names(seconds, "--thread", "helper", "--tail", 1) == ["s8"]


def test_a_pid_that_is_not_there_is_said(seconds: Path) -> None:
    for form in ((), ("--json",), ("--count",)):
        done = dump("events", seconds, "--pid", 5, *form, check=1)
        assert done.stdout == ""
        assert "no process 5" in done.stderr
    done = dump("events", seconds, "--pid", 5, "--pid", 101)
    assert "no process 5" in done.stderr
    assert "late" in done.stdout


@pytest.mark.parametrize("moment", ["3", "-3", "3s", "3 s ago", "3000ms", "0.05m"])
def test_moments_before_the_snapshot(seconds: Path, moment: str) -> None:
    # s7 came 123 ns after 3 seconds before.
    assert names(seconds, "--since", moment) == ["s7", "s8", "s9", "late"]
    assert names(seconds, f"--until={moment}")[-1] == "s6"


@pytest.mark.parametrize(
    "moment",
    [
        "2026-01-31T12:30:02.250000Z",
        "2026-01-31 12:30:02.25",
        "2026-01-31T13:30:02.25+01:00",
        "12:30:02.25",
        "12:30:02.250000Z",
    ],
)
def test_moments_of_the_clock(seconds: Path, moment: str) -> None:
    assert names(seconds, "--since", moment) == ["s7", "s8", "s9", "late"]
    # What is printed as this microsecond is in it.
    assert names(seconds, "--until", moment)[-1] == "s7"


@pytest.mark.parametrize("moment", ["3e", "", "yesterday", "25:00", "2026-02-30T00:00:00", "1e9"])
def test_what_is_no_moment(seconds: Path, moment: str) -> None:
    assert "is no moment" in failure("events", seconds, "--since", moment, check=2)


def test_a_time_of_day_is_the_last_one_before_the_snapshot(seconds: Path) -> None:
    assert len(names(seconds, "--since", "12:30:06")) == 11
    assert names(seconds, "--until", "12:30:06") == []


def test_a_printed_time_can_be_given_back(seconds: Path) -> None:
    line = dump("events", seconds, "--name", "s4").stdout
    printed = line.split()[0]
    assert names(seconds, "--since", printed, "--until", printed) == ["s4"]
    wall = found(seconds, "--name", "s4")[0]["wall"]
    assert names(seconds, "--since", wall, "--until", wall) == ["s4"]


def test_a_reader_that_goes_away(seconds: Path) -> None:
    big = batch(*([3, 1, "n" * 200] for _ in range(50)), number=1, start_ns=1)
    many = [
        batch(*([3, 1, "n" * 200] for _ in range(50)), number=n, start_ns=n * 100)
        for n in range(1, 200)
    ]
    file = write_file(
        seconds.parent / "big.shmrec",
        Header(recording="big", taken_mono_ns=SECOND),
        [(Producer(pid=1, state="running"), [big, *many])],
    )
    for options in ((), ("--json",)):
        process = subprocess.Popen(
            [*DUMP, "events", str(file), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 141


def test_a_full_disk_is_one_line(seconds: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*DUMP, "events", str(seconds)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_nothing_breaks_json(tmp_path: Path) -> None:
    deep: Any = "end"
    for _ in range(200):
        deep = [deep]
    args = {
        "deep": deep,
        "ext": msgpack.ExtType(5, b"\x1b"),
        "time": msgpack.Timestamp(0, 0),
        "keys": {1: 2, None: 3, b"\xff": 4},
        "inf": float("-inf"),
        "big": (1 << 64) - 1,
        "del": "\x7f\x9b\u2028",
    }
    file = write_file(
        tmp_path / "odd.shmrec",
        Header(recording="odd"),
        [
            (
                Producer(pid=1, state="running"),
                [
                    batch(
                        [3, 0, "odd", args],
                        [6, 1 << 62, HOSTILE, {"a": b"\x00"}],
                        [6, -(1 << 63), "nan", float("nan")],
                    )
                ],
            )
        ],
    )
    shown = dump("events", file, "--json").stdout
    assert shown.isascii()
    by_name = {each["name"]: each for each in map(json.loads, shown.splitlines())}
    assert by_name["odd"]["args"]["inf"] == "-inf"
    assert by_name["odd"]["args"]["keys"] == {"1": 2, "None": 3, "b'\\xff'": 4}
    assert by_name["odd"]["args"]["big"] == (1 << 64) - 1
    assert by_name[HOSTILE]["value"] == {"a": {"base64": "AA=="}}
    assert by_name["nan"]["value"] == "nan"
    text = dump("events", file).stdout
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) == 3


def test_count(seconds: Path) -> None:
    def counted(*args: object) -> int:
        return int(dump("events", seconds, "--count", *args).stdout)

    for filters in (
        (),
        ("--pid", 101),
        ("--thread", "helper"),
        ("--name", "s[1-3]"),
        ("--kind", "end"),
        ("--since", 5, "--until", "3"),
        ("--tail", 4),
        ("--tail", 0),
        ("--tail", 99, "--name", "s*"),
    ):
        assert counted(*filters) == len(names(seconds, *filters))
    shown = dump("events", seconds, "--count", "--json", "--name", "s*").stdout
    assert json.loads(shown) == {"events": 10}


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """An event in the middle of one process's facts, and facts of another without events."""
    head = Header(recording="web", taken_mono_ns=100 * SECOND, generation=1, flushes=2)
    rows = [
        [90 * SECOND, 1000, 0, 2, 7, "S"],
        [91 * SECOND, 2000, SECOND // 4, 2, -1, "R"],
        [92 * SECOND, -1, SECOND // 2, -1, 8, "R"],
    ]
    other = [[90 * SECOND + 1, 5, 5, 1, 3, "S"], [90 * SECOND + 1, 6, 4, 1, 3, "S"]]
    producers = [
        Producer(index=0, pid=100, label="w0", state="running", facts=rows),
        Producer(index=1, pid=101, label=HOSTILE, state="dead", facts=other),
    ]
    event = batch([1, 0, 11, "MainThread"], [3, 0, "event"], start_ns=91 * SECOND - 1)
    path = tmp_path / "web-20260131T123005Z-x-1.shmrec"
    return write_file(path, head, [(producers[0], [event]), (producers[1], [])])


def test_facts_are_counters_on_the_timeline(facts: Path) -> None:
    assert names(facts) == ["event"]
    shown = found(facts, "--facts", "--pid", 100)
    assert [(each["time_ns"] // SECOND, each["name"], each.get("value")) for each in shown] == [
        (90, "process.rss", 1000),
        (90, "process.threads", 2),
        (90, "process.open_files", 7),
        (90, "event", None),
        (91, "process.rss", 2000),
        (91, "process.threads", 2),
        (91, "process.cpu", 25.0),
        (92, "process.open_files", 8),
        (92, "process.cpu", 25.0),
    ]
    assert {each["pid"] for each in shown} == {100}
    assert {each["kind"] for each in shown} == {"instant", "counter"}
    assert len(found(facts, "--facts")) == 9 + 6
    times = [each["time_ns"] for each in found(facts, "--facts")]
    assert times == sorted(times)
    assert [event.name for event in read(facts).events(facts=True)].count("process.rss") == 4


def test_facts_go_through_the_same_filters(facts: Path) -> None:
    assert names(facts, "--facts", "--name", "process.rss", "--since", "9.5") == ["process.rss"]
    assert names(facts, "--facts", "--kind", "instant") == ["event"]
    assert dump("events", facts, "--facts", "--count").stdout.strip() == "15"
    shown = dump("events", facts, "--facts", "--name", "process.rss", "--pid", 101).stdout
    assert "process.rss = 5" in shown
    assert "\x1b" not in shown


def test_the_count_is_of_what_can_be_decoded(tmp_path: Path) -> None:
    good = [[1, 0, 11, "main"], *([3, 1, f"s{n}"] for n in range(5))]
    broken = batch(*good)
    broken.payload += msgpack.packb([99, 0, 0]) + msgpack.packb([3, 1, 1])
    broken.head.count = 7
    path = write_file(
        tmp_path / "web-20260131T123005Z-x-1.shmrec",
        Header(recording="web", taken_mono_ns=10**15, generation=1, flushes=2),
        [(Producer(index=0, label="w", state="running"), [broken, batch(*good, number=2)])],
    )
    assert int(dump("events", path, "--count", check=1).stdout) == 10
    assert dump("events", path, check=1).stdout.count("instant") == 10
    assert "unknown kind of event 99" in "".join(read(path).verify())
