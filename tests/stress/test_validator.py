"""The validator of the trials: what it refuses, and that shmrec's reader would take much of it."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmrec
from shmrec import layout
from shmrec.layout import Frame, SlotFlag
from tools.stress import validator
from tools.stress.agreement import disagreements

from .handmade import ENDS, SEALED, File, Made, handmade

ROOT = Path(__file__).resolve().parents[2]
MARKER = struct.pack("<I", layout.FRAME_MARKER)
PARTIAL = SlotFlag.PARTIAL_PREAMBLE
Change = Callable[[File], object]


def running(file: File) -> list[Made]:
    return file.owners[0].batches


def told(file: File) -> dict[str, Any]:
    return file.owners[0].fields


def put(batch: Made, event: int, at: int, value: Any) -> None:
    batch.events[event][at] = value


def bare(file: File) -> list[list[Any]]:
    """The last frames, behind a producer without stacks."""
    file.owners[1].stacks.clear()
    return file.more


def without_the_middle(file: File) -> None:
    """A hole of two events, which nobody counts."""
    del running(file)[1]


def test_what_is_as_it_should_be_is_accepted_and_read_alike(tmp_path: Path) -> None:
    checked = validator.check(handmade().write(tmp_path / "made.shmrec"))
    assert checked.wrong == []
    assert disagreements(checked) == []
    first, second = checked.producers
    assert [event.kind for event in first.events] == [
        "begin", "instant", "end", "counter", "end", "exception",
    ]  # fmt: skip
    assert (first.open, first.missing, first.whole) == ({}, 4, True)
    assert {number: span.start_ns for number, span in second.open.items()} == {1: 1501}


def test_events_that_were_overwritten_while_they_were_copied_may_be_missing_if_counted(
    tmp_path: Path,
) -> None:
    file = handmade()
    without_the_middle(file)
    told(file)["losses"]["overwritten"] = 5
    checked = validator.check(file.write(tmp_path / "made.shmrec"))
    assert checked.wrong == []
    assert checked.producers[0].missing == 6


# Each rule of the validator has its line here: what it says, and what breaks the rule.
RULES: list[tuple[str, Change]] = [
    # Sums.
    ("are not 6 kept, 2 trimmed", lambda f: told(f).update(trimmed=2)),
    ("trimmed and 2 overwritten", lambda f: told(f)["losses"].update(overwritten=2)),
    ("are not 4 kept", without_the_middle),
    ("ends with number 10", lambda f: told(f).update(recorded=12, trimmed=3)),
    ("not even its newest", lambda f: setattr(f.owners[0], "batches", [])),
    ("losses are of the causes", lambda f: told(f)["losses"].pop("closed")),
    ("a loss is no count", lambda f: told(f)["losses"].update(closed=-1)),
    ("2 events, 3 were declared", lambda f: setattr(running(f)[0], "declared", 3)),
    # One batch after the other.
    ("generation 3 after 4", lambda f: setattr(running(f)[2], "generation", 3)),
    ("1 ns before the last event", lambda f: setattr(running(f)[2], "start_ns", 2009)),
    ("6 came before it", lambda f: setattr(running(f)[1], "first", 5)),
    ("1 events are missing before it", lambda f: setattr(running(f)[1], "first", 7)),
    ("it is not sealed", lambda f: setattr(running(f)[1], "flags", 0)),
    ("batch 7: its flags hide", lambda f: setattr(running(f)[0], "flags", SEALED)),
    ("batch 8: its flags hide", lambda f: setattr(running(f)[1], "flags", ENDS)),
    ("ends its generation and is not", lambda f: setattr(running(f)[0], "flags", ENDS - SEALED)),
    ("unknown flags", lambda f: setattr(running(f)[2], "flags", 64)),
    ("is out of range", lambda f: setattr(running(f)[0], "generation", 0)),
    ("batch 7: comes after batch 8", lambda f: running(f).reverse()),
    (
        "do not fit into a slot",
        lambda f: running(f)[2].events.append([3, 0, 1, {"x": "x" * 16300}]),
    ),
    # Preambles and spans.
    ("1 open spans are not in its preamble", lambda f: running(f)[1].events.pop(3)),
    ("0 open spans", lambda f: setattr(running(f)[1], "flags", SEALED | PARTIAL)),
    ("preamble has span 8", lambda f: put(running(f)[1], 3, 4, 1199)),
    ("preamble has span 8", lambda f: put(running(f)[1], 3, 5, {"n": 2})),
    ("preamble has span 9", lambda f: put(running(f)[1], 5, 2, 1)),
    ("preamble has span 7", lambda f: put(running(f)[1], 5, 3, 7)),
    ("span 8 is twice", lambda f: running(f)[0].events.insert(4, [2, 0, 1, 8, 1])),
    ("behind the first event", lambda f: running(f)[0].events.append([2, 0, 1, 77, 1])),
    ("span 99 ends and was not open", lambda f: put(running(f)[1], 6, 4, 99)),
    ("began as 'inner', ends as 'outer'", lambda f: put(running(f)[1], 6, 2, 1)),
    ("took 1000 ns, it says 1001", lambda f: put(running(f)[1], 6, 3, 1001)),
    ("span 8 begins, and not", lambda f: put(running(f)[0], 5, 3, 8)),
    ("span 9 begins, and not", lambda f: running(f)[2].events.append([4, 0, 1, 9])),
    ("a span's id is 'x'", lambda f: put(running(f)[0], 5, 3, "x")),
    # Names, threads, times.
    ("name number 5 comes after 2", lambda f: running(f)[2].events.append([0, 0, 5, "x"])),
    ("'outer' is given two numbers", lambda f: running(f)[2].events.append([0, 0, 2, "outer"])),
    ("too long a one", lambda f: running(f)[2].events.append([0, 0, 2, "x" * 257])),
    ("name 1 is used before", lambda f: running(f)[2].events.pop(2)),
    ("before a thread speaks", lambda f: running(f)[2].events.pop(1)),
    ("time passes at a thread", lambda f: put(running(f)[2], 1, 1, 1)),
    ("a time is -1", lambda f: put(running(f)[2], -1, 1, -1)),
    ("an age is -5", lambda f: put(running(f)[0], 3, 4, -5)),
    ("a duration is -5", lambda f: put(running(f)[2], 4, 3, -5)),
    ("4 fields of a exception", lambda f: running(f)[2].events[-1].extend([{}, 1, 2])),
    ("unknown kind 9", lambda f: put(running(f)[2], -1, 0, 9)),
    ("not an event", lambda f: running(f)[2].events.append([3])),
    ("arguments are not a map", lambda f: put(running(f)[2], 4, 5, {b"k": 7})),
    ("in the middle of the event", lambda f: setattr(running(f)[2], "behind", b"\x93\x03")),
    ("FormatError", lambda f: setattr(running(f)[2], "behind", b"\xc1")),
    # The cut, and what is said of everybody.
    ("newer than generation 3", lambda f: f.header.update(generation=3, generations=[3])),
    ("kept is 4", lambda f: f.header.update(generations=[4])),
    ("1 ns after the snapshot", lambda f: f.header.update(taken_mono_ns=3006)),
    ("bytes are kept beside", lambda f: f.header.update(keep_size=40)),
    ("are not in order", lambda f: f.header.update(generations=[4, 3])),
    ("of a snapshot of generation 4", lambda f: f.header.update(generations=[3, 5])),
    ("3 flushes", lambda f: f.header.update(flushes=3)),
    ("before it was begun", lambda f: f.header.update(started_wall_ns=90_001)),
    ("in the order of their rings", lambda f: f.owners.reverse()),
    ("before it attached", lambda f: told(f).update(attached_ns=1001)),
    ("detached before", lambda f: f.owners[1].fields.update(detached_ns=3)),
    ("evidence cold, and 2", lambda f: told(f).update(evidence="cold")),
    ("evidence stalled of one", lambda f: told(f).update(evidence="stalled")),
    ("state 'asleep'", lambda f: told(f).update(state="asleep")),
    ("engine 'steam'", lambda f: told(f).update(engine="steam")),
    ("identity", lambda f: told(f).update(identity="00" * 16)),
    ("incarnation 0", lambda f: told(f).update(incarnation=0)),
    ("damage", lambda f: told(f).update(damage=["batch 3: no"])),
    (
        "the trailer says",
        lambda f: setattr(f, "trailer", {"producers": 2, "batches": 5, "events": 9}),
    ),
    # Frames.
    ("not behind its producer", lambda f: setattr(f, "swapped", (1, 2))),
    ("after its producer's stacks", lambda f: setattr(f, "swapped", (7, 8))),
    ("one header, and first", lambda f: setattr(f, "swapped", (0, 1))),
    ("after the trailer", lambda f: setattr(f, "swapped", (8, 9))),
    ("unknown frame 9", lambda f: f.more.append([9, 1])),
    ("fields are not what they should be", lambda f: bare(f).append([Frame.BATCH, 2, 1, 2, 3])),
    ("payload is not bytes", lambda f: bare(f).append([Frame.BATCH, 2, 3, 4, 9, 2, 0, 0, "x"])),
    ("not one map", lambda f: f.more.append([Frame.PRODUCER, 1])),
    ("trimmed is -1", lambda f: told(f).update(trimmed=-1)),
    ("pid is 'x'", lambda f: told(f).update(pid="x")),
    ("not a frame's value", lambda f: f.more.append([])),
]

# Of these the reader says itself that they are damaged; of all others nothing at all.
NOTICED_BY_THE_READER = {
    "2 events, 3 were declared",
    "a span's id is 'x'",
    "name 1 is used before",
    "unknown kind 9",
    "not an event",
    "in the middle of the event",
    "FormatError",
    "fields are not what they should be",
    "payload is not bytes",
    "not one map",
    "pid is 'x'",
}


@pytest.mark.parametrize(("said", "change"), RULES, ids=[said for said, _ in RULES])
def test_a_broken_promise_is_named(said: str, change: Change, tmp_path: Path) -> None:
    file = handmade()
    change(file)
    path = file.write(tmp_path / "made.shmrec")
    wrong = validator.check(path).wrong
    assert any(said in each for each in wrong), wrong
    assert bool(shmrec.read(path).verify()) == (said in NOTICED_BY_THE_READER)


def test_a_file_that_was_cut_or_has_a_bit_turned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.shmrec"
    whole = handmade().write(path).read_bytes()
    frames = [found.start() for found in re.finditer(re.escape(MARKER), whole)]
    assert len(frames) == len(handmade().frames())
    for at in [0, 5, *frames, *(frame + 3 for frame in frames), *(frame + 16 for frame in frames)]:
        path.write_bytes(whole[:at])
        assert validator.check(path).wrong, f"cut at byte {at}"
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes((whole[at] ^ 1 << at % 8,)) + whole[at + 1 :])
        assert validator.check(path).wrong, f"bit turned in byte {at}"


def test_ends_of_events_recorded_inside_others_know_less_of_their_begins(tmp_path: Path) -> None:
    file = handmade()
    put(running(file)[1], 6, 3, 1001)
    path = file.write(tmp_path / "made.shmrec")
    assert validator.check(path).wrong
    assert validator.check(path, nested=True).wrong == []


def test_what_the_reader_gets_wrong_is_a_disagreement(tmp_path: Path) -> None:
    checked = validator.check(handmade().write(tmp_path / "made.shmrec"))
    lost = checked.producers[0].events.pop()
    assert lost.kind == "exception"
    assert "event 5 is read as" in disagreements(checked)[0]
    checked.producers[0].events.append(lost)
    checked.producers[1].open.clear()
    assert "spans [1] are read as open, [] are" in disagreements(checked)[0]


def test_as_a_program_it_says_what_is_wrong_with_which_file(tmp_path: Path) -> None:
    good = handmade().write(tmp_path / "good.shmrec")
    bad = handmade()
    bad.header["flushes"] = 3
    path = bad.write(tmp_path / "bad.shmrec")
    command = [sys.executable, "-m", "tools.stress.validator"]
    done = subprocess.run([*command, good, path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, f"{path}: 3 flushes\n")
    assert subprocess.run([*command, good], cwd=ROOT).returncode == 0
