"""Fuzzes the reader of snapshot files, and all that the tools make of one.

An input that begins with the file's magic is a file. Any other is the values of a file's frames
one after another: they get the frames and checksums that a fuzzer cannot guess.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgpack

from shmrec.errors import DamagedFileError, ShmrecError
from shmrec.file_writer import FileWriter
from shmrec.frame_values import HEADER_KEYS, PRODUCER_KEYS, STACK_KEYS
from shmrec.frames import frames
from shmrec.layout import FILE_MAGIC, FRAME_HEADER_SIZE, Frame
from shmrec.manifest import Cause, Header, Producer, Stack
from shmrec.redaction import DEFAULT_PATTERNS, Rules
from shmrec.scrubbing import scrub
from shmrec.snapshot_file import read
from tests.arena import Arena, batches
from tools.fuzz import commands
from tools.fuzz.sameness import flat
from tools.fuzz.sealing import sealed
from tools.fuzz.workplace import workplace

HELP: Final = "the reader of snapshot files, and the tools over what it reads"
LONGEST: Final = 8 * 1024
MSGPACK: Final = 0
_TOOLS: Final = (
    ("info",),
    ("info", "--json"),
    ("events", "--json"),
    ("events", "--facts"),
    ("events", "--tail", "3", "--json", "--facts"),
    ("events", "--count", "--kind", "end"),
    ("stacks",),
    ("stacks", "--json"),
    ("verify",),
    ("verify", "--json"),
)
_CHECKS: Final = 8
_NOW: Final = 10**12
_COMPARED: Final = 50
"""Events looked at in every part."""


def check(data: bytes) -> None:
    """What holds of any file."""
    # One of the checks: all of them would take too long each time.
    _check(data, zlib.crc32(data))


def thoroughly(data: bytes) -> None:
    """The same, and all of it."""
    for chosen in (*range(_CHECKS), *(_CHECKS - 1 + (n << 8) for n in range(len(_TOOLS)))):
        _check(data, chosen)


def _check(data: bytes, chosen: int) -> None:
    raw = data if data.startswith(FILE_MAGIC) else sealed(data)
    path = workplace() / "fuzzed.shmrec"
    path.write_bytes(raw)
    told = _told(path)
    if chosen % _CHECKS == 0:
        assert told == _told(path), "the same file read twice is not the same"
    elif chosen % _CHECKS == 1:
        _check_prefix(path, raw, len(raw) - 1 - (chosen >> 8) % max(len(raw) // 2, 1))
    elif chosen % _CHECKS == 2:
        commands.run("diff", _earlier(), path, *["--json"] * (chosen >> 8 & 1))
    elif chosen % _CHECKS == 3 and told[0] != "refused":
        _check_scrubbing(path)
    else:
        verb = _TOOLS[(chosen >> 8) % len(_TOOLS)]
        status, _ = commands.run(verb[0], path, *verb[1:])
        if verb[0] == "verify":
            assert status == (0 if told[0] == "intact" else 1)


def _told(path: Path) -> list[Any]:
    """All that the reader tells, and whether it fits together."""
    try:
        snapshot = read(path)
        damage = snapshot.verify()
    except DamagedFileError as error:
        return ["refused", str(error)]
    producers = {producer.index: producer for producer in snapshot.producers}
    ordered = [event for run in snapshot.runs() for event in run]
    by_producer = [event for run in snapshot.runs(ordered=False) for event in run]
    assert len(ordered) == len(by_producer), "merging loses or adds events"
    counted = Counter(event.producer for event in ordered)
    assert not counted.keys() - producers.keys(), "an event of no producer"
    if not damage and len(producers) == len(snapshot.producers):
        # What is called intact is what the reader gives.
        assert counted == Counter({each: p.events for each, p in producers.items() if p.events})
        for producer in snapshot.producers:
            own = [event for event in by_producer if event.producer == producer.index]
            assert flat(snapshot.last(producer, 3)) == flat(own[-3:]), "the last are others"
    raw = {index: list(snapshot.raw_batches(each)) for index, each in producers.items()}
    return [
        "damaged" if damage else "intact",
        damage,
        flat([*vars(snapshot.header).items()]),
        flat([(repr(producer),) for producer in snapshot.producers]),
        [flat(event) for event in ordered[:_COMPARED]],
        [(index, [each.head for each in found]) for index, found in raw.items()],
    ]


def _check_prefix(path: Path, raw: bytes, cut: int) -> None:
    """A file that was cut has the frames that were whole before the cut, and says it was cut."""
    notes: list[str] = []
    whole = list(frames(io.BytesIO(raw), len(raw), notes.append))
    fewer = list(frames(io.BytesIO(raw[:cut]), cut, notes.append))
    before = [frame for frame in whole if frame[0] + len(frame[1]) <= cut]
    assert fewer[: len(before)] == before, "a cut file lost frames before the cut"
    path.write_bytes(raw[:cut])
    try:
        damage = read(path).verify()
    except DamagedFileError:
        assert not before or not _readable(before), "a cut file cannot be read"
        return
    if whole and fewer != whole:
        assert damage, "a file that lacks frames is called intact"


def _readable(found: list[tuple[int, bytes]]) -> bool:
    """Whether any of the frames has a value that a reader takes."""
    path = workplace() / "before.shmrec"
    path.write_bytes(sealed(b"".join(packed for _, packed in found)))
    try:
        read(path)
    except DamagedFileError:
        return False
    return True


@lru_cache(maxsize=1)
def _earlier() -> Path:
    """A snapshot of the same recording, taken before those that the fuzzer makes of the seeds."""
    file = io.BytesIO()
    _write(file, now=_NOW - 10**9)
    path = workplace() / "earlier.shmrec"
    path.write_bytes(file.getvalue())
    return path


def _check_scrubbing(path: Path) -> None:
    output = workplace() / "scrubbed.shmrec"
    output.unlink(missing_ok=True)
    try:
        scrub(path, Rules(DEFAULT_PATTERNS, (), False), output)
    except ShmrecError:
        return
    assert not read(output).verify(), "what scrubbing wrote is damaged"


def seeds() -> Iterator[tuple[str, bytes]]:
    """A snapshot with all that one can have: as a file, as its frames' values, cut, flipped."""
    whole = io.BytesIO()
    _write(whole)
    raw = whole.getvalue()
    at, values = len(FILE_MAGIC), b""
    for offset, packed in frames(whole, len(raw), lambda note: None):
        values += packed
        at = offset
    yield "file", raw
    yield "values", values
    yield "file-cut", raw[: at - FRAME_HEADER_SIZE + 3]
    flipped = bytearray(raw)
    flipped[len(FILE_MAGIC) + 4] ^= 1
    yield "file-flipped", bytes(flipped)
    yield "magic", FILE_MAGIC
    yield from _of_wrong_types()
    yield "header", msgpack.packb([1, {"recording": "web", "taken_mono_ns": 5}])
    yield "deep", msgpack.packb([1, {"recording": "web"}]) + b"\x92\x02" + b"\x91" * 600 + b"\xc0"


