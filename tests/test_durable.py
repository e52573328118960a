"""Files written in bunches: whole whatever the kernel takes at a time, the disk started early."""

from __future__ import annotations

import errno
import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest

from shmrec.durable import DurableFile

MIB = 1 << 20


def opened(path: Path) -> DurableFile:
    return DurableFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def parts(count: int, largest: int) -> list[bytes | memoryview]:
    chosen = random.Random(count)
    made = [chosen.randbytes(chosen.randrange(largest + 1)) for _ in range(count)]
    return [memoryview(bytearray(each)) if n % 2 else each for n, each in enumerate(made)]


@pytest.mark.parametrize("takes", [1, 2, 7, 100, 10_000])
def test_a_kernel_that_takes_little_at_a_time_gets_it_all_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    def short(fd: int, views: Any) -> int:
        return os.write(fd, b"".join(views)[:takes])

    monkeypatch.setattr(os, "writev", short)
    given = parts(40, 200)
    with opened(tmp_path / "file") as file:
        assert file.write(b"magic") == 5
        file.writelines(given)
        assert file.write(memoryview(b"12345678").cast("Q")) == 8
    assert (tmp_path / "file").read_bytes() == b"magic" + b"".join(given) + b"12345678"


def test_any_number_of_parts_is_written(tmp_path: Path) -> None:
    given = parts(5000, 10)
    with opened(tmp_path / "file") as file:
        file.writelines(given)
        file.writelines([])
    assert (tmp_path / "file").read_bytes() == b"".join(given)


def test_a_full_disk_is_told_when_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 1000
    real = os.writev

    def full(fd: int, views: Any) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(fd, [b"".join(views)[:room]])
        room -= taken
        return taken

    monkeypatch.setattr(os, "writev", full)
    with opened(tmp_path / "file") as file:
        with pytest.raises(OSError, match="No space left"):
            file.writelines([bytes(600), bytes(600)])
        with pytest.raises(OSError, match="No space left"):
            file.write(b"x")
    assert (tmp_path / "file").stat().st_size == 1000


def test_the_disk_is_started_on_whole_pages_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, int]] = []

    def note(fd: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        assert offset + size <= os.fstat(fd).st_size
        started.append((offset, size))

    monkeypatch.setattr(os, "posix_fadvise", note)
    with opened(tmp_path / "file") as file:
        for _ in range(100):
            file.writelines([bytes(77_777)])
    assert started
    assert started[0][0] == 0
    for (offset, size), (after, _) in itertools.pairwise(started):
        assert offset + size == after
    assert all(offset % 65_536 == 0 and size % 65_536 == 0 for offset, size in started)
    assert sum(size for _, size in started) > 77_777 * 100 - MIB - 77_777 - 65_536
    assert len(started) <= 8


def test_a_file_system_that_cannot_start_early_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    with opened(tmp_path / "file") as file:
        for _ in range(3):
            file.writelines([bytes(MIB)])
    assert (tmp_path / "file").stat().st_size == 3 * MIB
