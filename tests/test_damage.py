"""A snapshot that was cut or has a bit flipped: `verify` notices, and the reader gives the rest."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shmrec.layout import FILE_MAGIC, FRAME_HEADER_SIZE, Geometry
from tools.stress.damage import Whole, snapshot_of
from tools.stress.tally import Tally

PARTS = 5
"""Of a frame, that are damaged each: the words of its header, and its value."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("damage") / "small"
    return Whole(snapshot_of(folder, Geometry(producers=2, slots=4), events=6))


@pytest.fixture
def tally() -> Tally:
    return Tally("damage", 7)


def test_cut_anywhere(small: Whole, tally: Tally) -> None:
    chance = random.Random(tally.seed)
    ends = [offset + len(packed) for offset, packed in small.frames[:-1]]
    cuts = {0, 1, len(FILE_MAGIC), len(small.raw) - 1, *ends, *(end - 1 for end in ends)}
    cuts |= {end + FRAME_HEADER_SIZE for end in ends}
    cuts |= set(chance.sample(range(len(small.raw)), 60))
    for length in sorted(cuts):
        small.cut(length, tally)
    assert not tally.failures
    assert tally.counts["cuts"] == len(cuts)


def test_a_bit_flipped_in_every_part_of_every_frame(small: Whole, tally: Tally) -> None:
    chance = random.Random(tally.seed)
    for number in range(len(small.frames)):
        for place in small.places(number, chance):
            small.flip(place, chance.randrange(8), tally)
    for place in chance.sample(range(len(small.raw)), 60):
        small.flip(place, chance.randrange(8), tally)
    assert not tally.failures
    assert tally.counts["bits flipped"] == PARTS * len(small.frames) + 60


def test_every_bit_of_a_length(small: Whole, tally: Tally) -> None:
    for offset, _ in small.frames[:4]:
        for bit in range(32):
            small.flip(offset - FRAME_HEADER_SIZE + 4 + bit // 8, bit % 8, tally)
    assert not tally.failures


def test_a_frame_of_full_size_between_others(tmp_path: Path, tally: Tally) -> None:
    large = Whole(snapshot_of(tmp_path / "large", Geometry.of(128 << 10, 2)))
    chance = random.Random(tally.seed)
    for number in chance.sample(range(len(large.frames)), 6):
        for place in large.places(number, chance):
            large.flip(place, chance.randrange(8), tally, deeply=False)
            large.cut(place, tally, deeply=False)
    assert not tally.failures
