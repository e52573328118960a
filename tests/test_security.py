"""Who may read, write and mislead what: modes, owners, links, squatted names, another's word.

Where another user is needed it is nobody, whom only root can be: a child process that gave up
root. Its files are in a directory of its own.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import posix_ipc
import pytest

from shmrec import FlightRecorder, capture, folder, hidden, live, process, stack_area, wakeup
from shmrec.capture import Order
from shmrec.collector import Collector
from shmrec.errors import RecordingNameError, SegmentError, SnapshotWriteError, WrongOwnerError
from shmrec.layout import ENTRY, EntryState, Geometry, StackFlag
from shmrec.manifest import Header
from shmrec.process import Signals, signal_bit
from shmrec.redaction import Rules
from shmrec.ring import RingReader
from shmrec.scrubbing import scrub
from shmrec.segment import Segment, create, open_segment
from shmrec.snapshot_file import read
from shmrec.stack_area import Asking, take_stacks
from shmrec.takeover import Settings, establish

from .conftest import Script
from .dumping import dump, dump_json, failure, write_file
from .recordings import unserved

NOBODY = 65534
SMALL = Geometry.of(0, 2)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def as_nobody(action: Callable[[], Any]) -> Any:
    """What the action returns to an unprivileged user, in a process of its own; or raises.

    Nobody may not be able to read any file of this installation: all it needs is imported.
    """
    return apart(action, NOBODY)


def apart(action: Callable[[], Any], user: int | None = None) -> Any:
    """What the action returns, or raises, in a process of its own."""
    into, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if user is not None and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            told: tuple[Any, Exception | None]
            try:
                told = action(), None
            except Exception as error:
                told = None, error
            os.write(out, pickle.dumps(told))
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(out)
    with open(into, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    found, raised = pickle.loads(said)
    if raised is not None:
        raise raised
    return found


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of nobody's, which everybody may enter."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    if os.geteuid() == 0:
        os.chown(place, NOBODY, NOBODY)
    yield place
    shutil.rmtree(place)


def segment_path(name: str) -> Path:
    return Path(f"/dev/shm/shmrec.{name}")


def semaphore_path(name: str) -> Path:
    return Path(f"/dev/shm/sem.shmrec.{name}")


@pytest.fixture
def swept(recording_name: str) -> Iterator[str]:
    """A name of a recording; whatever stands there afterwards, anybody's, is removed."""
    yield recording_name
    for path in (segment_path(recording_name), semaphore_path(recording_name)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def made(name: str, path: str | None = None) -> Segment:
    return create(name, SMALL, path=path, keep_size=0, keep_period_ns=0)


# Modes.


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_all_that_is_made_is_for_its_owner_only(swept: str, theirs: Path, umask: int) -> None:
    directory = theirs / "made" / "too"

    def make() -> None:
        os.umask(umask)
        with made(swept) as memory, made(swept, str(theirs / "memory")):
            assert wakeup.open_wakeup(memory, create=True) is not None
            assert wakeup.open_wakeup(memory) is not None
            assert folder.prepare(directory) == ""
            with hidden.Unfinished(directory) as unfinished:
                unfinished.publish(iter(["snapshot"]))
            with hidden.Unfinished(directory) as unfinished:
                os.link(directory / "snapshot", directory / "replaced")
                unfinished.replace("replaced", os.stat(directory / "replaced"))

    as_nobody(make)
    files = [segment_path(swept), theirs / "memory", semaphore_path(swept)]
    files += [directory / "snapshot", directory / "replaced"]
    assert {str(path): f"{mode(path):o}" for path in files} == dict.fromkeys(map(str, files), "600")
    assert (mode(directory), mode(directory.parent)) == (0o700, 0o700)


def test_making_a_directory_leaves_the_umask_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder.prepare(tmp_path / "a")
        with pytest.raises(SnapshotWriteError):
            folder.prepare(Path("/proc/none/such"))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0, 0o777])
def test_so_is_what_a_recorder_and_its_collector_make(
    swept: str, tmp_path: Path, umask: int
) -> None:
    directory = tmp_path / "snapshots"

    def record() -> dict[str, int]:
        os.umask(umask)
        flight = FlightRecorder(swept, directory=directory)
        with flight:
            taken = flight.snapshot("asked")
            places = [taken, directory, segment_path(swept), semaphore_path(swept)]
            return {str(path): mode(path) for path in places}

    found = list(apart(record).values())
    assert [f"{each:o}" for each in found] == ["600", "700", "600", "600"]


# The segment.


