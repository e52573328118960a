"""Holds a snapshot file against everything that its format promises.

    python -m tools.stress.validator FILE...

Stricter than shmrec's reader, which gives what can be read of any file, and independent of it:
the tables of `layout` and `events` are shared, the code is not. It runs in trials and in tests.

Invariants that it holds a file to, besides those of `batch_rules`:

- Frames follow each other from the magic to the last byte: a header, then each producer with its
  batches and then its stacks, then the trailer, whose counts are true.
- Of each producer ``recorded`` is exactly what is in the file, and ``overwritten``, and
  ``trimmed``; its last event is the newest that there is. So what is missing lies before the
  first batch, and in the holes between batches, and all of it is counted.
- The cut is one: of a producer that goes on nothing is newer than the newest complete generation,
  unless it has overwritten all that is not, or all behind a hole; and of nobody is anything older
  than the oldest generation kept, but for its newest batch.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

# Run as a program it is not in a package; the checkout's root is where `tools` is found.
if __package__ is None:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from shmrec import layout
from shmrec.layout import LOSSES, Frame
from tools.stress.batch_rules import Batch, History, Said, Span

__all__ = ["Checked", "Told", "check"]

OVERWRITTEN: Final = "overwritten"
STATES: Final = ("running", "stalled", "detached", "exited", "dead")
GONE: Final = ("detached", "exited", "dead")
EVIDENCE: Final = ("closed", "idle", "ended", "stalled", "cold")
_HEADER_KEYS: Final[dict[str, type]] = {
    "recording": str, "reason": str, "trigger": str, "version": str, "run_id": str, "host": str,
    "taken_mono_ns": int, "taken_wall_ns": int, "started_wall_ns": int, "generation": int,
    "generations": list, "flushes": int, "fenced": bool, "keep_size": int, "keep_period_ns": int,
    "requests": list, "notes": list, "suspects": list, "first": bool, "suppressed": dict,
}  # fmt: skip
_PRODUCER_KEYS: Final[dict[str, type]] = {
    "index": int, "incarnation": int, "pid": int, "start_ticks": int, "identity": str,
    "label": str, "engine": str, "state": str, "evidence": str, "fenced": bool,
    "attached_ns": int, "detached_ns": int, "ended_ns": int, "recorded": int, "trimmed": int,
    "losses": dict, "damage": list, "reported": bool, "facts": list, "memory": dict,
}  # fmt: skip
_STACK_KEYS: Final[dict[str, type]] = {
    "kind": str, "taken_ns": int, "text": str, "cut": bool, "note": str, "idents": dict,
}  # fmt: skip
_WHAT: Final = {Frame.BATCH: "batch", Frame.STACK: "stack"}


@dataclass
class Told:
    """A producer as the file has it."""

    fields: dict[str, Any]
    batches: list[Batch] = field(default_factory=list)
    events: list[Said] = field(default_factory=list)
    open: dict[int, Span] = field(default_factory=dict)
    whole: bool = True
    """Whether all spans open at its end are known."""

    @property
    def losses(self) -> dict[str, int]:
        found: dict[str, int] = self.fields["losses"]
        return found

    @property
    def missing(self) -> int:
        """Recorded events that are said not to be in the file."""
        left: int = self.losses[OVERWRITTEN] + self.fields["trimmed"]
        return left

    def __str__(self) -> str:
        return f"pid {self.fields['pid']} in ring {self.fields['index']}"


@dataclass
class Checked:
    """What a file holds, and in `wrong` every promise that it breaks."""

    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    producers: list[Told] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def events(self) -> int:
        return sum(len(producer.events) for producer in self.producers)


class Unreadable(Exception):
    """From here on nothing can be made of the file."""


def check(path: Path, *, nested: bool = False) -> Checked:
    """Hold the file against its format; `nested` as in `batch_rules.History`."""
    checked = Checked(path)
    try:
        trailer = _take_frames(checked, _frames(path.read_bytes()))
    except Unreadable as error:
        checked.wrong.append(str(error))
        return checked
    for producer in checked.producers:
        _check_producer(checked, producer, nested)
    _check_generations(checked)
    _check_trailer(checked, trailer)
    return checked


# Frames.


def _frames(data: bytes) -> Iterator[tuple[int, list[Any]]]:
    """The offset and the value of each frame."""
    if data[: len(layout.FILE_MAGIC)] != layout.FILE_MAGIC:
        raise Unreadable("it does not begin as a snapshot does")
    at = len(layout.FILE_MAGIC)
    while at < len(data):
        header = data[at : at + layout.FRAME_HEADER_SIZE]
        if len(header) < layout.FRAME_HEADER_SIZE:
            raise Unreadable(f"byte {at}: the file ends inside a frame's header")
        marker, length, crc, zero = struct.unpack(layout.FRAME_HEADER, header)
        body = data[at + len(header) : at + len(header) + length]
        if marker != layout.FRAME_MARKER or zero or length > layout.MAXIMUM_FRAME:
            raise Unreadable(f"byte {at}: no frame begins here")
        if len(body) < length:
            raise Unreadable(f"byte {at}: the file ends inside a frame")
        if zlib.crc32(struct.pack("<I", length) + body) != crc:
            raise Unreadable(f"byte {at}: the frame's checksum is wrong")
        try:
            value = msgpack.unpackb(body, strict_map_key=False)
        except (ValueError, msgpack.UnpackException) as error:
            raise Unreadable(f"byte {at}: not one value: {type(error).__name__}") from error
        if type(value) is not list or not value:
            raise Unreadable(f"byte {at}: not a frame's value")
        yield at, value
        at += len(header) + length


def _take_frames(checked: Checked, frames: Iterator[tuple[int, list[Any]]]) -> Any:
    """Sort the frames out; the trailer's counts."""
    trailer: Any = None
    ended = stacked = False
    for at, (kind, *rest) in frames:
        if ended:
            raise Unreadable(f"byte {at}: something comes after the trailer")
        if (kind == Frame.HEADER) != (not checked.header):
            raise Unreadable(f"byte {at}: there is not one header, and first")
        if kind == Frame.HEADER:
            checked.header = _fields(at, rest, 1, _HEADER_KEYS)
        elif kind == Frame.PRODUCER:
            checked.producers.append(Told(_fields(at, rest, 1, _PRODUCER_KEYS)))
            stacked = False
        elif kind in _WHAT:
            whose = checked.producers[-1].fields["index"] if checked.producers else None
            if not rest or type(rest[0]) is not int or rest[0] != whose:
                raise Unreadable(f"byte {at}: a {_WHAT[kind]} is not behind its producer")
            if kind == Frame.BATCH:
                if stacked:
                    raise Unreadable(f"byte {at}: a batch comes after its producer's stacks")
                checked.producers[-1].batches.append(_batch(at, rest[1:]))
            else:
                _fields(at, rest[1:], 1, _STACK_KEYS)
                stacked = True
        elif kind == Frame.TRAILER:
            trailer, ended = rest, True
        else:
            raise Unreadable(f"byte {at}: unknown frame {kind!r}")
    if not ended:
        raise Unreadable("the trailer is missing")
    return trailer


