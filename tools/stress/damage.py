"""Damages snapshot files: cuts them, and flips their bits, one at a time.

A small file is cut at every byte and has every bit flipped. Of one of full size every frame has
bits flipped in its marker, its length, its checksum, its reserved word and its value, and is cut
in each of these. Whatever was done:

- `verify` says that something is wrong;
- the reader gives every frame that was not touched, before the damage and behind it, also where
  a length was hit: the next frame is found by its marker and proved by its checksum;
- nothing is given that was not in the file.

The eight bytes that the file begins with are no frame: where they are hit, the file is refused.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from shmrec import capture, ledger
from shmrec._engine import choose
from shmrec.capture import Order
from shmrec.errors import DamagedFileError
from shmrec.frame_values import unpack
from shmrec.frames import frames
from shmrec.layout import ENTRY, FILE_MAGIC, FRAME_HEADER_SIZE, EntryState, Frame, Geometry
from shmrec.segment import Segment, create
from shmrec.snapshot_file import Snapshot, read
from tools.stress.tally import Tally

HELP: Final = "cut snapshot files anywhere and flip any of their bits: verify and the reader"

_SMALL: Final = Geometry(producers=2, slots=4)
_BIT: Final = 8
_WORDS: Final = {"marker": 0, "length": 4, "checksum": 8, "reserved": 12}
"""Of a frame's header: where they begin."""
_PERIOD: Final = 1 << 60


def options(parser: argparse.ArgumentParser) -> None:
    """The trial's own options."""
    parser.add_argument(
        "--producers", type=int, default=4, help="of the file of full size (default: 4)"
    )
    parser.add_argument(
        "--frames", type=int, default=0, help="of that file, chosen by chance (default: all)"
    )


def run(given: argparse.Namespace, tally: Tally) -> None:
    """Damage both files in every way."""
    chance = random.Random(given.seed)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="shmrec-damage-", dir=memory) as folder:
        small = Whole(snapshot_of(Path(folder) / "small", _SMALL, events=12))
        for cut in range(len(small.raw)):
            small.cut(cut, tally)
        for place in range(len(small.raw)):
            for bit in range(_BIT):
                small.flip(place, bit, tally)
        large = Whole(snapshot_of(Path(folder) / "large", Geometry.of(2 << 20, given.producers)))
        chosen: Sequence[int] = range(len(large.frames))
        if 0 < given.frames < len(large.frames):
            chosen = sorted(chance.sample(chosen, given.frames))
        for number in chosen:
            for place in large.places(number, chance):
                large.flip(place, chance.randrange(_BIT), tally, deeply=False)
                large.cut(place, tally, deeply=False)
        tally.count("frames of the large file", len(chosen))


def snapshot_of(folder: Path, geometry: Geometry, *, events: int = 0) -> Path:
    """A snapshot of so many events a producer, or of full rings, as `recover` writes it."""
    folder.mkdir(mode=0o700)
    with create(
        "damage",
        geometry,
        path=str(folder / "segment"),
        keep_size=geometry.ring_size,
        keep_period_ns=_PERIOD,
    ) as segment:
        for index in range(geometry.producers):
            _record(segment, index, events)
        order = Order(folder, "damage", "request", geometry.ring_size, _PERIOD)
        path = capture.take_cold(segment, order)
    (folder / "segment").unlink()
    return path


def _record(segment: Segment, index: int, events: int) -> None:
    geometry = segment.geometry
    entry = geometry.entry(index)
    for name, value in {"incarnation": 1, "state": EntryState.LIVE, "pid": 1 << 30}.items():
        segment.words[ENTRY.word(name, entry)] = value
    writer = choose(None)[1]()
    writer.bind(
        segment.view,
        segment.words,
        entry=entry,
        ring=geometry.ring(index),
        slot_size=geometry.slot_size,
        slots=geometry.slots,
    )
    writer.begin("request", path="/slow", n=index)
    opening = ENTRY.word("opening", entry)
    n = 0
    while n < events or (not events and segment.words[opening] <= geometry.slots):
        writer.instant("hit", n=n, pad="x" * (n % 50))
        n += 1
        if n % 4000 == 5:
            ledger.advance(segment)
    writer.forget()


