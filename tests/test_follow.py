"""Following a recording: order, gaps, who comes and goes, and what it makes of hostile memory."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from shmrec import follow
from shmrec.decoder import Event
from shmrec.follow import Follower, Note
from shmrec.layout import COUNT_SHIFT, SIZE_MASK, SLOT, EntryState
from shmrec.ring import Batch, Head, RingReader

from .joined import SECOND, Rings, joined

WINDOW = follow.WINDOW_NS


@pytest.fixture
def rings(recording_name: str) -> Iterator[Rings]:
    with joined(recording_name) as made:
        yield made


def names(found: list[Event | Note]) -> list[str]:
    """Events by their names, notes by their kinds."""
    return [each.name if isinstance(each, Event) else f"-{each.kind}" for each in found]


def test_two_producers_come_in_the_order_of_time(rings: Rings) -> None:
    rings.join(0)
    rings.join(1)
    follower = Follower(rings.segment)
    follower.from_now()
    for number in range(6):
        rings.put(number % 2, f"e{number}")
    assert follower.poll(rings.now) == []
    assert names(follower.poll(rings.now + WINDOW)) == [f"e{n}" for n in range(6)]
    assert follower.poll(rings.now + 2 * WINDOW) == []


def test_what_is_published_late_still_comes_in_its_place(rings: Rings) -> None:
    rings.join(0)
    rings.join(1)
    follower = Follower(rings.segment)
    follower.from_now()
    rings.put(0, "later", after=5000)
    assert follower.poll(rings.now) == []
    # Its time was read before the other's, its bytes come after them.
    rings.now -= 2000
    rings.put(1, "earlier")
    found = follower.poll(rings.now + 2 * WINDOW)
    assert names(found) == ["earlier", "later"]


def test_what_is_published_after_the_window_is_not_held_back(rings: Rings) -> None:
    rings.join(0)
    rings.join(1)
    follower = Follower(rings.segment)
    follower.from_now()
    rings.put(0, "later", after=2 * SECOND)
    assert names(follower.poll(rings.now + WINDOW)) == ["later"]
    rings.now -= SECOND
    rings.put(1, "earlier")
    assert names(follower.poll(rings.now + SECOND + WINDOW)) == ["earlier"]


def test_each_event_once_also_within_one_batch(rings: Rings) -> None:
    rings.join(0)
    follower = Follower(rings.segment)
    follower.from_now()
    found: list[Event | Note] = []
    for number in range(50):
        rings.put(0, f"e{number}")
        found += follower.poll(rings.now, drain=True)
    assert names(found) == [f"e{n}" for n in range(50)]
    assert [each.pid for each in found] == [os.getpid()] * 50
    assert {each.label for each in found} == {"w"}


def test_what_was_overwritten_is_a_gap_in_its_place_and_counted(rings: Rings) -> None:
    rings.join(0)
    rings.join(1)
    follower = Follower(rings.segment)
    follower.from_now()
    rings.put(0, "before")
    rings.put(1, "other")
    got = follower.poll(rings.now + WINDOW)
    assert names(got) == ["before", "other"]
    while rings.reader(0).announced()[1] < 12:
        rings.put(0, "x" * 200)
    got = follower.poll(rings.now + WINDOW)
    assert names(got)[0] == "-gap"
    [gap] = [each for each in got if isinstance(each, Note)]
    assert gap.lost == follower.lost == rings.counts[0] - 1 - (len(got) - 1)
    assert (gap.pid, gap.label, gap.producer) == (os.getpid(), "w", 0)
    assert gap.time_ns <= got[1].time_ns
    rings.put(0, "after")
    assert names(follower.poll(rings.now + WINDOW)) == ["after"]


def test_no_event_is_lost_or_doubled_however_it_is_polled(rings: Rings) -> None:
    dice = random.Random(5)
    for index in range(3):
        rings.join(index)
    segment = rings.segment
    follower = Follower(segment)
    follower.from_the_beginning()
    found: list[Event | Note] = []
    for _ in range(120):
        index = dice.randrange(3)
        for number in range(dice.choice((1, 1, 3, 40, 200, 2500))):
            rings.put(index, f"{index}.{number}", pad="x" * dice.randrange(40))
        if not dice.randrange(20):
            segment.set_word("generation", segment.word("generation") + 1)
        found += follower.poll(rings.now, drain=not dice.randrange(4))
    while follower.behind:
        found += follower.poll(rings.now)
    found += follower.poll(rings.now, drain=True)
    for index in range(3):
        mine = [each for each in found if each.producer == index]
        events = [each for each in mine if isinstance(each, Event)]
        lost = sum(each.lost for each in mine if isinstance(each, Note))
        assert len(events) + lost == rings.counts[index]
        assert [each.time_ns for each in events] == sorted({each.time_ns for each in events})
    assert follower.lost == sum(each.lost for each in found if isinstance(each, Note)) > 0


def test_where_it_begins(rings: Rings) -> None:
    rings.join(0)
    times = []
    for number in range(400):
        rings.put(0, f"e{number}", pad="x" * 50)
        times.append(rings.now)
        if number % 100 == 99:
            # As the collector does once a second: a new batch.
            rings.segment.set_word("generation", number)

    def begun(follower: Follower) -> list[str]:
        return names(follower.poll(rings.now, drain=True))

    follower = Follower(rings.segment)
    follower.from_now()
    assert begun(follower) == []
    follower = Follower(rings.segment)
    follower.back(count=150)
    assert begun(follower) == [f"e{n}" for n in range(200, 400)]
    follower = Follower(rings.segment)
    follower.back(since_ns=times[350])
    assert begun(follower)[-50:] == [f"e{n}" for n in range(350, 400)]
    for start in (Follower.back, Follower.from_the_beginning):
        follower = Follower(rings.segment)
        start(follower)
        assert begun(follower) == [f"e{n}" for n in range(400)]


def test_the_beginning_of_what_is_overwritten_is_a_gap(rings: Rings) -> None:
    rings.join(0)
    while rings.reader(0).announced()[1] < 9:
        rings.put(0, "x" * 200)
    follower = Follower(rings.segment)
    follower.from_the_beginning()
    got = follower.poll(rings.now, drain=True)
    assert names(got)[0] == "-gap"
    assert follower.lost + len(got) - 1 == rings.counts[0]
    # Who only looks back has lost nothing.
    follower = Follower(rings.segment)
    follower.back(count=10)
    assert "-gap" not in names(follower.poll(rings.now, drain=True))


def test_who_joins_leaves_and_dies(rings: Rings) -> None:
    rings.join(0, "old")
    follower = Follower(rings.segment)
    follower.from_now()
    rings.now += 1000
    rings.join(1, "new")
    rings.put(1, "first")
    assert names(follower.poll(rings.now + WINDOW)) == ["-joined", "first"]
    rings.now += SECOND
    rings.set(0, state=EntryState.DETACHED, detached_ns=rings.now)
    rings.set(1, pid=(1 << 22) + 1)
    got = follower.poll(rings.now + SECOND) + follower.poll(rings.now + 2 * SECOND)
    assert sorted(zip(names(got), [each.label for each in got], strict=True)) == [
        ("-died", "new"),
        ("-left", "old"),
    ]
    assert follower.poll(rings.now + 9 * SECOND) == []


def test_who_has_left_already_when_it_is_met(rings: Rings) -> None:
    rings.join(1, "before")
    rings.set(1, state=EntryState.DETACHED, detached_ns=rings.now)
    follower = Follower(rings.segment)
    follower.from_now()
    rings.join(0, "brief")
    rings.put(0, "a")
    rings.now += 1000
    rings.set(0, state=EntryState.DETACHED, detached_ns=rings.now)
    got = follower.poll(rings.now + SECOND) + follower.poll(rings.now + 2 * SECOND)
    assert names(got) == ["-joined", "a", "-left"]


def test_another_process_in_the_same_ring(rings: Rings) -> None:
    rings.join(0, "old")
    follower = Follower(rings.segment)
    follower.from_now()
    rings.put(0, "a")
    got = follower.poll(rings.now, drain=True)
    rings.join(0, "new")
    rings.put(0, "b")
    got += follower.poll(rings.now, drain=True)
    assert names(got) == ["a", "-joined", "b"]
    assert [each.label for each in got] == ["old", "new", "new"]
    assert follower.lost == 0


def test_who_is_just_claiming_a_ring_is_not_met_yet(rings: Rings) -> None:
    rings.join(0, "half")
    rings.set(0, state=EntryState.CLAIMING)
    follower = Follower(rings.segment)
    follower.from_the_beginning()
    assert follower.poll(rings.now, drain=True) == []
    rings.set(0, state=EntryState.LIVE)
    rings.put(0, "a")
    assert names(follower.poll(rings.now, drain=True)) == ["-joined", "a"]


def test_a_poll_is_bounded_and_in_order_all_the_same(
    rings: Rings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "BATCHES_A_POLL", 2)
    for index in range(3):
        rings.join(index)
    follower = Follower(rings.segment)
    follower.from_the_beginning()
    for number in range(400):
        rings.put(number % 3, f"e{number}", pad="x" * 60)
    taken: list[int] = []
    copied = RingReader.copy

    def copy(self: RingReader, head: Head) -> Batch | None:
        taken.append(1)
        return copied(self, head)

    monkeypatch.setattr(RingReader, "copy", copy)
    found: list[Event | Note] = []
    found += follower.poll(rings.now + WINDOW)
    assert follower.behind
    for _ in range(20):
        before = len(taken)
        found += follower.poll(rings.now + WINDOW)
        assert len(taken) - before <= 2
    assert not follower.behind
    assert names(found) == [f"e{n}" for n in range(400)]


def test_what_waits_is_bounded(rings: Rings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "HELD", 10)
    rings.join(0)
    follower = Follower(rings.segment)
    follower.from_now()
    for number in range(30):
        rings.put(0, f"e{number}")
    assert names(follower.poll(rings.now)) == [f"e{n}" for n in range(20)]


def test_hostile_numbers(rings: Rings) -> None:
    rings.join(0)
    rings.join(1)
    follower = Follower(rings.segment)
    follower.from_now()
    rings.put(0, "a")
    words, ring = rings.segment.words, rings.segment.geometry.ring(0)
    for opening in (0, 1, 5, 1 << 40, (1 << 62) - 1, 1 << 63, (1 << 64) - 1, 2):
        rings.set(0, opening=opening)
        follower.poll(rings.now, drain=True)
        follower.from_now()
        Follower(rings.segment).back(count=5)
        Follower(rings.segment).back(since_ns=0)
    rings.set(0, opening=1)
    for name in ("first", "start_ns", "generation", "committed"):
        kept = words[SLOT.word(name, ring)]
        for value in (0, 1 << 61, 1 << 62, (1 << 64) - 1, (1 << 48) | 1):
            words[SLOT.word(name, ring)] = value
            for each in follower.poll(rings.now, drain=True):
                assert not isinstance(each, Note) or each.lost <= 1 << 48
        words[SLOT.word(name, ring)] = kept
    # The other one has not suffered.
    rings.put(1, "b")
    assert "b" in names(follower.poll(rings.now, drain=True))


def test_a_time_that_lies_in_the_future_holds_nobody_up(rings: Rings) -> None:
    rings.join(0)
    rings.join(1)
    follower = Follower(rings.segment)
    follower.from_now()
    rings.now += 1000 * SECOND
    rings.put(0, "lie")
    rings.now -= 1000 * SECOND
    rings.put(1, "truth")
    found = follower.poll(rings.now) + follower.poll(rings.now + WINDOW)
    assert sorted(names(found)) == ["lie", "truth"]


def test_what_cannot_be_decoded_is_said_once(rings: Rings) -> None:
    rings.join(0)
    follower = Follower(rings.segment)
    follower.from_now()
    rings.put(0, "good")
    assert names(follower.poll(rings.now, drain=True)) == ["good"]
    slot = rings.segment.geometry.ring(0)
    committed = rings.segment.words[SLOT.word("committed", slot)]
    size = committed & SIZE_MASK
    rings.segment.view[slot + SLOT.size + size] = 0xC1
    rings.segment.words[SLOT.word("committed", slot)] = committed + 1 + (1 << COUNT_SHIFT)
    got = follower.poll(rings.now, drain=True)
    assert names(got) == ["-damage"]
    assert isinstance(got[0], Note)
    assert "undecodable" in got[0].text
    assert follower.poll(rings.now, drain=True) == []
