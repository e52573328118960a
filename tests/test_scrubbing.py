"""Taking values out of a snapshot: what goes, what stays, and that no file is ever half."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmrec import hidden, layout, scrubbing
from shmrec.commands.jsonform import event_object
from shmrec.decoder import Event, decode
from shmrec.errors import DamagedFileError, SnapshotWriteError, WrongOwnerError
from shmrec.events import BEGIN, COUNTER, END, EXCEPTION, INSTANT, KINDS, LOG, NAME, OPEN, THREAD
from shmrec.file_writer import FileWriter
from shmrec.frames import FrameWriter, frames
from shmrec.manifest import Header, Producer, Stack
from shmrec.redaction import DEFAULT_PATTERNS, MARK, Rules
from shmrec.ring import Batch, Head
from shmrec.scrubbing import scrub
from shmrec.snapshot_file import read

from .dumping import batch, dump, failure, write_file

SECRET = "hunter2"
WALL = 1_700_000_000_000_000_000
HEADER = Header(recording="web", reason="death of x pid 7", trigger="death", taken_wall_ns=WALL)


def happenings() -> list[list[Any]]:
    """One of every kind."""
    return [
        [THREAD.number, 0, 11, "MainThread"],
        [OPEN.number, 0, "request", 5, 1000, {"path": SECRET, "method": "GET"}],
        [BEGIN.number, 1, "query", 6, {"sql": SECRET, "n": 3}],
        [INSTANT.number, 1, "hit", {"data": {"Password": SECRET, "kept": [1, {"token": SECRET}]}}],
        [INSTANT.number, 1, "bare"],
        [EXCEPTION.number, 1, "ValueError", {"message": SECRET, "where": ["a.py:1 f"]}],
        [LOG.number, 1, "app", {"level": "INFO", "message": SECRET}],
        [COUNTER.number, 1, "queue", 4],
        [END.number, 1, "query", 9, 6, {"header:X-Y": SECRET, "status": 200}],
    ]


def snapshot_file(path: Path, *batches: Batch, header: Header = HEADER, **fields: Any) -> Path:
    producer = Producer(index=0, pid=7, label="worker", state="dead", **fields)
    return write_file(path, header, [(producer, list(batches))])


def raw_batch(packed: bytes, count: int, number: int = 1) -> Batch:
    return Batch(Head(number, 1, 0, len(packed), count, 0, 0, 0), packed)


def events_of(path: Path) -> list[Event]:
    return list(read(path).events())


def without_args(events: list[Event]) -> list[tuple[Any, ...]]:
    return [(*event._replace(args={}), list(event.args)) for event in events]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return snapshot_file(tmp_path / "a.shmrec", batch(*happenings()))


def test_values_go_and_all_else_stays(file: Path) -> None:
    before, old = events_of(file), read(file)
    os.chmod(file, 0o644)
    os.utime(file, ns=(1, 2))
    done = scrub(file, Rules((*DEFAULT_PATTERNS, "sql")))
    assert SECRET.encode() not in file.read_bytes()
    assert without_args(events_of(file)) == without_args(before)
    new = read(file)
    assert new.verify() == []
    assert new.producers[0].open_spans[0].args == {"path": MARK, "method": "GET"}
    assert [event.args for event in events_of(file)] == [
        {"sql": MARK, "n": 3},
        {"data": {"Password": MARK, "kept": [1, {"token": MARK}]}},
        {},
        {"message": MARK, "where": ["a.py:1 f"]},
        {"level": "INFO", "message": MARK},
        {},
        {"header:X-Y": MARK, "status": 200},
    ]
    assert events_of(file)[5].value == 4
    assert (done.batches, done.left_out, done.removed.total()) == (1, 0, 7)
    assert new.header.notes == [Rules((*DEFAULT_PATTERNS, "sql")).described()]
    assert new.header == Header(**{**vars(old.header), "notes": new.header.notes})
    found = file.stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o600, 2)
    assert list(file.parent.iterdir()) == [file]


def test_a_marker_is_of_the_same_kind(tmp_path: Path) -> None:
    values = {"a": "x", "b": b"x", "c": 7, "d": 1.5, "e": True, "f": None, "g": [7], "h": {"k": 7}}
    file = snapshot_file(tmp_path / "a", batch([INSTANT.number, 0, "i", values]))
    scrub(file, Rules(("*",)))
    (event,) = events_of(file)
    marked = {"a": MARK, "b": MARK.encode(), "c": 0, "d": 0.0, "e": False, "f": None}
    assert event.args == {**marked, "g": [MARK], "h": {MARK: MARK}}
    assert list(map(type, event.args.values())) == list(map(type, values.values()))


def test_names_and_labels_and_stacks_go_where_asked(tmp_path: Path) -> None:
    producer = Producer(index=0, pid=7, label="The Worker", stacks=[Stack("asked", 1, SECRET)])
    file = write_file(tmp_path / "a", HEADER, [(producer, [batch(*happenings())])])
    scrub(file, Rules((), ("*worker", "quer?", "mainthread"), stacks=True))
    found = read(file)
    assert (found.producers[0].label, found.producers[0].stacks) == (MARK, [])
    assert {event.thread_name for event in found} == {MARK}
    assert [event.name for event in found] == [
        MARK, "hit", "bare", "ValueError", "app", "queue", MARK,
    ]  # fmt: skip
    # A reason may be made of names.
    assert found.header.reason == MARK
    assert found.header.notes == [
        "scrubbed: values of ; names *worker, quer?, mainthread; all stacks"
    ]


@pytest.mark.parametrize(
    ("trigger", "reason", "left"),
    [
        ("death", "death of x pid 7: signal 9", "death of x pid 7: signal 9"),
        ("death", f"death of x; exception in y: {SECRET}", f"death of x; {MARK}"),
        ("exception", f"exception in pid 7: {SECRET}: more", f"exception in pid 7: {MARK}"),
        ("log", f"log in pid 7: app: {SECRET}; x", f"log in pid 7: {MARK}"),
        ("request", SECRET, MARK),
    ],
)
def test_words_of_programs_and_people_leave_the_reason(
    tmp_path: Path, trigger: str, reason: str, left: str
) -> None:
    asked = [{"pid": 3, "reason": SECRET, "more": SECRET}]
    header = Header(recording="web", reason=reason, trigger=trigger, requests=asked)
    file = snapshot_file(tmp_path / "a", header=header)
    done = scrub(file, Rules())
    found = read(file).header
    assert found.reason == left
    assert found.requests == [{"pid": 3, "reason": MARK}]
    assert done.reason == (left != reason)
    kept = snapshot_file(tmp_path / "b", header=header)
    scrub(kept, Rules(("message",)))
    assert read(kept).header.reason == reason


def test_a_full_batch_of_short_values_still_fits(tmp_path: Path) -> None:
    events = [[INSTANT.number, 0, "i", {"path": "/"}] for _ in range(1359)]
    file = snapshot_file(tmp_path / "a", batch(*events))
    size = layout.SLOT_SIZE - layout.SLOT.size
    assert size - 200 < len(batch(*events).payload) <= size
    done = scrub(file, Rules())
    assert (done.left_out, read(file).verify()) == (0, [])
    assert {event.args["path"] for event in events_of(file)} == {""}


def packed(*items: Any) -> bytes:
    return b"".join(map(msgpack.packb, items))


NAMED = [NAME.number, 0, 0, "i"]


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (packed(NAMED, [INSTANT.number, 0, 0, {"path": SECRET}]) + b"\xc1", 1),
        (packed(NAMED, [INSTANT.number, 0, 0, {"path": SECRET}]), 2),
        (packed(NAMED, [INSTANT.number, 0, 9, {"path": SECRET}]), 1),
        (packed(NAMED, [len(KINDS), 0, 0, {"path": SECRET}]), 1),
        (packed(NAMED, [THREAD.number, 0, 1, SECRET]), 0),
    ],
    ids=["rest", "count", "name", "kind", "thread"],
)
def test_a_damaged_batch_is_left_out_and_said(tmp_path: Path, payload: bytes, count: int) -> None:
    file = snapshot_file(tmp_path / "a", raw_batch(payload, count), batch(*happenings(), number=2))
    done = scrub(file, Rules(("*",)))
    assert SECRET.encode() not in file.read_bytes()
    found = read(file)
    assert (done.batches, done.left_out, found.batches) == (1, 1, 1)
    assert found.verify() == []
    (note,) = found.producers[0].damage
    assert note.startswith("batch 1 was left out when scrubbed: it ")
    assert done.notes == [f"pid 7: {note}"]
    scrub(file, Rules(("*",)))
    assert read(file).producers[0].damage == [note]


@pytest.mark.parametrize(
    "payload",
    [
        packed(NAMED, [INSTANT.number, 0, 0, {}, SECRET]),
        packed(NAMED, [COUNTER.number, 0, 0, {"token": SECRET}, SECRET]),
        packed([THREAD.number, 0, 1, 0, SECRET]),
        # Two values under one key, of which readers see the last.
        packed(NAMED) + b"\x94\x03\x00\x00\x82" + packed("path", SECRET, "path", "x"),
        packed(NAMED) + b"\x94\x03\x00\x00\x82" + packed(b"path", SECRET, 7, {b"path": SECRET}),
        packed(NAMED) + b"\x94\x03\x00\x00\x81\xa1i" + b"\x91" * 900 + packed(SECRET),
        packed(NAMED) + b"\x94\x03\x00\x00" + b"\x81\xa1i" * 900 + packed(SECRET),
    ],
    ids=[
        "more fields",
        "counter",
        "more of a thread",
        "twice",
        "keys of bytes",
        "deep",
        "deep maps",
    ],
)
def test_no_corner_of_a_batch_keeps_what_is_removed(tmp_path: Path, payload: bytes) -> None:
    if payload.startswith(b"\x95\x01"):
        payload = packed(NAMED) + payload
    count = sum(1 for _ in decode(payload, start_ns=0, generation=1))
    file = snapshot_file(tmp_path / "a", raw_batch(payload, count))
    before = events_of(file)
    done = scrub(file, Rules())
    assert done.left_out == 0
    after = events_of(file)
    assert without_args([each._replace(value=0) for each in after]) == without_args(
        [each._replace(value=0) for each in before]
    )
    if b"b'path'" not in repr([each.args for each in before]).encode():
        assert SECRET.encode() not in file.read_bytes()


def test_what_no_reader_reads_is_not_copied(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with open(file, "wb") as opened:
        writer = FrameWriter(opened)
        header = {"recording": "web", "later": SECRET, "requests": [SECRET], "notes": [7, "kept"]}
        writer.write([layout.Frame.HEADER, header, SECRET])
        writer.write([99, SECRET])
        writer.write([layout.Frame.PRODUCER, {"index": 0, "pid": 7, "later": SECRET}])
        writer.flush()
        opened.write(SECRET.encode())
        FileWriter.trailer(writing := FileWriter(opened))
        assert writing.bytes
    scrub(file, Rules())
    assert SECRET.encode() not in file.read_bytes()
    found = read(file)
    assert (found.verify(), found.producers[0].pid) == ([], 7)
    assert found.header.notes[0] == "kept"
    assert found.header.notes[1].startswith("before it was scrubbed: frame at byte ")
    # Kinds and order are those of any snapshot.
    with open(file, "rb") as opened:
        kinds = [msgpack.unpackb(value)[0] for _, value in frames(opened, found.size, pytest.fail)]
    assert kinds == [layout.Frame.HEADER, layout.Frame.PRODUCER, layout.Frame.TRAILER]


def test_what_cannot_be_written_anew_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def odd(*args: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(FileWriter, "producer", odd)
    assert failure("scrub", file) == (
        f"shmrec-dump: {file} cannot be scrubbed: ValueError in what is said of it or its processes"
    )
    assert (list(file.parent.iterdir()), file.read_bytes()) == ([file], before)


_NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False)
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.text(max_size=9) | st.binary(max_size=9)
_KEYS = st.sampled_from(["path", "n", "m"]) | st.text(max_size=3)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(["request", "query", ""])
_ARGS = st.dictionaries(_KEYS, _VALUES, max_size=4)
_EVENTS = st.one_of(
    st.tuples(st.sampled_from([INSTANT.number, LOG.number]), st.integers(0, 9), _NAMES, _ARGS),
    st.tuples(st.just(BEGIN.number), st.integers(0, 9), _NAMES, st.integers(0, 5), _ARGS),
    st.tuples(st.just(OPEN.number), st.just(0), _NAMES, st.integers(0, 5), st.just(7), _ARGS),
    st.tuples(st.just(THREAD.number), st.just(0), st.integers(0, 5), _NAMES),
)


def _gone(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "gone" if key.lower() == "path" else _gone(item) for key, item in value.items()
        }
    return [_gone(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(st.lists(_EVENTS, max_size=12))
def test_every_batch_has_the_same_events_but_for_the_values(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[Any, ...]]
) -> None:
    file = tmp_path_factory.mktemp("any") / "a"
    snapshot_file(file, batch(*map(list, events)))
    old = read(file)
    before, spans = list(old.events()), old.producers[0].open_spans
    assert scrub(file, Rules(("PATH",))).left_out == 0
    new = read(file)
    assert new.verify() == []
    after = list(new.events())
    assert [e._replace(args=_gone(e.args)) for e in after] == [
        e._replace(args=_gone(e.args)) for e in before
    ]
    assert [(s.span, s.name, s.start_ns, _gone(s.args)) for s in new.producers[0].open_spans] == [
        (s.span, s.name, s.start_ns, _gone(s.args)) for s in spans
    ]
    shown = [event_object(new, each)["args"] for each in after]
    assert all(
        args.get("path") in (MARK, 0, False, None, [MARK], {MARK: MARK}, MARK.encode())
        for args in shown
    )


def test_a_producer_that_is_told_of_twice_is_written_once(tmp_path: Path) -> None:
    twice: tuple[Producer, list[Batch]] = (Producer(index=0, pid=7), [])
    file = write_file(tmp_path / "a", HEADER, [twice, (twice[0], [batch(*happenings())])])
    scrub(file, Rules())
    found = read(file)
    assert (len(found.producers), found.batches, found.verify()) == (1, 1, [])


# The file.


def test_a_copy_leaves_the_file_as_it_is(file: Path) -> None:
    before = file.read_bytes()
    copy = file.with_name("b.shmrec")
    scrub(file, Rules(), copy)
    assert file.read_bytes() == before
    assert SECRET not in str([event.args.get("path") for event in events_of(copy)])
    assert copy.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SnapshotWriteError, match=r"b\.shmrec exists: name another file"):
        scrub(file, Rules(), copy)
    copy.unlink()
    copy.symlink_to(file.with_name("elsewhere"))
    with pytest.raises(SnapshotWriteError, match="exists"):
        scrub(file, Rules(), copy)
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.shmrec", "b.shmrec"]


def test_links_and_what_is_no_file_are_refused(tmp_path: Path, file: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(WrongOwnerError, match="symbolic link: name the file itself"):
        scrub(link, Rules())
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DamagedFileError, match="not a regular file"):
        scrub(tmp_path / "fifo", Rules())
    with pytest.raises(SnapshotWriteError, match="No such file"):
        scrub(tmp_path / "none", Rules())
    (tmp_path / "text").write_text("no snapshot")
    with pytest.raises(DamagedFileError, match="not a shmrec snapshot"):
        scrub(tmp_path / "text", Rules())


def test_other_names_of_the_file_are_counted(file: Path) -> None:
    os.link(file, file.with_name("other"))
    assert "1 other name of the file as it was" in dump("scrub", file).stdout
    assert SECRET.encode() in file.with_name("other").read_bytes()


@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod", "utime"])
@pytest.mark.parametrize("unnamed", [True, False])
def test_what_fails_leaves_the_old_file_and_no_other(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str, unnamed: bool
) -> None:
    before = file.read_bytes()
    if not unnamed:
        _without_unnamed_files(monkeypatch)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(SnapshotWriteError, match=r"No space left.* is untouched"):
        scrub(file, Rules())
    monkeypatch.undo()
    assert (list(file.parent.iterdir()), file.read_bytes()) == ([file], before)


def _without_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE here")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)


def test_a_file_system_without_unnamed_files_will_do(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_unnamed_files(monkeypatch)
    scrub(file, Rules())
    assert list(file.parent.iterdir()) == [file]
    assert read(file).verify() == []


def test_a_kill_at_the_last_moment_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    pid = os.fork()
    if pid == 0:
        os.rename = lambda *args, **kwargs: os.kill(os.getpid(), 9)
        scrub(file, Rules())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 2
    hidden.sweep(file.parent)
    assert list(file.parent.iterdir()) == [file]


def _replaced(file: Path) -> None:
    other = file.with_name("new")
    other.write_bytes(file.read_bytes())
    other.rename(file)


def _grown(file: Path) -> None:
    with open(file, "ab") as opened:
        opened.write(b"x")


@pytest.mark.parametrize("change", [_replaced, _grown])
def test_a_file_that_changes_meanwhile_is_not_replaced(
    file: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    def check(written: Path, source: Path, watch: object) -> None:
        change(source)

    monkeypatch.setattr(scrubbing, "_check", check)
    with pytest.raises(SnapshotWriteError, match="changed meanwhile"):
        scrub(file, Rules())
    assert SECRET.encode() in file.read_bytes()


def test_what_would_not_be_whole_is_not_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    monkeypatch.setattr(FileWriter, "trailer", lambda writer: writer.flush())
    with pytest.raises(
        DamagedFileError, match="would not be whole afterwards: the file ends early"
    ):
        scrub(file, Rules())
    assert (list(file.parent.iterdir()), file.read_bytes()) == ([file], before)


# The verb.


def test_the_verb_says_what_it_removed_and_what_not(tmp_path: Path) -> None:
    header = Header(recording="web", reason=f"exception in pid 7: {SECRET}", trigger="exception")
    broken = raw_batch(packed(NAMED) + b"\xc1", 0, number=2)
    file = snapshot_file(tmp_path / "a", batch(*happenings()), broken, header=header)
    assert dump("scrub", file, "--arg", "mess*", "--arg", "reason", "--arg", "none").stdout == (
        f"scrubbed: {file}\n"
        "  3 values removed: reason 1, mess* 2\n"
        "  1 batch left out:\n"
        "    pid 7: batch 2 was left out when scrubbed: it is damaged\n"
        "  kept: labels and names, times, counts, pids, the host's name\n"
        "  the file's name may still hold a part of its reason: rename it\n"
    )
    assert "scrubbed: values of mess*, reason, none" in dump("info", file).stdout
    copy = tmp_path / "b"
    said = dump("scrub", file, "--names", "*", "-o", copy).stdout
    assert "names removed: * " in said
    assert SECRET.encode() in file.read_bytes()
    assert f"{copy} exists" in failure("scrub", file, "-o", copy)
