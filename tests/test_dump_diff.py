"""``shmrec-dump diff``: its text, its JSON as a contract, and which snapshots it takes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from shmrec.manifest import Cause, Header, Producer, Stack
from shmrec.ring import Batch

from .dumping import HOSTILE, batch, dump, dump_json, failure, on_terminal, write_file

SECOND = 1_000_000_000
WALL = 1_790_000_000 * SECOND
THREAD, INSTANT, BEGIN, END = 1, 3, 4, 5
STACK = """\
Thread 0x00007f0000000001 (most recent call first):
  File "/app/views.py", line {line} in handler
  File "/app/wsgi.py", line 3 in application

Thread 0x00007f0000000002 (most recent call first):
  File "/app/pool.py", line {line}0 in work
"""

Held = tuple[Producer, list[Batch]]


def name(second: int, recording: str = "web", reason: str = "asked") -> str:
    return f"{recording}-20260131T1200{second:02}Z-{reason}-1.shmrec"


def write(directory: Path, second: int, *held: Held, file: str = "", **fields: Any) -> Path:
    values: dict[str, Any] = {
        "recording": "web",
        "run_id": "one",
        "host": "there",
        "reason": "asked",
        "taken_mono_ns": second * SECOND,
        "taken_wall_ns": WALL + second * SECOND,
        "generation": 1,
        "flushes": 2,
    }
    header = Header(**{**values, **fields})
    path = write_file(directory / (file or name(second, header.recording)), header, list(held))
    os.utime(path, (second, second))
    return path


def producer(index: int, **fields: Any) -> Producer:
    values = {"pid": 100 + index, "label": f"w{index}", "state": "running", "evidence": "idle"}
    return Producer(index=index, **{"identity": f"{index:032x}", **values, **fields})


def events(*happenings: list[Any], start: int, thread: str = "MainThread") -> list[Batch]:
    return [batch([THREAD, 0, 11, thread], *happenings, start_ns=start * SECOND)]


def stack(at: int, line: int, other: int) -> Stack:
    text = STACK.format(line=line).replace(f"line {line}0", f"line {other}0")
    return Stack("asked", at * SECOND, text, idents={0x7F0000000001: 11, 0x7F0000000002: 12})


def facts(second: int, rss: int, busy: int) -> list[list[Any]]:
    return [[second * SECOND, rss, busy * SECOND, 4, 9, "R"]]


@pytest.fixture
def incident(tmp_path: Path) -> tuple[Path, Path]:
    """w0 hangs, w1 dies, w2 goes on, w3's ring is taken by w4."""
    hang = [BEGIN, 0, "request", 1, {"path": "/slow"}]
    cause = Cause("signal 9 (SIGKILL)", "kernel (pidfd)", signal=9)
    before: tuple[Held, ...] = (
        (
            producer(0, recorded=10, stacks=[stack(10, 7, 5)], facts=facts(9, 64 << 20, 1)),
            events(hang, start=8),
        ),
        (producer(1, recorded=10), events(hang, start=9, thread="pool")),
        (producer(2, recorded=100), events([END, 0, "query", 2_000_000, 5], start=9)),
        (producer(3), []),
    )
    after: tuple[Held, ...] = (
        (
            producer(0, recorded=10, stacks=[stack(37, 7, 6)], facts=facts(37, 256 << 20, 15)),
            events(hang, start=8),
        ),
        (
            producer(1, recorded=12, state="dead", ended_ns=20 * SECOND, cause=cause),
            events(hang, [END, SECOND, "request", SECOND, 1], start=9),
        ),
        (
            producer(2, recorded=700, losses={"overwritten": 40, "oversized": 2}),
            events(*[[END, 1, "query", 9_000_000, 6]] * 3, [BEGIN, 0, "query", 7], start=30),
        ),
        (producer(3, identity="f" * 32, pid=200, label="w4"), []),
    )
    first = write(tmp_path, 10, *before)
    second = write(tmp_path, 37, *after, suppressed={"stall": 4}, reason="stall of w0")
    return first, second