def _fields(at: int, rest: list[Any], count: int, keys: dict[str, type]) -> dict[str, Any]:
    if len(rest) != count or type(rest[0]) is not dict:
        raise Unreadable(f"byte {at}: a frame's fields are not one map")
    found: dict[str, Any] = rest[0]
    for key, kind in keys.items():
        if type(found.get(key)) is not kind:
            raise Unreadable(f"byte {at}: {key} is {found.get(key)!r}, not {kind.__name__}")
        if kind is int and found[key] < 0:
            raise Unreadable(f"byte {at}: {key} is {found[key]}")
    return found


def _batch(at: int, fields: list[Any]) -> Batch:
    numbers, payload = fields[:-1], fields[-1:]
    if len(fields) != len(Batch._fields) or any(type(each) is not int for each in numbers):
        raise Unreadable(f"byte {at}: a batch's fields are not what they should be")
    if type(payload[0]) is not bytes:
        raise Unreadable(f"byte {at}: a batch's payload is not bytes")
    number, generation, start_ns, first, count, flags = numbers
    return Batch(number, generation, start_ns, first, count, flags, payload[0])


# Producers.


def _check_producer(checked: Checked, producer: Told, nested: bool) -> None:
    fields, losses = producer.fields, producer.losses

    def wrong(text: str) -> None:
        checked.wrong.append(f"{producer}: {text}")

    if set(losses) != {OVERWRITTEN, *LOSSES}:
        wrong(f"its losses are of the causes {sorted(losses)}")
        losses.setdefault(OVERWRITTEN, 0)
    if any(type(count) is not int or count < 0 for count in losses.values()):
        wrong(f"a loss is no count: {losses}")
    _check_state(checked, fields, wrong)
    if fields["damage"]:
        wrong(f"damage: {fields['damage']}")
    history = History(
        wrong, shaken=bool(losses.get("interrupted") or losses.get("no_memory")), nested=nested
    )
    for batch in producer.batches:
        history.take(batch)
    producer.events, producer.open, producer.whole = history.events, history.open, history.whole
    _check_sums(producer, wrong)
    if not producer.batches:
        return
    if producer.batches[0].start_ns < fields["attached_ns"]:
        wrong("its first batch was opened before it attached")
    _check_cut(checked, producer, wrong)


