"""Watching a ring whose count of batches was scribbled on: what is in whole slots, the cost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmrec import follow
from shmrec.decoder import Event
from shmrec.doubting import DoubtingReader, doubting_readers
from shmrec.follow import Follower, Note
from shmrec.layout import SLOT, Geometry
from shmrec.observer import Observer
from shmrec.ring import RingReader, Scan
from shmrec.segment import create

from .joined import Rings, joined

FILLER = "x" * 900
WORD_MOST = (1 << 64) - 1


@pytest.fixture
def rings(recording_name: str) -> Iterator[Rings]:
    with joined(recording_name) as made:
        yield made


def fill(rings: Rings, count: int, first: int = 0) -> list[str]:
    """So many events of a kilobyte in ring 0, that is a batch for each few; their names."""
    names = [f"e{number}" for number in range(first, first + count)]
    for name in names:
        rings.put(0, name, filler=FILLER)
    return names


def lies(rings: Rings) -> list[int]:
    """Words that the slots contradict: huge ones, some behind, some beyond; and what was there."""
    newest = rings.reader(0).announced()[1]
    assert newest > 5
    return [0, 1, newest - 1, newest - 2, newest + 2, newest + 1000, 1 << 40, 1 << 62, WORD_MOST]


def names(found: list[Event | Note]) -> list[str]:
    return [each.name if isinstance(each, Event) else f"-{each.kind}" for each in found]


def in_slots(rings: Rings) -> list[int]:
    return [head.number for head in rings.reader(0).scan().heads]


def test_the_truth_costs_no_scan(rings: Rings, monkeypatch: pytest.MonkeyPatch) -> None:
    rings.join(0)
    rings.join(1)
    watching = doubting_readers(rings.segment)
    monkeypatch.delattr(RingReader, "scan")
    for count in (0, 1, 3, 1, 400):
        fill(rings, count)
        for index in (0, 1, 2):
            plain, doubting = rings.reader(index), watching[index]
            assert doubting.mark() == plain.mark()
            assert doubting.announced() == plain.announced()
            oldest, newest = plain.announced()
            span = newest - oldest + 1
            assert doubting.following(oldest, span) == plain.following(oldest, span)
            assert doubting.newest(2) == plain.newest(2)
            assert doubting.doubt == ""


def test_the_slots_know_better(rings: Rings) -> None:
    rings.join(0)
    fill(rings, 400)
    oldest, newest = rings.reader(0).announced()
    truth = rings.reader(0).following(oldest, newest - oldest + 1)
    reader = doubting_readers(rings.segment)[0]
    for lie in lies(rings):
        rings.set(0, opening=lie)
        assert reader.announced() == (oldest, newest), lie
        assert str(lie) in reader.doubt
        assert reader.following(oldest, 1 << 50) == truth
        assert reader.following(newest, 1).heads == truth.heads[-1:]
        assert reader.newest(2) == truth.heads[-2:]
        copies = [reader.copy(head) for head in truth.heads]
        assert None not in copies
        # What its producer adds to the newest batch is seen all the same.
        before = reader.mark()
        rings.put(0, "one more")
        assert reader.mark() != before
        assert reader.following(newest, 1).heads[0].count == truth.heads[-1].count + 1
        rings.set(0, opening=newest)
        truth = rings.reader(0).scan()
        assert reader.mark()[0] == newest
        assert reader.doubt == ""


def test_who_takes_a_ring_over_counts_on(rings: Rings, monkeypatch: pytest.MonkeyPatch) -> None:
    rings.join(0)
    fill(rings, 400)
    rings.join(0, "next")
    follower, watched = Follower(rings.segment), Observer(rings.segment)
    follower.from_the_beginning()
    with monkeypatch.context() as context:
        context.delattr(RingReader, "scan")
        assert follower.poll(rings.now, drain=True) == []
        assert watched.look(rings.now)[0].damage == []
        rings.put(0, "first")
        assert names(follower.poll(rings.now, drain=True)) == ["first"]
        assert watched.look(rings.now)[0].damage == []


def test_an_implausible_number_of_nothing(rings: Rings) -> None:
    rings.join(0)
    reader = doubting_readers(rings.segment)[0]
    for lie in (1 << 62, WORD_MOST):
        rings.set(0, opening=lie)
        assert (reader.mark(), reader.announced()) == ((0, 0), (0, 0))
        assert "implausible" in reader.doubt
        assert reader.following(1, 1 << 50).heads == []
    rings.set(0, opening=0)
    assert (reader.mark(), reader.doubt) == ((0, 0), "")


def test_the_next_batch_heals_it(rings: Rings) -> None:
    rings.join(0)
    follower = Follower(rings.segment)
    follower.from_now()
    expected = fill(rings, 3)
    assert names(follower.poll(rings.now, drain=True)) == expected
    rings.set(0, opening=1 << 40)
    rings.put(0, "within")
    assert names(follower.poll(rings.now, drain=True)) == ["-doubted", "within"]
    assert follower.poll(rings.now, drain=True) == []
    expected = fill(rings, 60, first=3)
    assert 1 < rings.reader(0).announced()[1] < 1 << 40
    # Nothing twice, nothing lost that was there.
    assert names(follower.poll(rings.now, drain=True)) == expected
    rings.set(0, opening=1 << 50)
    assert names(follower.poll(rings.now, drain=True)) == ["-doubted"]


@pytest.mark.parametrize("start", ["from_the_beginning", "back", "count", "since", "from_now"])
def test_following_begins_with_what_is_there(rings: Rings, start: str) -> None:
    rings.join(0)
    rings.join(1)
    fill(rings, 400)
    rings.put(1, "other")
    honest = [each for each in _begun(rings, start) if isinstance(each, Event)]
    assert len(honest) > 4 or start == "from_now"
    for lie in lies(rings):
        newest = in_slots(rings)[-1]
        rings.set(0, opening=lie)
        found = _begun(rings, start)
        [note] = [each for each in found if isinstance(each, Note) and each.kind == "doubted"]
        assert (note.producer, str(lie) in note.text) == (0, True)
        assert [each for each in found if isinstance(each, Event)] == honest, lie
        rings.set(0, opening=newest)


def _begun(rings: Rings, start: str) -> list[Event | Note]:
    follower = Follower(rings.segment)
    match start:
        case "count":
            follower.back(count=10)
        case "since":
            follower.back(since_ns=0)
        case _:
            getattr(follower, start)()
    return follower.poll(rings.now, drain=True)


def test_a_look_shows_what_is_in_the_slots(rings: Rings) -> None:
    rings.join(0)
    span = rings.engines[0].begin("request")
    fill(rings, 400)
    watched = Observer(rings.segment)
    [before] = watched.look(rings.now)
    assert before.damage == []
    for lie in lies(rings):
        newest = in_slots(rings)[-1]
        rings.set(0, opening=lie)
        for observer in (watched, Observer(rings.segment)):
            [found] = observer.look(rings.now)
            assert str(lie) in found.damage[0]
            assert (found.recorded, found.overwritten) == (before.recorded, before.overwritten)
            assert found.newest_ns == before.newest_ns
            assert [each.span for each in found.open_spans] == [span]
        rings.set(0, opening=newest)
        assert watched.look(rings.now)[0].damage == []


def test_a_lie_costs_a_few_scans_however_large_the_ring(
    recording_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[int] = []
    scan = RingReader.scan

    def counted(self: RingReader) -> Scan:
        scans.append(self.index)
        return scan(self)

    geometry = Geometry(producers=1, slots=4096)
    with create(recording_name, geometry, keep_size=0, keep_period_ns=0) as segment:
        rings = Rings(segment)
        rings.join(0)
        try:
            fill(rings, 400)
            rings.set(0, opening=1 << 40)
            monkeypatch.setattr(RingReader, "scan", counted)
            watched = Observer(segment)
            watched.look(rings.now)
            assert 0 < len(scans) < 8
            scans.clear()
            follower = Follower(segment)
            follower.back(count=1 << 20)
            assert len(follower.poll(rings.now, drain=True)) > 100 - follow.BATCHES_A_POLL
            assert 0 < len(scans) < 8
            scans.clear()
            # Nothing new, nothing to look at.
            while follower.behind:
                follower.poll(rings.now)
            scans.clear()
            follower.poll(rings.now)
            assert scans == []
        finally:
            rings.engines[0].unbind()


def test_scribbled_slots_besides(rings: Rings) -> None:
    rings.join(0)
    fill(rings, 400)
    words, geometry = rings.segment.words, rings.segment.geometry
    kept = [rings.segment.words[at] for at in _numbers(rings)]
    reader: DoubtingReader = doubting_readers(rings.segment)[0]
    for slot in range(geometry.slots):
        for number in (0, 1, 1 << 61, WORD_MOST):
            words[_numbers(rings)[slot]] = number
            for lie in (0, 3, 1 << 40, WORD_MOST, max(kept)):
                rings.set(0, opening=lie)
                newest = reader.announced()[1]
                assert newest <= max(kept)
                assert reader.following(1, 1 << 60).heads == reader.scan().heads
        words[_numbers(rings)[slot]] = kept[slot]


def _numbers(rings: Rings) -> list[int]:
    geometry = rings.segment.geometry
    return [
        SLOT.word("number", geometry.ring(0) + slot * geometry.slot_size)
        for slot in range(geometry.slots)
    ]