def test_text(incident: tuple[Path, Path]) -> None:
    first, second = incident
    shown = dump("diff", first, second).stdout
    assert shown.startswith("What changed in web on there in 27.0 s\n")
    assert shown.index(str(first)) < shown.index(str(second))
    assert "\nDied: pid 101 (w1): signal 9 (SIGKILL)\n" in shown
    assert "\nCame: pid 200 (w4)\n" in shown
    assert re.search(r"^Went before, .*: pid 103 \(w3\)$", shown, re.M)
    still = shown[shown.index("Still inside of") : shown.index("Threads that")]
    assert re.search(r"^ +100 +w0 +request  path=/slow +2\.0 s +29\.0 s$", still, re.M)
    unmoved = shown[shown.index("Threads that") : shown.index("Open since")]
    in_handler = r"^ +100 +w0 +MainThread +handler  /app/views.py:7$"
    assert re.search(in_handler, unmoved, re.M)
    assert "1 other moved." in unmoved
    new = shown[shown.index("Open since") : shown.index("Open before")]
    assert re.search(r"^ +102 +w2 +query +7\.0 s", new, re.M)
    finished = shown[shown.index("Open before") : shown.index("Processes")]
    assert re.search(
        r"^ +101 +w1 \(dead\) +request  path=/slow +1\.0 s +1\.0 s +pool$", finished, re.M
    )
    table = shown[shown.index("Processes") : shown.index("Spans that")]
    memory = r"64\.0 MiB → 256\.0 MiB +4 +9 +50%$"
    assert re.search(rf"^ +100 +w0 +running +0\.5 +0\.0 +0\.0 +{memory}", table, re.M)
    assert re.search(r"^ +101 +w1 +running → dead ", table, re.M)
    assert re.search(r"^ +102 +w2 +running +1\.0 +22 ", table, re.M)
    assert re.search(r"^ +query +1 +3 +2\.0 ms +9\.0 ms +2\.0 ms +9\.0 ms$", shown, re.M)
    assert "\nLost by pid 102 (w2): 2 oversized, 40 overwritten\n" in shown
    assert shown.endswith("Snapshots that limits forbade meanwhile: 4 stall\n")


def test_json(incident: tuple[Path, Path]) -> None:
    first, second = incident
    found = dump_json("diff", first, second)
    assert found["recording"] == "web"
    assert (found["same_run"], found["swapped"]) == (True, False)
    assert found["elapsed_ns"] == 27 * SECOND
    assert (found["before"]["file"], found["after"]["file"]) == (str(first), str(second))
    assert found["after"]["reason"] == "stall of w0"
    assert found["suppressed"] == {"stall": 4}
    by_pid = {each["pid"]: each for each in found["producers"]}
    assert {pid: each["change"] for pid, each in by_pid.items()} == {
        100: "stayed",
        101: "died",
        102: "stayed",
        200: "came",
        103: "went",
    }
    hanging = by_pid[100]
    assert hanging["spans"] == [
        {
            "change": "still",
            "name": "request",
            "span": 1,
            "thread": 11,
            "thread_name": "MainThread",
            "start_ns": 8 * SECOND,
            "age_ns": 29 * SECOND,
            "earlier_age_ns": 2 * SECOND,
            "took_ns": None,
            "args": {"path": "/slow"},
        }
    ]
    assert [(each["thread"], each["moved"]) for each in hanging["threads"]] == [
        (11, False),
        (12, True),
    ]
    assert (hanging["before"]["rss"], hanging["after"]["rss"]) == (64 << 20, 256 << 20)
    assert hanging["busy"] == 0.5
    assert by_pid[101]["after"]["cause"]["signal"] == 9
    assert by_pid[102]["lost"] == {"overwritten": 40, "oversized": 2}
    assert by_pid[200]["before"] is None
    assert by_pid[103]["after"] is None
    query = next(each for each in found["names"] if each["name"] == "query")
    assert query["before"] == {
        "count": 1,
        "median_ns": 2_000_000,
        "most_ns": 2_000_000,
        "total_ns": 2_000_000,
    }


def test_the_order_of_the_files_is_said(incident: tuple[Path, Path]) -> None:
    first, second = incident
    plain, other = (dump("diff", *pair).stdout for pair in ((first, second), (second, first)))
    line = "  The newer was named first; the older is what was before.\n"
    assert other.replace(line, "") == plain
    assert line in other
    assert dump_json("diff", second, first)["swapped"] is True


def test_which_snapshots_are_taken(tmp_path: Path) -> None:
    files = [write(tmp_path, second) for second in (10, 20, 30)]
    write(tmp_path, 40, recording="api", file=name(40, "api"))
    newest = write(tmp_path, 50)

    def taken(*args: object) -> list[str]:
        found = dump_json("diff", *args, "--dir", tmp_path)
        assert found["swapped"] is False
        return [found["before"]["file"], found["after"]["file"]]

    assert taken() == [str(files[2]), str(newest)]
    assert taken(files[0]) == [str(files[0]), str(newest)]
    assert taken(newest) == [str(files[2]), str(newest)]
    link = tmp_path / "link"
    link.symlink_to(newest)
    assert taken(link) == [str(files[2]), str(link)]
    line = failure("diff", tmp_path / name(40, "api"), "--dir", tmp_path)
    assert "has no other snapshot of recording 'api'" in line
    assert "shmrec-dump snapshot api" in line