@as_root
@pytest.mark.parametrize("permissions", [0o600, 0o666])
def test_a_recording_of_another_user_is_refused_and_named(
    swept: str, tmp_path: Path, permissions: int
) -> None:
    place = segment_path(swept)

    def squat() -> None:
        with made(swept) as memory:
            os.fchmod(memory.fd, permissions)

    as_nobody(squat)
    with pytest.raises(WrongOwnerError, match=f"user 65534, not 0: .*have {place} removed"):
        establish(Settings(swept, tmp_path / "snapshots"))
    assert f"{place}" in failure("snapshot", swept)
    assert place.stat().st_uid == NOBODY


@as_root
def test_an_unprivileged_user_gets_at_nothing_of_roots(swept: str) -> None:
    with made(swept) as memory:
        assert wakeup.open_wakeup(memory, create=True) is not None
        for opening in (open_segment, partial(open_segment, writable=False)):
            with pytest.raises(WrongOwnerError, match="user 0, not 65534"):
                as_nobody(partial(opening, swept))
        state = as_nobody(
            lambda: [(r.state, r.problem) for r in live.recordings() if r.name == swept]
        )
        assert [found for found, _ in state] == [live.UNREADABLE]
        # Even with the memory at hand, as a worker has it that gave up root.
        assert as_nobody(lambda: wakeup.open_wakeup(memory)) is None


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o622])
def test_a_recording_that_others_may_open_is_refused(swept: str, permissions: int) -> None:
    with made(swept) as memory:
        os.fchmod(memory.fd, permissions)
        for writable in (True, False):
            with pytest.raises(WrongOwnerError, match=f"mode {permissions:o}, others may open"):
                open_segment(swept, writable=writable)


def test_a_link_in_place_of_the_memory_is_refused_and_named(swept: str, tmp_path: Path) -> None:
    place, target = segment_path(swept), tmp_path / "target"
    with made(swept, str(target)):
        pass
    before = target.read_bytes()
    place.symlink_to(target)
    attempts: list[Callable[[], object]] = [
        lambda: establish(Settings(swept, tmp_path / "snapshots")),
        lambda: open_segment(swept),
        lambda: open_segment(swept, writable=False),
    ]
    for attempt in attempts:
        with pytest.raises(WrongOwnerError, match=f"{place} is a symbolic link"):
            attempt()
    assert target.read_bytes() == before
    assert place.is_symlink()


@pytest.mark.parametrize("of_shared_memory", [True, False])
def test_a_pipe_in_place_of_the_memory_keeps_nobody_waiting(
    swept: str, tmp_path: Path, of_shared_memory: bool
) -> None:
    place = segment_path(swept) if of_shared_memory else tmp_path / "memory"
    os.mkfifo(place, 0o600)
    path = None if of_shared_memory else str(place)
    with pytest.raises(SegmentError, match=f"not a regular file: see {place}"):
        open_segment(swept, path, writable=False)
    with pytest.raises(SegmentError, match="not a regular file"):
        establish(Settings(swept, tmp_path / "snapshots", path=path))
    if of_shared_memory:
        (found,) = (each for each in dump_json("list")["recordings"] if each["name"] == swept)
        assert (found["state"], str(place) in found["problem"]) == ("unreadable", True)


