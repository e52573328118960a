"""Looking at producers again and again: rates, what they are inside of, and at what cost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shmrec import live, observer
from shmrec.ending import Ending
from shmrec.layout import EntryState, Geometry
from shmrec.observer import Observer, Sighting
from shmrec.ring import Head, RingReader, Scan
from shmrec.segment import create

from .joined import SECOND, Rings, joined


@pytest.fixture
def rings(recording_name: str) -> Iterator[Rings]:
    with joined(recording_name) as made:
        yield made


def look(watched: Observer, rings: Rings, after: int = SECOND) -> dict[int, Sighting]:
    rings.now += after
    return {each.entry.index: each for each in watched.look(rings.now)}


def test_rates_and_spans_and_facts(rings: Rings) -> None:
    rings.join(0, "busy")
    rings.join(2, "idle")
    watched = Observer(rings.segment)
    first = look(watched, rings)
    assert sorted(first) == [0, 2]
    assert first[0].rate is first[0].cpu is None
    assert first[0].state == live.RUNNING
    assert first[0].rss > 1 << 20
    assert first[0].threads >= 1
    for number in range(500):
        rings.put(0, f"e{number}")
    span = rings.engines[0].begin("request", path="/x")
    began = rings.now
    second = look(watched, rings)
    assert second[0].rate == pytest.approx(501 / ((rings.now - first[0].looked_ns) / 1e9), rel=0.01)
    assert (second[0].recorded, second[2].recorded, second[2].rate) == (501, 0, 0.0)
    [found] = second[0].open_spans
    assert (found.span, found.name, found.start_ns) == (span, "request", began)
    assert second[0].cpu is not None
    rings.engines[0].end(span)
    assert look(watched, rings)[0].open_spans == []


def test_who_recorded_nothing_is_not_decoded_again(
    rings: Rings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings.join(0)
    rings.engines[0].begin("request")
    watched = Observer(rings.segment)
    read: list[int] = []

    def ending_of(reader: RingReader, notes: list[str]) -> tuple[Ending, list[Head]]:
        read.append(1)
        return live.ending_of(reader, notes)

    monkeypatch.setattr(observer, "ending_of", ending_of)
    for _ in range(3):
        [found] = look(watched, rings).values()
        assert [span.name for span in found.open_spans] == ["request"]
    assert len(read) == 1
    assert found.rate == 0.0


def test_a_look_is_bounded_and_everybody_gets_a_turn(
    rings: Rings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "BATCHES_A_LOOK", 1)
    for index in range(3):
        rings.join(index)
        rings.engines[index].begin(f"request {index}")
    watched = Observer(rings.segment)
    known = [len([s for s in look(watched, rings).values() if s.open_spans]) for _ in range(3)]
    assert known == [1, 2, 3]
    # While all go on, each is seen in its turn, and how fast it is at every look.
    seen = []
    for _ in range(3):
        for index in range(3):
            rings.put(index, "more")
        now = look(watched, rings)
        seen += [index for index, each in now.items() if each.looked_ns == rings.now]
        assert [each.rate for each in now.values()] == pytest.approx([1.0] * 3, rel=0.01)
    assert sorted(seen) == [0, 1, 2]


def test_large_rings_cost_what_small_ones_do(
    recording_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry(producers=1, slots=4096)
    with create(recording_name, geometry, keep_size=0, keep_period_ns=0) as segment:
        rings = Rings(segment)
        rings.join(0)
        try:
            rings.put(0, "x")
            for number in range(400):
                rings.put(0, f"e{number}", text="x" * 900)
            loads: list[int] = []
            following = RingReader.following

            def counted(self: RingReader, number: int, count: int) -> Scan:
                loads.append(count)
                return following(self, number, count)

            monkeypatch.setattr(RingReader, "following", counted)
            monkeypatch.delattr(RingReader, "scan")
            [found] = Observer(segment).look(rings.now)
            assert sum(loads) < 64
            assert found.open_spans == []
        finally:
            rings.engines[0].unbind()


def test_another_process_in_the_same_ring(rings: Rings) -> None:
    rings.join(0, "old")
    rings.engines[0].begin("request")
    watched = Observer(rings.segment)
    look(watched, rings)
    rings.join(0, "new")
    [found] = look(watched, rings).values()
    assert (found.entry.label, found.open_spans, found.rate) == ("new", [], None)
    rings.set(0, state=EntryState.DETACHED, detached_ns=rings.now)
    [found] = look(watched, rings).values()
    assert (found.state, found.rss, found.cpu) == (live.DETACHED, 0, None)


def test_hostile_words(rings: Rings) -> None:
    rings.join(0)
    rings.put(0, "x")
    watched = Observer(rings.segment)
    for value in (0, 1, 1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1):
        for name in ("opening", "pid", "start_ticks", "state", "incarnation", "detached_ns"):
            rings.set(0, **{name: value})
            for each in watched.look(rings.now):
                assert each.rate is None or 0 <= each.rate < float("inf")
            live.producers(rings.segment)
            rings.set(0, opening=1, pid=os.getpid(), start_ticks=0, state=2, incarnation=1)
