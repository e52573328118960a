"""The collector's log, whose reader may have stopped."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmrec.log import Lines

from .conftest import WAIT_SECONDS, Script, noticed, snapshots, wait_until
from .test_cuts import PRODUCER, served


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Of 4096 bytes."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    yield read, write
    for fd in (read, write):
        os.close(fd)


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = Lines(write)
    flags = fcntl.fcntl(write, fcntl.F_GETFL)
    assert [lines.write("x" * 1019, "me: ") for _ in range(9)].count(True) == 4
    assert lines.dropped == 5
    assert os.read(read, 1 << 16) == (b"me: " + b"x" * 1019 + b"\n") * 4
    assert lines.write("back", "me: ")
    told, back = os.read(read, 1 << 16).decode().splitlines()
    assert (told, back) == ("me: 5 lines before this were dropped: nobody read them", "me: back")
    assert lines.dropped == 0
    assert fcntl.fcntl(write, fcntl.F_GETFL) == flags
    lines.close()


def test_a_socket_whose_reader_has_stopped(pipe: tuple[int, int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lines = Lines(ours.fileno())
        assert lines.write("first")
        assert theirs.recv(99) == b"first\n"
        for _ in range(9999):
            if not lines.write("x" * 4000):
                break
        assert lines.dropped == 1
        assert ours.getblocking()


def test_a_line_is_written_to_whoever_takes_it(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        lines = Lines(file.fileno())
        assert lines.write("to a file")
        assert lines.write("x" * 10_000)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == "to a file"
    assert second == "x" * 4095
    read, write = os.pipe()
    os.close(read)
    gone = Lines(write)
    assert gone.write("to nobody")
    os.close(write)
    assert gone.write("to nothing")
    assert gone.dropped == 0


def test_a_collector_whose_log_nobody_reads_goes_on(
    recording_name: str,
    tmp_path: Path,
    script: Callable[..., Script],
    pipe: tuple[int, int],
) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    os.write(write, b"\n" * 4096)
    os.set_blocking(write, True)
    serving = subprocess.Popen(
        [sys.executable, "-m", "shmrec.commands.collect", recording_name, "--dir", str(tmp_path)],
        stderr=write,
    )
    try:
        wait_until(lambda: served(recording_name))
        victim = script(PRODUCER, recording_name, "victim")
        assert victim.line() == "ready"
        noticed(recording_name)
        victim.kill()
        wait_until(lambda: snapshots(tmp_path, "death"))
        # Also what it says last, and the line with which it would fail.
        serving.terminate()
        assert serving.wait(WAIT_SECONDS) == 0
    finally:
        serving.kill()
        serving.wait()
    assert os.read(read, 1 << 16) == b"\n" * 4096