def test_the_file_of_a_path_is_never_reached_through_a_link(swept: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    settings = Settings(swept, tmp_path / "snapshots", path=str(link))
    with pytest.raises(WrongOwnerError, match=f"{link} is a symbolic link"):
        establish(settings)
    assert not (tmp_path / "elsewhere").exists()
    assert f"{link} is a symbolic link" in failure("ps", "--path", link)


BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/a",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "-a",
    ".a",
    "é",
    "a" * 49,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_with_a_separator_or_too_long_is_no_name(name: str, tmp_path: Path) -> None:
    for attempt in (
        lambda: made(name),
        lambda: made(name, str(tmp_path / "memory")),
        lambda: open_segment(name),
        lambda: FlightRecorder(name),
        lambda: establish(Settings(name, tmp_path / "snapshots")),
    ):
        with pytest.raises(RecordingNameError, match="cannot name a recording"):
            attempt()
    assert list(tmp_path.iterdir()) == []


# The semaphore.


def _empty(place: Path) -> None:
    place.touch(0o600)


def _link(place: Path) -> None:
    place.symlink_to("/dev/null")


def _pipe(place: Path) -> None:
    os.mkfifo(place, 0o600)


def _wide(place: Path) -> None:
    posix_ipc.Semaphore(f"/{place.name.removeprefix('sem.')}", posix_ipc.O_CREX).close()
    place.chmod(0o606)


@pytest.mark.parametrize(
    ("squat", "why"),
    [
        (_empty, "no semaphore"),
        (_link, "no semaphore"),
        (_pipe, "no semaphore"),
        (_wide, "mode 606"),
    ],
)
def test_what_is_no_semaphore_of_ours_is_not_used_and_is_named(
    swept: str, tmp_path: Path, squat: Callable[[Path], None], why: str
) -> None:
    place = semaphore_path(swept)
    squat(place)
    before = os.lstat(place)
    said: list[str] = []
    with unserved(swept) as memory:
        assert why in wakeup.refused(memory)
        assert wakeup.open_wakeup(memory) is None
        collector = Collector(memory, Settings(swept, tmp_path, log=said.append))
        collector.stop()
        assert os.lstat(place) == before
        assert [str(place) in line and why in line for line in said] == [True]
        collector.run()


@as_root
def test_a_semaphore_of_another_user_is_not_used(swept: str) -> None:
    def squat() -> None:
        os.umask(0)
        posix_ipc.Semaphore(f"/shmrec.{swept}", posix_ipc.O_CREX, mode=0o666).close()

    as_nobody(squat)
    with made(swept) as memory:
        assert "belongs to user 65534, not 0" in wakeup.refused(memory)
        assert wakeup.open_wakeup(memory, create=True) is None
    assert semaphore_path(swept).stat().st_uid == NOBODY


def test_a_semaphore_that_a_collector_left_is_used_again(swept: str) -> None:
    with made(swept) as memory:
        first = wakeup.open_wakeup(memory, create=True)
        semaphore_path(swept).chmod(0)
        second = wakeup.open_wakeup(memory, create=True)
        first.release()
        second.acquire(0)
        assert mode(semaphore_path(swept)) == 0o600


# The directory of snapshots.


@pytest.mark.parametrize("permissions", [0o777, 0o1777, 0o770, 0o702, 0o720])
def test_a_directory_in_which_others_may_write_is_refused(
    swept: str, tmp_path: Path, permissions: int
) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(permissions)
    with pytest.raises(
        WrongOwnerError, match=rf"others may write .* {directory} .*{permissions:o}"
    ):
        establish(Settings(swept, directory))
    assert not segment_path(swept).exists()
    found = dump("doctor", "--dir", directory, check=1).stdout
    assert f"others may write in snapshot directory {directory}" in found


def test_of_a_directory_that_others_may_list_one_is_told(swept: str, tmp_path: Path) -> None:
    said: list[str] = []
    directory = tmp_path / "listed"
    directory.mkdir(0o755)
    with establish(Settings(swept, directory, log=said.append)):
        segment_path(swept).unlink()
    assert [f"{directory} is open to other users (mode 755)" in line for line in said] == [True]


@as_root
def test_a_directory_of_another_user_is_refused(theirs: Path) -> None:
    with pytest.raises(WrongOwnerError, match=f"{theirs} belongs to user 65534, not 0"):
        folder.prepare(theirs)
    theirs.chmod(0o755)
    os.chown(theirs, 0, 0)
    with pytest.raises(WrongOwnerError, match=f"{theirs} belongs to user 0, not 65534"):
        as_nobody(partial(folder.prepare, theirs))


def test_a_link_to_a_directory_is_not_followed(swept: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    for attempt in (lambda: establish(Settings(swept, link)), lambda: folder.prepare(link)):
        with pytest.raises(WrongOwnerError, match=f"{link} is a symbolic link"):
            attempt()
    with pytest.raises(SnapshotWriteError, match="cannot open the snapshot directory"):
        hidden.Unfinished(link)
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(WrongOwnerError, match="symbolic link"):
        folder.prepare(link)
    assert not (tmp_path / "nowhere").exists()


def test_a_name_of_a_snapshot_that_is_taken_by_a_link_is_left(tmp_path: Path) -> None:
    link = tmp_path / "taken"
    link.symlink_to(tmp_path / "elsewhere")
    with (
        hidden.Unfinished(tmp_path) as unfinished,
        pytest.raises(SnapshotWriteError, match="taken"),
    ):
        unfinished.publish(iter([link.name]))
    assert not (tmp_path / "elsewhere").exists()


@as_root
def test_a_scrubbed_file_stays_its_owners(theirs: Path) -> None:
    header = Header(recording="web", reason="asked")
    file = write_file(theirs / "a.shmrec", header, [])
    file.chmod(0o644)
    with pytest.raises(WrongOwnerError, match=f"{file} belongs to user 0, not 65534: .* -o"):
        as_nobody(partial(scrub, file, Rules()))
    as_nobody(partial(scrub, file, Rules(), theirs / "b.shmrec"))
    copy = theirs / "b.shmrec"
    assert (copy.stat().st_uid, mode(copy)) == (NOBODY, 0o600)
    scrub(copy, Rules())
    assert (copy.stat().st_uid, mode(copy)) == (NOBODY, 0o600)
    assert sorted(theirs.iterdir()) == [file, copy]


# What is handed over through shared memory.


def test_only_a_file_of_ours_is_taken_as_handed_over(tmp_path: Path, theirs: Path) -> None:
    pipe = tmp_path / next(hidden.transfer_names())
    os.mkfifo(pipe)
    precious = tmp_path / "precious"
    precious.touch()
    second = tmp_path / next(hidden.transfer_names())
    os.link(precious, second)
    paths = [pipe, second]
    if os.geteuid() == 0:
        paths.append(theirs / next(hidden.transfer_names()))
        as_nobody(paths[-1].touch)
    for path in paths:
        with pytest.raises(SnapshotWriteError, match="is another's"):
            hidden.take_transfer(path)
        assert os.path.lexists(path)


# A worker's word, when the collector is root.

LISTENER = """
import signal, sys
signal.signal(signal.SIGRTMIN + 4, lambda *_: print("signalled", flush=True))
print("ready", flush=True)
for line in sys.stdin:
    print("well", flush=True)
"""


def claim(memory: Segment, pid: int, number: int) -> RingReader:
    """An entry that says process `pid` were a producer that leaves its stacks at a signal."""
    entry = memory.geometry.entry(0)
    for word, value in {
        "incarnation": 1,
        "pid": pid,
        "start_ticks": process.start_ticks(pid),
        "stacks": StackFlag.ASKED,
        "stack_signal": number,
        "state": EntryState.LIVE,
    }.items():
        memory.words[ENTRY.word(word, entry)] = value
    return RingReader(memory.view, memory.words, memory.geometry, 0)


def test_no_signal_goes_to_whom_a_worker_names(swept: str, script: Callable[..., Script]) -> None:
    outsider = script(LISTENER)
    assert outsider.line() == "ready"
    with unserved(swept) as memory:
        reader = claim(memory, outsider.pid, signal.SIGRTMIN + 4)
        ((stack,),) = take_stacks(memory, [Asking(reader.entry(), -1)]).values()
    assert stack.note == "it has closed the descriptor that its stacks would go to"
    outsider.say()
    assert outsider.line() == "well"


@pytest.mark.parametrize(("user", "asked"), [(0, False), (1000, True)])
def test_where_descriptors_cannot_be_looked_at_root_signals_none_of_roots(
    swept: str, monkeypatch: pytest.MonkeyPatch, user: int, asked: bool
) -> None:
    with unserved(swept) as memory:
        entry = claim(memory, os.getpid(), signal.SIGRTMIN + 4).entry()
        monkeypatch.setattr(process, "writes_own_memory", lambda *_: None)
        monkeypatch.setattr(process, "user", lambda _: user)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        caught = Signals(0, 0, 0, signal_bit(signal.SIGRTMIN + 4))
        monkeypatch.setattr(process, "signals", lambda *_: caught)
        found = stack_area._Dump(memory, Asking(entry, -1))._obstacle()
    assert (found == "") == asked


@as_root
def test_roots_collector_survives_a_worker_that_scribbles(swept: str, tmp_path: Path) -> None:
    with unserved(swept) as memory:
        claim(memory, os.getpid(), 0)

        def scribble() -> None:
            # All that a worker can write: its entry but for whether it is there, and its ring.
            entry, ring = memory.geometry.entry(0), memory.geometry.ring(0)
            label = ENTRY.bytes_at("label", entry)
            memory.view[label] = b"\x1b]0;owned\x07\xff".ljust(label.stop - label.start, b"\x9b")
            for row in ENTRY.rows:
                if row.writer == "producer":
                    where = ENTRY.bytes_at(row.name, entry)
                    memory.view[where] = b"\xff" * row.size
            size = memory.geometry.ring_size
            memory.view[ring : ring + size] = Random(1).randbytes(size)

        as_nobody(scribble)
        taken = capture.take(memory, Order(tmp_path, reason="scribbled", deadline_ns=10**7))
        found = read(taken)
        assert found.producers[0].damage
        assert "\x1b" not in dump("info", taken).stdout
        assert dump("ps", swept, "--all").stdout.replace("\n", "").isprintable()
        assert mode(taken) == 0o600
        assert taken.stat().st_uid == 0
