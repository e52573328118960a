"""The directory of snapshots: names, atomic files, quota, what is swept away."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from shmrec import folder, hidden, store
from shmrec.errors import NoSuchSnapshotError, SnapshotWriteError, WrongOwnerError

WALL = 1_700_000_000_000_000_000


def put(
    directory: Path,
    reason: str,
    age: int,
    size: int = 10,
    *,
    first: bool = False,
    name: str = "web",
) -> Path:
    names = store.file_names(name, reason, WALL - age * 1_000_000_000, first=first)
    path = directory / next(names)
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(WALL - age * 1_000_000_000,) * 2)
    return path


def write(directory: Path, *names: str) -> Path:
    with hidden.Unfinished(directory) as unfinished:
        unfinished.file.write(b"content")
        return unfinished.publish(iter(names))


def test_names_say_recording_time_reason_and_number() -> None:
    names = store.file_names("web", "Slow: GET /x?y=1", WALL)
    assert next(names) == "web-20231114T221320Z-slow-get-x-y-1-1.shmrec"
    assert next(names) == "web-20231114T221320Z-slow-get-x-y-1-2.shmrec"


@pytest.mark.parametrize(
    ("reason", "slug"),
    [
        ("", "snapshot"),
        ("../../etc", "etc"),
        ("\x1b[31m", "31m"),
        ("Ünï", "n"),
        ("a" * 99, "a" * 48),
        ("the first", "the"),
        ("First", "first"),
        ("first, first!", "first"),
        ("a" * 42 + " first and more", "a" * 42),
    ],
)
def test_a_reason_becomes_a_harmless_part_of_a_name(reason: str, slug: str) -> None:
    assert store.slug(reason) == slug


@pytest.mark.parametrize("recording", ["web", "a-b-c", "x-20231114T221320Z-y-1"])
def test_what_is_written_is_listed(tmp_path: Path, recording: str) -> None:
    path = write(tmp_path, next(store.file_names(recording, "death of pid 1", WALL)))
    [found] = store.listing(tmp_path)
    assert (found.path, found.recording, found.reason) == (path, recording, "death-of-pid-1")
    assert (found.taken, found.size, found.death) == (WALL / 1e9, 7, True)


def test_an_incidents_first_snapshot_is_known_by_its_name(tmp_path: Path) -> None:
    marked = write(tmp_path, next(store.file_names("web", "death of pid 1", WALL, first=True)))
    assert marked.name == "web-20231114T221320Z-death-of-pid-1-first-1.shmrec"
    [found] = store.listing(tmp_path)
    assert (found.reason, found.first, found.death) == ("death-of-pid-1", True, True)
    marked.unlink()
    write(tmp_path, next(store.file_names("web", "first", WALL)))
    [found] = store.listing(tmp_path)
    assert (found.reason, found.first) == ("first", False)


def test_when_an_incidents_last_snapshot_was_taken(tmp_path: Path) -> None:
    assert store.last_of_incident(tmp_path / "none", "web") is None
    put(tmp_path, "requested", 1)
    put(tmp_path, "stalled, I think", 2)
    put(tmp_path, "stall of pid 7", 3, name="other")
    assert store.last_of_incident(tmp_path, "web") is None
    put(tmp_path, "slow_span x of pid 7", 40)
    put(tmp_path, "anything", 50, first=True)
    assert store.last_of_incident(tmp_path, "web") == WALL / 1e9 - 40


def test_the_default_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("SHMREC_DIR", "/dir")
    assert store.default_directory() == Path("/dir")
    monkeypatch.delenv("SHMREC_DIR")
    assert store.default_directory() == Path("/state/shmrec")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert store.default_directory() == Path("/home/me/.local/state/shmrec")


@pytest.fixture(params=["unnamed", "hidden"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With O_TMPFILE, and as on a file system that has none."""
    if request.param == "hidden":
        real = os.open

        def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE here")
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", refusing)
    return str(request.param)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    with hidden.Unfinished(tmp_path) as unfinished:
        unfinished.file.write(b"half")
        unfinished.file.flush()
        assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert not list(tmp_path.iterdir())
    path = write(tmp_path, "whole")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_nlink == 1


def test_an_existing_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    (tmp_path / "taken").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert write(tmp_path, "taken", "link", "free").name == "free"
    assert (tmp_path / "taken").read_text() == "old"
    assert not (tmp_path / "elsewhere").exists()