def test_what_cannot_be_compared(incident: tuple[Path, Path], tmp_path: Path) -> None:
    other = write(tmp_path, 45, recording="api")
    assert "only two snapshots of one recording" in failure("diff", incident[0], other)
    assert "the same snapshot" in failure("diff", incident[0], incident[0])
    assert "cannot read" in failure("diff", incident[0], tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"x")
    assert "not a shmrec snapshot" in failure("diff", incident[0], tmp_path / "damaged")


def test_two_runs(tmp_path: Path) -> None:
    hang = events([BEGIN, 0, "request", 1], start=1)
    write(tmp_path, 10, (producer(0, label="w"), hang), (producer(1), []))
    later = write(tmp_path, 20, (producer(0, pid=9, label="w", state="dead"), hang), run_id="two")
    shown = dump("diff", later, "--dir", tmp_path).stdout
    assert "These are two runs of the recording: processes are paired by label" in shown
    assert "Died: pid 9 (w): unknown" in shown
    assert "Only in the earlier run: pid 101 (w1)" in shown
    assert re.search(r"100 → 9 +w +running → dead", shown)
    assert "Still" not in shown


def test_nothing_changed(tmp_path: Path) -> None:
    for second in (10, 20):
        write(tmp_path, second, (producer(0), []))
    shown = dump("diff", "--dir", tmp_path).stdout
    assert "Nobody came, went or died." in shown
    assert "Nothing that was open is still open." in shown
    assert shown.endswith("Nothing was lost meanwhile.\n")
    for second in (30, 40):
        write(tmp_path, second)
    assert "None that lived." in dump("diff", "--dir", tmp_path).stdout


def test_a_damaged_snapshot_is_said(tmp_path: Path) -> None:
    first = write(tmp_path, 10, (producer(0), []), (producer(1), []))
    second = write(tmp_path, 20, (producer(0), []))
    first.write_bytes(first.read_bytes()[:-9])
    shown = dump("diff", first, second).stdout
    assert "The earlier one is damaged" in shown


def test_long_tables_are_cut(tmp_path: Path) -> None:
    ends = [[END, 1, f"n{n:02}", 100 - n, n + 1] for n in range(30)]
    begins = [[BEGIN, 0, f"s{n:02}", n + 50] for n in range(30)]
    write(tmp_path, 10, (producer(0), events(*begins, start=1)))
    write(tmp_path, 20, (producer(0), events(*begins, *ends, start=1)))
    shown = dump("diff", "--dir", tmp_path).stdout
    assert len(re.findall(r"^ +n\d\d ", shown, re.M)) == 20
    assert len(re.findall(r" s\d\d ", shown)) == 20
    assert shown.count("and 10 more: --all lists them") == 2
    shown = dump("diff", "--all", "--dir", tmp_path).stdout
    assert len(re.findall(r"^ +n\d\d ", shown, re.M)) == 30
    assert "more" not in shown


def test_hostile_text(tmp_path: Path) -> None:
    text = f'Thread 0x01 (most recent call first):\n  File "{HOSTILE[:-2]}", line 1 in f\n'
    for second in (10, 20):
        hostile = producer(
            0,
            label=HOSTILE,
            state=HOSTILE,
            losses={HOSTILE: second},
            stacks=[Stack("asked", second, text)],
            facts=[[second * SECOND, 1, 1, 1, 1, HOSTILE]],
            cause=Cause(HOSTILE, HOSTILE),
        )
        inside = [BEGIN, 0, HOSTILE, 1, {HOSTILE: HOSTILE}]
        happened = events(inside, [END, 0, HOSTILE, 1, 9], start=1, thread=HOSTILE)
        fields: dict[str, Any] = {
            "reason": HOSTILE,
            "host": HOSTILE,
            "suppressed": {HOSTILE: second},
        }
        write(tmp_path, second, (hostile, happened), **fields)
    shown = dump("diff", "--dir", tmp_path).stdout
    assert "Threads that have not moved" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
    coloured = on_terminal("diff", "--dir", tmp_path)
    assert "\x1b]" not in coloured
    assert "\u202e" not in coloured
    assert dump_json("diff", "--dir", tmp_path)["producers"][0]["label"] == HOSTILE