class Whole:
    """An intact snapshot file, and what damage must leave of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path.read_bytes()
        notes: list[str] = []
        with open(path, "rb") as file:
            self.frames = list(frames(file, len(self.raw), notes.append))
        self._batches = _batches_of(read(path))
        assert not notes, notes
        assert not read(path).verify()

    def places(self, number: int, chance: random.Random) -> Iterator[int]:
        """A byte of each part of the frame."""
        offset, packed = self.frames[number]
        for begins in _WORDS.values():
            yield offset - FRAME_HEADER_SIZE + begins + chance.randrange(4)
        yield offset + chance.randrange(len(packed))

    def flip(self, place: int, bit: int, tally: Tally, *, deeply: bool = True) -> None:
        """Flip a bit of the byte at `place`, look, and put it back."""
        tally.count("bits flipped")
        where = f"bit {bit} of byte {place} flipped"
        with open(self.path, "r+b") as file:
            os.pwrite(file.fileno(), bytes((self.raw[place] ^ 1 << bit,)), place)
            left = [
                (offset, packed)
                for offset, packed in self.frames
                if not offset - FRAME_HEADER_SIZE <= place < offset + len(packed)
            ]
            self._look(left, where, tally, deeply, refused=place < len(FILE_MAGIC))
            os.pwrite(file.fileno(), self.raw[place : place + 1], place)

    def cut(self, length: int, tally: Tally, *, deeply: bool = True) -> None:
        """Cut the file to `length` bytes, look, and put them back."""
        tally.count("cuts")
        with open(self.path, "r+b") as file:
            os.ftruncate(file.fileno(), length)
            left = [each for each in self.frames if each[0] + len(each[1]) <= length]
            self._look(left, f"cut at byte {length}", tally, deeply, refused=not left)
            os.pwrite(file.fileno(), self.raw[length:], length)

    def _look(
        self,
        left: list[tuple[int, bytes]],
        where: str,
        tally: Tally,
        deeply: bool,
        *,
        refused: bool,
    ) -> None:
        with open(self.path, "rb") as file:
            found = list(frames(file, os.fstat(file.fileno()).st_size, lambda note: None))
        if found != left:
            tally.fail(f"{where}: {_difference(found, left)}")
        try:
            snapshot = read(self.path)
        except DamagedFileError as error:
            if not refused:
                tally.fail(f"{where}: refused, though frames are intact: {error}")
            return
        if refused:
            tally.fail(f"{where}: read, though nothing of it can be")
        if not (snapshot.verify() if deeply else snapshot.damage):
            tally.fail(f"{where}: called intact")
        expected = {offset for offset, _ in left}
        batches = {key: each for key, each in self._batches.items() if key in expected}
        if (_batches_of(snapshot) if deeply else batches) != batches:
            tally.fail(f"{where}: other batches than those that are intact")


def _batches_of(snapshot: Snapshot) -> dict[int, Any]:
    """The snapshot's batches by their frames' offsets."""
    return {
        batch.head.offset: (producer.index, batch)
        for producer in snapshot.producers
        for batch in snapshot.raw_batches(producer)
    }


def _difference(found: list[tuple[int, bytes]], left: list[tuple[int, bytes]]) -> str:
    lost = [offset for offset, _ in left if offset not in dict(found)]
    kinds = {unpack(dict(left)[offset])[0] for offset in lost}
    if lost:
        return f"intact frames lost at {lost[:5]} (kinds {sorted(kinds)} of {Frame.__name__})"
    return f"frames given that were not in the file: {len(found)} for {len(left)}"