def test_a_failing_sync_leaves_nothing_and_says_so(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotWriteError, match=r"No space left.*older ones are untouched"):
        write(tmp_path, "never")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_a_directory_that_cannot_be_synced_is_said_of_a_file_that_is_there(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def only_files(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    with hidden.Unfinished(tmp_path) as unfinished:
        unfinished.file.write(b"content")
        path = unfinished.publish(iter(["whole"]))
    assert list(tmp_path.iterdir()) == [path]
    # A file system that has no such thing leaves no doubt.
    assert ("could not be synced (Input/output" in unfinished.doubt) == (code == errno.EIO)
    with hidden.Unfinished(tmp_path) as unfinished:
        unfinished.file.write(b"newer")
        unfinished.replace("whole", path.stat())
    assert path.read_bytes() == b"newer"
    assert bool(unfinished.doubt) == (code == errno.EIO)


def test_without_proc_a_file_gets_its_name_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden, "_own", lambda fd: f"/nowhere/self/fd/{fd}")
    path = write(tmp_path, "whole")
    assert path.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_of_the_future_was_written_before_the_clock_was_set_back(tmp_path: Path) -> None:
    hour = 3600
    ahead = int(time.time() - WALL / 1e9)
    before = [put(tmp_path, f"before {n}", -ahead - 5 * hour + n) for n in (2, 1)]
    after = [put(tmp_path, f"after {n}", -ahead + n) for n in (4, 3, 2)]
    assert store.newest(tmp_path) == after[-1]
    assert store.enforce_quota(tmp_path, count=4, size=1000) == [before[0]]
    # Set back by less than clocks may differ: only who has just written knows.
    nearly = put(tmp_path, "before too", -ahead - 60)
    late = put(tmp_path, "just written", -ahead)
    left = store.enforce_quota(tmp_path, count=3, size=1000, latest=late)
    assert left == [nearly, before[1], after[0]]
    assert set(tmp_path.iterdir()) == {after[1], after[2], late}


def test_a_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    folder.prepare(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_link_or_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(WrongOwnerError, match="symbolic link"):
        folder.prepare(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotWriteError):
        folder.prepare(tmp_path / "file")


def test_the_quota_takes_the_oldest_by_count_and_by_bytes(tmp_path: Path) -> None:
    paths = [put(tmp_path, f"r{age}", age) for age in range(6)]
    assert store.enforce_quota(tmp_path, count=4, size=1000) == [paths[5], paths[4]]
    assert store.enforce_quota(tmp_path, count=100, size=25) == [paths[3], paths[2]]
    assert [stored.path for stored in store.listing(tmp_path)] == paths[:2]


def test_the_quota_spares_the_newest_and_the_newest_death(tmp_path: Path) -> None:
    old_death = put(tmp_path, "death of pid 1", 9)
    death = put(tmp_path, "death of pid 2", 8)
    middle = put(tmp_path, "request", 5)
    newest = put(tmp_path, "request", 1)
    assert store.enforce_quota(tmp_path, count=1, size=0) == [old_death, middle]
    assert {stored.path for stored in store.listing(tmp_path)} == {death, newest}


def test_the_quota_takes_the_first_ones_of_incidents_last(tmp_path: Path) -> None:
    ancient = put(tmp_path, "death of pid 1", 9, first=True)
    follower = put(tmp_path, "death of pid 2", 8)
    old = put(tmp_path, "stall of pid 3", 7, first=True)
    death = put(tmp_path, "death of pid 3", 6)
    current = put(tmp_path, "stall of pid 4", 5, first=True)
    asked = put(tmp_path, "asked", 4)
    newest = put(tmp_path, "asked", 1)
    assert store.enforce_quota(tmp_path, count=5, size=1000) == [follower, asked]
    assert store.enforce_quota(tmp_path, count=4, size=1000) == [ancient]
    assert store.enforce_quota(tmp_path, count=1, size=0) == [old]
    assert {stored.path for stored in store.listing(tmp_path)} == {death, current, newest}


def test_the_quota_counts_only_what_is_ours(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    put(tmp_path, "a", 2)
    put(tmp_path, "b", 1)
    store.enforce_quota(tmp_path, count=1, size=0)
    assert other.exists()


def test_the_newest_is_the_last_written(tmp_path: Path) -> None:
    with pytest.raises(NoSuchSnapshotError, match="no snapshot in"):
        store.newest(tmp_path)
    put(tmp_path, "old", 5)
    newest = put(tmp_path, "new", 1)
    assert store.newest(tmp_path) == newest


def test_what_killed_collectors_left_is_swept(tmp_path: Path) -> None:
    ours = tmp_path / f"{hidden.HIDDEN_PREFIX}{os.getpid()}-1.partial"
    dead = tmp_path / f"{hidden.HIDDEN_PREFIX}999999999-1.partial"
    fresh = tmp_path / next(hidden.transfer_names())
    abandoned = tmp_path / next(hidden.transfer_names())
    # Handed over by a collector that was killed before anybody could take it.
    untaken = tmp_path / f"{hidden.HIDDEN_PREFIX}{0x7FFFFFFF:08x}12345678.transfer"
    for path in (ours, dead, fresh, abandoned, untaken):
        path.touch()
    os.utime(abandoned, (time.time() - 3600,) * 2)
    hidden.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {ours, fresh}


def test_only_what_was_handed_over_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path, next(hidden.transfer_names()))
    with hidden.take_transfer(path) as file:
        assert file.read() == b"content"
    assert not path.exists()
    precious = tmp_path / "precious"
    precious.touch()
    with pytest.raises(SnapshotWriteError, match="not a snapshot that was handed over"):
        hidden.take_transfer(precious)
    link = tmp_path / next(hidden.transfer_names())
    link.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"):
        hidden.take_transfer(link)
    assert precious.exists()
