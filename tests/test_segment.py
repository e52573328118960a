"""Opening shared memory: names, owners, links, geometry, locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrec import layout, naming
from shmrec.errors import (
    LayoutMismatchError,
    LockedError,
    NoSuchRecordingError,
    SegmentError,
    SpaceError,
    WrongOwnerError,
)
from shmrec.layout import CONTROL, ENTRY, REQUEST, SLOT, Geometry
from shmrec.segment import Segment, create, open_segment

from .conftest import Script

SMALL = Geometry.of(0, 2)


@pytest.fixture
def made(recording_name: str) -> Iterator[Segment]:
    with create(recording_name, SMALL, keep_size=0, keep_period_ns=0) as opened:
        yield opened


@pytest.mark.parametrize("table", [CONTROL, REQUEST, ENTRY, SLOT], ids=lambda t: t.name)
def test_a_tables_rows_are_aligned_inside_it_and_apart(table: layout.Table) -> None:
    end = 0
    for row in table.rows:
        assert row.offset % layout.WORD == 0
        assert row.offset >= end, row.name
        end = row.offset + row.size
    assert end <= table.size
    assert len({row.name for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize("table", [CONTROL, REQUEST, ENTRY], ids=lambda t: t.name)
def test_words_of_different_writers_are_on_different_cache_lines(table: layout.Table) -> None:
    lines: dict[int, set[str]] = {}
    for row in table.rows:
        for line in range(row.offset // 64, -(-(row.offset + row.size) // 64)):
            lines.setdefault(line, set()).add(row.writer)
    # An attacher and the producer that it becomes are one process.
    for writers in lines.values():
        assert len(writers) == 1, writers


def test_there_is_a_loss_word_for_every_cause() -> None:
    row = next(row for row in ENTRY.rows if row.name == "losses")
    assert len(layout.LOSSES) * layout.WORD <= row.size


@pytest.mark.parametrize(
    ("size", "slots"), [(0, 4), (1, 4), (64 * 1024, 4), (64 * 1024 + 1, 5), (2 << 20, 128)]
)
def test_a_ring_holds_at_least_its_size_and_four_slots(size: int, slots: int) -> None:
    assert Geometry.of(size, 1).slots == slots


def test_a_new_segment_is_private_and_mostly_holes(made: Segment) -> None:
    found = os.fstat(made.fd)
    assert found.st_mode & 0o777 == 0o600
    assert found.st_size == SMALL.segment_size
    assert found.st_blocks * 512 <= SMALL.rings_offset + 4096
    assert not os.get_inheritable(made.fd)


def test_the_umask_changes_nothing(recording_name: str) -> None:
    before = os.umask(0o777)
    try:
        with create(recording_name, SMALL, keep_size=0, keep_period_ns=0) as made:
            assert os.fstat(made.fd).st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_taken_name_is_not_taken_over(made: Segment) -> None:
    with pytest.raises(FileExistsError):
        create(made.name, SMALL, keep_size=0, keep_period_ns=0)


HEADER = (
    "magic layout_id byte_order segment_size producers slots slot_size stack_size "
    "requests_offset table_offset rings_offset stacks_offset"
)


@pytest.mark.parametrize("word", HEADER.split())
@pytest.mark.parametrize("value", [0, 1, 1 << 63])
def test_a_header_that_contradicts_itself_is_refused(made: Segment, word: str, value: int) -> None:
    made.set_word(word, value)
    with pytest.raises(LayoutMismatchError):
        open_segment(made.name)


def test_a_segment_cut_short_is_refused(made: Segment) -> None:
    os.ftruncate(made.fd, SMALL.rings_offset)
    with pytest.raises(LayoutMismatchError):
        open_segment(made.name)
    os.ftruncate(made.fd, 10)
    with pytest.raises(LayoutMismatchError):
        open_segment(made.name)
    os.ftruncate(made.fd, SMALL.segment_size)


def test_no_segment_says_what_to_do() -> None:
    with pytest.raises(NoSuchRecordingError, match="shmrec-collect nobody"):
        open_segment("nobody")


def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "memory")
    with create("x", SMALL, path=path, keep_size=0, keep_period_ns=0):
        pass
    os.symlink(path, tmp_path / "link")
    with pytest.raises(WrongOwnerError, match="symbolic link"):
        open_segment("x", str(tmp_path / "link"))
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    with pytest.raises(FileExistsError):
        create("x", SMALL, path=str(tmp_path / "dangling"), keep_size=0, keep_period_ns=0)
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegmentError):
        open_segment("x", str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_owner_is_refused_but_root_may_read_it(made: Segment) -> None:
    os.fchown(made.fd, 65534, -1)
    with pytest.raises(WrongOwnerError, match="belongs to user 65534"):
        open_segment(made.name)
    with open_segment(made.name, writable=False) as readable:
        assert readable.recorded_name == made.name


def test_no_space_for_the_tables_leaves_nothing(
    recording_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SpaceError, match="enlarge it"):
        create(recording_name, SMALL, keep_size=0, keep_period_ns=0)
    assert recording_name not in naming.names()


def test_recordings_are_listed_by_name(made: Segment) -> None:
    assert made.name in naming.names()


def test_the_lock_excludes_other_processes_and_dies_with_its_holder(
    made: Segment, script: Callable[..., Script]
) -> None:
    holder = script(
        "import sys\n"
        "from shmrec.segment import open_segment\n"
        "with open_segment(sys.argv[1]).locked():\n"
        "    print('locked', flush=True); sys.stdin.readline()\n",
        made.name,
    )
    assert holder.line() == "locked"
    with pytest.raises(SegmentError, match="locked by another process"), made.locked(0.05):
        pass
    holder.kill()
    holder.wait()
    with made.locked():
        pass


def test_an_exception_from_a_signal_handler_does_not_keep_the_lock(
    made: Segment, script: Callable[..., Script]
) -> None:
    class Alarm(Exception):
        pass

    armed = False

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    interrupted = 0
    try:
        while interrupted < 200:
            try:
                armed = True
                with made.locked():
                    pass
                armed = False
            except Alarm:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    other = script(
        "import sys\n"
        "from shmrec.segment import open_segment\n"
        "with open_segment(sys.argv[1]).locked(1.0): print('locked', flush=True)\n",
        made.name,
    )
    assert other.line() == "locked"


def test_the_lock_excludes_a_forked_child_on_the_inherited_descriptor(made: Segment) -> None:
    with made.locked():
        pid = os.fork()
        if pid == 0:
            try:
                with made.locked(0.05):
                    os._exit(1)
            except SegmentError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


HOLDER = (
    "import sys\n"
    "from shmrec.segment import open_segment\n"
    "with open_segment(sys.argv[1]).locked():\n"
    "    print('locked', flush=True)\n"
    "    sys.stdin.readline()\n"
)


def test_a_thread_that_waits_for_the_lock_keeps_none_from_closing_another_segment(
    made: Segment, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = script(HOLDER, made.name)
    assert holder.line() == "locked"
    lockf, refused, over = fcntl.lockf, threading.Event(), threading.Event()

    def noting(*args: Any) -> None:
        try:
            lockf(*args)
        except OSError:
            refused.set()
            raise

    def wait() -> None:
        with contextlib.suppress(LockedError), made.locked(5.0):
            pass
        over.set()

    monkeypatch.setattr(fcntl, "lockf", noting)
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert refused.wait(10)
    other = open_segment(made.name, writable=False)
    other.close()
    assert not over.is_set()
    holder.end_input()
    waiting.join()


def test_what_another_thread_holds_keeps_no_child_waiting_that_c_code_forks(
    made: Segment, script: Callable[..., Script]
) -> None:
    forked = script(
        "import ctypes, os, signal, sys, threading\n"
        "from shmrec.errors import LockedError\n"
        "from shmrec.segment import open_segment\n"
        "opened, held, go = open_segment(sys.argv[1]), threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with opened.locked():\n"
        "        held.set()\n"
        "        go.wait()\n"
        "other = threading.Thread(target=hold)\n"
        "other.start()\n"
        "held.wait()\n"
        "child = ctypes.PyDLL(None).fork()\n"
        "if not child:\n"
        "    signal.alarm(10)\n"
        "    try:\n"
        "        with opened.locked(0.05): pass\n"
        "    except LockedError:\n"
        "        opened.close()\n"
        "        os._exit(7)\n"
        "    os._exit(1)\n"
        "print(os.waitpid(child, 0)[1] >> 8, flush=True)\n"
        "go.set()\n"
        "other.join()\n",
        made.name,
    )
    assert forked.line() == "7"


def test_closing_twice_closes_no_descriptor_of_somebody_else(recording_name: str) -> None:
    made = create(recording_name, Geometry.of(0, 1), keep_size=1 << 20, keep_period_ns=10**10)
    number = made.fd
    made.close()
    taken = os.open(os.devnull, os.O_RDONLY)
    assert taken == number
    made.close()
    os.fstat(taken)
    os.close(taken)
