"""``shmrec-dump verify``, and what the other verbs make of damaged files."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from shmrec.layout import FILE_MAGIC, FRAME_HEADER_SIZE
from shmrec.manifest import Header, Producer

from .dumping import HOSTILE, batch, crash, dump, dump_json, failure, write_file


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crash(f"test-{os.getpid()}-verify", tmp_path_factory.mktemp("verify"))[0]


def test_intact(intact: Path) -> None:
    shown = dump("verify", intact).stdout
    assert shown.startswith(f"intact: {intact}: ")
    assert "5 processes" in shown
    found = dump_json("verify", intact)
    assert found["intact"] is True
    assert found["damage"] == []
    assert found["readable"]["producers"] == 5
    assert found["readable"]["events"] == dump_json("info", intact)["events"]
    assert dump_json("verify", "--dir", intact.parent)["file"] == str(intact)


def test_cut_off(intact: Path, tmp_path: Path) -> None:
    whole = intact.read_bytes()
    cut = tmp_path / "cut.shmrec"
    for length in (len(whole) - 1, len(whole) // 2, 200):
        cut.write_bytes(whole[:length])
        found = dump_json("verify", cut, check=1)
        assert found["intact"] is False
        assert found["damage"]
    cut.write_bytes(whole[: len(whole) // 2])
    shown = dump("verify", cut, check=1).stdout
    assert shown.startswith(f"damaged: {cut}\n")
    assert "trailer is missing" in shown
    assert "Can be read of recording " in shown
    assert dump_json("info", cut)["complete"] is False
    report = dump("info", cut).stdout
    assert "This file is damaged" in report
    assert "Not complete" in report
    listed = dump("events", cut, check=1)
    assert listed.stdout
    assert listed.stderr.count("\n") == 1
    assert "cut.shmrec is damaged, events may be missing: " in listed.stderr


@pytest.mark.parametrize("length", [0, 4, len(FILE_MAGIC), len(FILE_MAGIC) + FRAME_HEADER_SIZE])
def test_nothing_readable(intact: Path, tmp_path: Path, length: int) -> None:
    cut = tmp_path / "cut.shmrec"
    cut.write_bytes(intact.read_bytes()[:length])
    found = dump_json("verify", cut, check=1)
    assert (found["intact"], found["readable"]) == (False, None)
    assert "Nothing can be read." in dump("verify", cut, check=1).stdout
    failure("info", cut)
    failure("events", cut)


def test_flipped_bits(intact: Path, tmp_path: Path) -> None:
    whole = intact.read_bytes()
    flipped = tmp_path / "flipped.shmrec"
    chosen = random.Random(7)
    for _ in range(12):
        place = chosen.randrange(len(whole) * 8)
        raw = bytearray(whole)
        raw[place // 8] ^= 1 << place % 8
        flipped.write_bytes(raw)
        found = dump_json("verify", flipped, check=1)
        assert found["damage"], place
        if place // 8 >= len(FILE_MAGIC):
            assert dump("info", flipped).stdout


def test_bad_events_under_a_good_checksum(tmp_path: Path) -> None:
    torn = batch([3, 0, "whole"], [3, 1, "torn"])
    torn.payload = torn.payload[:-2]
    odd = batch([3, 0, "first"], number=2)
    odd.payload += b"\x92\x01\x00"
    file = write_file(
        tmp_path / "bad.shmrec",
        Header(recording=HOSTILE),
        [(Producer(pid=1, state="running"), [torn, odd])],
    )
    found = dump_json("verify", file, check=1)
    assert any("batch 1" in note for note in found["damage"])
    assert any("batch 2" in note for note in found["damage"])
    for more in ([], ["--json"], ["--tail", "5"]):
        listed = dump("events", file, *more, check=1)
        assert listed.stdout.count("\n") == 2
        assert "is damaged, events may be missing: pid 1, batch 1: " in listed.stderr
        assert listed.stderr.endswith(", and 1 more: see `shmrec-dump verify`\n")
    assert dump("events", file, "--count", check=1).stdout == "2\n"
    info = dump_json("info", file)
    assert (info["complete"], len(info["damage"])) == (False, 2)
    report = dump("info", file).stdout
    assert "This file is damaged" in report
    assert report.count("batch 1: ") == report.count("batch 2: ") == 1
    shown = dump("verify", file, check=1).stdout
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_a_batch_that_says_it_has_more_events_than_it_has(tmp_path: Path) -> None:
    fewer = batch([3, 0, "first"])
    fewer.head.count = 2
    header = Header(recording="web")
    file = write_file(tmp_path / "bad.shmrec", header, [(Producer(pid=1), [fewer])])
    told = "pid 1, batch 1: 1 of 2 events"
    assert dump_json("verify", file, check=1)["damage"] == [told]
    assert told in dump("events", file, check=1).stderr
    assert told in dump("info", file).stdout


def test_what_is_asked_for_is_whole(tmp_path: Path) -> None:
    odd = batch([3, 0, "first"])
    odd.payload += b"\x92\x01\x00"
    producers = [
        (Producer(index=0, pid=1, state="running"), [batch([3, 0, "well"])]),
        (Producer(index=1, pid=2, state="running"), [odd]),
    ]
    file = write_file(tmp_path / "bad.shmrec", Header(recording="web"), producers)
    assert dump("events", file, "--pid", 1).stderr == ""
    assert "pid 2, batch 1" in dump("events", file, "--pid", 2, check=1).stderr


def test_not_there(tmp_path: Path) -> None:
    assert "No such file" in failure("verify", tmp_path / "x\x1b[31m")
    assert "Is a directory" in failure("verify", tmp_path)
    assert "no snapshot in" in failure("verify", "--dir", tmp_path)