def _of_wrong_types() -> Iterator[tuple[str, bytes]]:
    """Frames whose values are not what they should be, one field at a time."""
    other: dict[type, Any] = {str: 7, int: "7", list: {}, dict: [7], bool: 3}

    def frames_of(kind: int, target: Any, keys: tuple[str, ...], *more: int) -> bytes:
        found = b""
        for key in keys:
            of_type = type(getattr(target, key))
            for wrong in (other[of_type], None, [[7]] if of_type is list else {"k": {}}):
                found += msgpack.packb([kind, *more, {key: wrong}])
        return found

    header = msgpack.packb([Frame.HEADER, {"recording": "web", "taken_mono_ns": _NOW}])
    producer = msgpack.packb([Frame.PRODUCER, {"index": 0, "pid": 7, "state": "dead"}])
    stack = Stack("", 0, "")
    yield "wrong-header", header + frames_of(Frame.HEADER, Header(), HEADER_KEYS) + producer
    yield "wrong-producer", header + frames_of(Frame.PRODUCER, Producer(), PRODUCER_KEYS)
    yield "wrong-stack", header + producer + frames_of(Frame.STACK, stack, STACK_KEYS, 0)
    inner = {"suspects": ["x"], "requests": [7, {"pid": []}], "notes": [7], "generations": ["x"]}
    inner |= {"suppressed": {7: "x"}}
    of_producer = {"losses": {7: "x"}, "damage": [7], "facts": [7, [1] * 6], "memory": {7: "x"}}
    of_producer |= {"host": {"timeout_ms": "x"}, "doing": {"running": 7}, "cause": {"signal": "x"}}
    yield (
        "wrong-inside",
        header
        + msgpack.packb([Frame.HEADER, inner])
        + msgpack.packb([Frame.PRODUCER, {"index": 1, "state": "running", **of_producer}])
        + msgpack.packb([Frame.PRODUCER, {"index": 0, "state": "dead", **of_producer}]),
    )


def _write(file: io.BytesIO, now: int = _NOW) -> None:
    writer = FileWriter(file)
    writer.header(
        Header(
            recording="web",
            reason="death of worker",
            trigger="death",
            version="1",
            run_id="ab",
            host="web-1",
            taken_mono_ns=now,
            taken_wall_ns=17 * 10**17 + now,
            generation=2,
            generations=[1, 2],
            flushes=2,
            requests=[{"pid": 3, "reason": "why"}],
            notes=["note"],
            suppressed={"death": 2},
            suspects=[1],
        )
    )
    for index, state in enumerate(("dead", "running", "stalled")):
        arena = Arena(slots=4, slot_size=512)
        arena.now = now - 10**6
        recording = arena.writer(engine="python")
        recording.begin("request", method="GET", path=f"/slow/{index}")
        for n in range(4):
            with recording.span("query", sql="select 1", token="secret"):
                recording.counter("queue", n)
        producer = Producer(
            index=index,
            incarnation=1,
            pid=70 + index,
            identity=f"{index:032x}",
            label=f"worker {index}",
            engine="native",
            state=state,
            evidence="stalled" if state == "stalled" else "idle",
            ended_ns=now if state == "dead" else 0,
            losses={"overwritten": 3, "oversized": 1},
            cause=Cause("signal 11 (SIGSEGV)", "host", 11, None) if state == "dead" else None,
            facts=[[now - 2, 1 << 20, 5, 3, 4, "S"], [now - 1, 2 << 20, 9, 3, 4, "D"]],
            memory={"source": "/sys/fs", "limit": 1 << 30, "kills": 1, "others": 0},
            host={"timeout_ms": 30_000, "told_ns": now},
            doing={"wchan": "hrtimer_nanosleep", "syscall": "clock_nanosleep", "time_ns": now},
            stack_flags=3,
        )
        writer.producer(producer)
        for batch in batches(arena.reader()):
            writer.batch(index, batch)
        writer.stack(index, Stack("fatal", now, _STACK, False, "", {0xA1: 11}))
    writer.trailer()


_STACK: Final = (
    "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00a1 (most recent call first):\n"
    '  File "/srv/app.py", line 3 in view\n  File "/usr/lib/python3.11/x.py", line 9 in run\n'
)
