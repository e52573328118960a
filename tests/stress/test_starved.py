"""A sample of the trial `tools/stress/run starved`: one thing is taken away in each case.

No case changes anything of this machine: what is mounted, limited or refused is so for processes
that the case starts. Who may not have that skips, and says why.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmrec.errors import UnfinishedSegmentError
from shmrec.layout import Geometry
from shmrec.segment import open_segment
from tools.stress import starved
from tools.stress.apart import Mount, apart, become_nobody
from tools.stress.ground import Ground
from tools.stress.tally import Impossible, Tally

# What takes over a second or two of a busy machine is marked; what takes more is the trial's.
LONGER = (
    "descriptors",
    "file-size",
    "disk-steps",
    "disk-slow",
    "clock",
    "crowd",
    "collector-stopped",
    "lock-stopped",
)
SAMPLE = ("shm-size", "shm-full", "shm-filled", "memory", "disk-death", "disk-replaced", "no-proc")


@pytest.mark.parametrize(
    "case", [*SAMPLE, *(pytest.param(case, marks=pytest.mark.stress) for case in LONGER)]
)
def test_starved_of_one_thing_nobody_fails_and_everybody_is_told(case: str, tmp_path: Path) -> None:
    tally = Tally("starved", 0)
    try:
        starved.CASES[case](Ground(tally, tmp_path, quick=True))
    except Impossible as reason:
        pytest.skip(str(reason))
    assert not tally.failures
    assert tally.counts["checks"] > 3
    assert not [entry for entry in os.listdir("/dev/shm") if f"starved-{os.getpid()}-" in entry]


def test_a_case_that_finds_something_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally("starved", 7)
    ground = Ground(tally, tmp_path)
    log = tmp_path / "log"
    log.write_text("Traceback (most recent call last):\nMemoryError\n")
    ground.quiet(log, "there")
    ground.one_line(["one", "two"], "one", "twice")
    ground.one_line("something else", "what was expected", "elsewhere")
    ground.one_line("fine", "fine", "here")
    assert len(tally.failures) == 3
    assert tally.counts["checks"] == 4
    assert "FAILED (seed 7): there: Traceback" in capsys.readouterr().err


def test_who_finds_a_recording_in_the_making_where_no_memory_is_left_lives_on() -> None:
    name = "in-the-making"

    def found() -> str:
        place = Path(f"/dev/shm/shmrec.{name}")
        place.touch(0o600)
        os.truncate(place, Geometry.of(0, 1).segment_size)
        filler = os.open("/dev/shm/filler", os.O_WRONLY | os.O_CREAT)
        free = os.fstatvfs(filler)
        os.posix_fallocate(filler, 0, free.f_bavail * free.f_bsize)
        with pytest.raises(UnfinishedSegmentError) as raised:
            open_segment(name)
        return str(raised.value)

    try:
        # Its pages are holes until they are reserved.
        assert "never finished being created" in apart(found, [Mount("/dev/shm", "size=64k")])
    except Impossible as reason:
        pytest.skip(str(reason))


def test_mounts_are_those_of_the_child_alone_for_an_unprivileged_user_too(tmp_path: Path) -> None:
    mark = tmp_path / "of everybody"
    mark.touch()
    tmp_path.chmod(0o755)

    def within() -> list[str]:
        def look() -> list[str]:
            Path("/dev/shm/only here").touch()
            return os.listdir("/dev/shm")

        become_nobody()
        return apart(look, [Mount("/dev/shm", "size=64k")])

    try:
        assert apart(within) == ["only here"]
    except Impossible as reason:
        pytest.skip(str(reason))
    assert "only here" not in os.listdir("/dev/shm")
