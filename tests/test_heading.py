"""A snapshot's header alone: cheap, and checked like the rest of the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmrec.heading import read_header
from shmrec.manifest import Header, Producer

from .dumping import batch, dump, write_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    header = Header(recording="web", reason="slow since noon", taken_mono_ns=1)
    producer = Producer(index=0, pid=7, label="w", state="running")
    name = "web-20260131T123005Z-slow-since-noon-1.shmrec"
    return write_file(tmp_path / name, header, [(producer, [batch([3, 0, "x"])])])


def test_the_header_is_what_the_file_begins_with(file: Path) -> None:
    found = read_header(file)
    assert found is not None
    assert (found.recording, found.reason) == ("web", "slow since noon")
    # The rest of the file need not be there, or make sense.
    file.write_bytes(file.read_bytes()[:-40] + b"garbage")
    assert read_header(file) == found


def test_what_is_no_header_is_none(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for place in range(0, 60):
        file.write_bytes(whole[:place])
        assert read_header(file) is None
        file.write_bytes(whole[:place] + bytes((whole[place] ^ 0x55,)) + whole[place + 1 :])
        read_header(file)
    assert read_header(tmp_path / "nothing") is None
    assert read_header(tmp_path) is None
    # Nor does anything keep it waiting.
    os.mkfifo(tmp_path / "pipe")
    assert read_header(tmp_path / "pipe") is None


def test_the_list_says_what_the_name_has_where_there_is_no_header(file: Path) -> None:
    long = "x" * 300
    file.with_name("web-20260131T123006Z-stall-of-pid-7-1.shmrec").write_bytes(b"x")
    name = "web-20260131T123007Z-long-1.shmrec"
    write_file(file.with_name(name), Header(recording="web", reason=long), [])
    shown = dump("list", "--dir", file.parent).stdout
    assert " slow since noon " in shown
    assert " stall of pid 7 " in shown
    assert f" {long[:99]}… " in shown
