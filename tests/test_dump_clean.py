"""``shmrec-dump clean``: what goes, what never goes, and that it asks.

Always with the test's own name: other tests have stale recordings at the same time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shmrec import layout, naming, process, segment, store
from shmrec.layout import Geometry
from shmrec.snapshot_file import read

from .conftest import leftovers, snapshots
from .dumping import a_scene, dump

DAY = 86_400


def aged(directory: Path, name: str, days: float, reason: str = "requested") -> Path:
    """A snapshot file of that age, going by its name."""
    wall_ns = int((time.time() - days * DAY) * 1e9)
    path = directory / next(store.file_names(name, reason, wall_ns))
    path.write_bytes(b"x")
    os.utime(path, ns=(wall_ns, wall_ns))
    return path


def test_nothing_to_remove(recording_name: str, tmp_path: Path) -> None:
    assert dump("clean", recording_name, "--dir", tmp_path).stdout == "Nothing to remove.\n"


def test_a_live_recording_is_left_alone(recording_name: str, tmp_path: Path) -> None:
    with a_scene(recording_name, tmp_path) as scene:
        arguments = ("clean", recording_name, "--yes", "--dir", tmp_path)
        assert dump(*arguments).stdout == "Nothing to remove.\n"
        scene.kill_collector()
        # Its processes still record, and another collector may adopt it.
        assert dump(*arguments).stdout == "Nothing to remove.\n"
        assert leftovers(recording_name)
        assert all(process.alive(pid, 0) for pid in scene.workers)


def test_a_stale_recording_is_saved_first(recording_name: str, tmp_path: Path) -> None:
    with a_scene(recording_name, tmp_path) as scene:
        with segment.open_segment(recording_name, writable=False) as opened:
            semaphore = f"sem.shmrec.{opened.name}"
        scene.kill_everything()
        assert os.path.exists(f"/dev/shm/{semaphore}")
        arguments = ("clean", recording_name, "--dir", tmp_path)
        shown = dump(*arguments, "--dry-run").stdout
        assert f"stale recording {recording_name}, saved to a snapshot first" in shown
        for answer in ("", "n\n", "\n"):
            done = dump(*arguments, said=answer, check=1)
            assert "Remove these? [y/N]" in done.stderr
            assert "nothing was removed" in done.stderr
            assert leftovers(recording_name)
        assert snapshots(tmp_path) == []
        shown = dump(*arguments, said="y\n").stdout
        assert "Removed 1 recording and 0 snapshots." in shown
        assert leftovers(recording_name) == []
        assert not os.path.exists(f"/dev/shm/{semaphore}")
        (saved,) = snapshots(tmp_path)
        assert str(saved) in shown
        labels = {each.label: each for each in read(saved).producers}
        assert labels["worker 2"].open_spans[0].name == "request"


def test_an_unused_recording_needs_no_snapshot(recording_name: str, tmp_path: Path) -> None:
    segment.create(recording_name, Geometry(1, 4), keep_size=0, keep_period_ns=0).close()
    dump("clean", recording_name, "--yes", "--dir", tmp_path)
    assert leftovers(recording_name) == []
    assert snapshots(tmp_path) == []


def test_a_recording_that_was_never_finished(recording_name: str, tmp_path: Path) -> None:
    with segment.create(recording_name, Geometry(1, 4), keep_size=0, keep_period_ns=0) as made:
        made.set_word("magic", 0)
    assert "unfinished recording" in dump("clean", recording_name, "-n", "--dir", tmp_path).stdout
    dump("clean", recording_name, "--yes", "--dir", tmp_path)
    assert leftovers(recording_name) == []


def test_what_cannot_be_read_stays(recording_name: str, tmp_path: Path) -> None:
    with segment.create(recording_name, Geometry(1, 4), keep_size=0, keep_period_ns=0) as made:
        made.set_word("layout_version", layout.LAYOUT_VERSION + 1)
    dump("clean", recording_name, "--yes", "--dir", tmp_path)
    assert leftovers(recording_name)
    naming.remove(recording_name)


def test_a_recording_that_cannot_be_saved_stays(recording_name: str, tmp_path: Path) -> None:
    with a_scene(recording_name, tmp_path / "x") as scene:
        scene.kill_everything()
        blocked = tmp_path / "file"
        blocked.write_text("no directory")
        done = dump("clean", recording_name, "--yes", "--dir", blocked, check=1)
        assert f"not removed: {recording_name}" in done.stderr
        assert leftovers(recording_name)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ((), {1, 6, 20, 90}),
        (("--older-than", "7d"), {1, 6, 90}),
        (("--older-than", "144h", "--keep", "3"), {1, 6, 20, 90}),
        (("--keep", "1"), {1, 90}),
        (("--keep", "0"), {90}),
        (("--keep", "9"), {1, 6, 20, 40, 90, 99}),
        (("--older-than", "0s"), {90}),
    ],
)
def test_old_snapshots(
    recording_name: str, tmp_path: Path, options: tuple[str, ...], left: set[int]
) -> None:
    files = {days: aged(tmp_path, recording_name, days) for days in (1, 6, 20, 40)}
    # The newest death snapshot stays, however old; an older one does not.
    files |= {days: aged(tmp_path, recording_name, days, "death of x") for days in (90, 99)}
    other = aged(tmp_path, "other", 1000)
    unrelated = tmp_path / "notes.txt"
    unrelated.write_text("mine")
    dump("clean", recording_name, "--yes", "--dir", tmp_path, *options)
    assert {days for days, path in files.items() if path.exists()} == left
    assert other.exists()
    assert unrelated.exists()


def test_wrong_ages(tmp_path: Path) -> None:
    for age in ("7", "x", "-1d", "7 weeks"):
        assert "is no age" in dump("clean", "--older-than", age, check=2).stderr