def _check_state(checked: Checked, fields: dict[str, Any], wrong: Any) -> None:
    state, evidence = fields["state"], fields["evidence"]
    if fields["index"] >= layout.MAXIMUM_PRODUCERS or not fields["incarnation"]:
        wrong(f"ring {fields['index']}, incarnation {fields['incarnation']}")
    if fields["engine"] not in layout.ENGINES[1:]:
        wrong(f"engine {fields['engine']!r}")
    if len(bytes.fromhex(fields["identity"])) != 16 or not int(fields["identity"], 16):
        wrong(f"identity {fields['identity']!r}")
    if state not in STATES or evidence not in EVIDENCE:
        wrong(f"state {state!r}, evidence {evidence!r}")
    if (evidence == "cold") != (checked.header["flushes"] == 0):
        wrong(f"evidence {evidence}, and {checked.header['flushes']} flushes")
    if evidence == "stalled" and state != "stalled":
        wrong(f"evidence {evidence} of one that is {state}")
    if state == "detached" and fields["detached_ns"] < fields["attached_ns"]:
        wrong("it detached before it attached")


def _check_sums(producer: Told, wrong: Any) -> None:
    fields, batches = producer.fields, producer.batches
    kept = sum(batch.declared for batch in batches)
    if fields["recorded"] != kept + producer.missing:
        wrong(
            f"{fields['recorded']} recorded are not {kept} kept, {fields['trimmed']} trimmed and "
            f"{producer.losses[OVERWRITTEN]} overwritten"
        )
    if not batches:
        # In a ring there is always the newest batch.
        if fields["recorded"] and fields["state"] not in GONE:
            wrong(f"{fields['recorded']} recorded, and not even its newest batch is there")
        return
    ends = batches[-1].first + batches[-1].declared
    # A ring that was left may have been claimed before its newest batch was copied.
    taken_over = fields["state"] in GONE and fields["reported"] and fields["recorded"] > ends
    if fields["recorded"] != ends and not taken_over:
        wrong(f"{fields['recorded']} recorded, and its newest batch ends with number {ends}")


def _check_cut(checked: Checked, producer: Told, wrong: Any) -> None:
    """Whole generations, none that is too new or too old."""
    header, fields, batches = checked.header, producer.fields, producer.batches
    wanted, kept = header["generation"], header["generations"]
    oldest = kept[0] if kept else wanted
    older = [batch for batch in batches[:-1] if batch.generation < oldest]
    untold = fields["state"] == "dead" and not fields["reported"]
    if older and not untold:
        wrong(f"batch {older[0].number} is of generation {older[0].generation}, kept is {oldest}")
    if fields["state"] != "running":
        return
    newer = [batch for batch in batches if batch.generation > wanted]
    within = batches[: len(batches) - len(newer)]
    alone = len(newer) == 1 and bool(within) and newer[0].number != within[-1].number + 1
    if newer and within and not alone:
        wrong(f"batch {newer[0].number} is newer than generation {wanted}")
    if not newer and header["flushes"] and producer.events:
        late = producer.events[-1].time_ns - header["taken_mono_ns"]
        if late > 0:
            wrong(f"its last event is {late} ns after the snapshot")


# The whole.


def _check_generations(checked: Checked) -> None:
    header, wrong = checked.header, checked.wrong.append
    kept, wanted = header["generations"], header["generation"]
    if any(type(each) is not int for each in kept) or kept != sorted(set(kept)):
        wrong(f"generations {kept[:20]} are not in order")
    elif kept and not 0 < kept[0] <= kept[-1] <= wanted:
        wrong(f"generations {kept[:20]} of a snapshot of generation {wanted}")
    if header["flushes"] not in (0, 1, 2):
        wrong(f"{header['flushes']} flushes")
    if header["flushes"] and header["started_wall_ns"] > header["taken_wall_ns"]:
        wrong("it was taken before it was begun")
    indexes = [producer.fields["index"] for producer in checked.producers]
    if indexes != sorted(set(indexes)):
        wrong(f"producers are not in the order of their rings: {indexes}")
    steady = header["flushes"] and all(
        producer.fields["evidence"] != "stalled" for producer in checked.producers
    )
    sizes = [
        len(batch.payload)
        for producer in checked.producers
        for batch in producer.batches
        if kept and kept[0] < batch.generation <= wanted
    ]
    limit = header["keep_size"] * sum(bool(producer.batches) for producer in checked.producers)
    if steady and sum(sizes) > limit:
        wrong(f"{sum(sizes)} bytes are kept beside the oldest generation, {limit} may be")


def _check_trailer(checked: Checked, trailer: list[Any]) -> None:
    batches = [batch for producer in checked.producers for batch in producer.batches]
    counts = {
        "producers": len(checked.producers),
        "batches": len(batches),
        "events": sum(batch.declared for batch in batches),
    }
    if trailer != [counts]:
        checked.wrong.append(f"the trailer says {trailer}, there are {counts}")


def main(paths: list[str]) -> int:
    """Check each file and say what is wrong; the exit status."""
    status = 0
    for path in paths:
        checked = check(Path(path))
        for text in checked.wrong:
            print(f"{path}: {text}")
        status |= bool(checked.wrong)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
