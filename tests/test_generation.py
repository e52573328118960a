"""The flush protocol as a state machine, with a clock of the test's own."""

from __future__ import annotations

import dataclasses

import pytest

from shmrec.generation import Evidence, Flush, Flushes, Sight
from shmrec.keeping import oldest_kept
from shmrec.ring import Head


def sight(writing: int = 0, closed: int = 0, newest: int = 0, ended: bool = False) -> Sight:
    return Sight(writing, closed, newest, ended)


@pytest.mark.parametrize(
    ("look", "evidence"),
    [
        (sight(writing=4), Evidence.IDLE),
        (sight(writing=5, closed=7), Evidence.CLOSED),
        (sight(writing=5, closed=9), Evidence.CLOSED),
        (sight(writing=5, newest=8), Evidence.CLOSED),
        (sight(writing=4, closed=7), Evidence.CLOSED),
        (sight(writing=5, ended=True), Evidence.ENDED),
        (sight(writing=4, ended=True), Evidence.ENDED),
    ],
)
def test_one_look_is_enough_where_it_proves_something(look: Sight, evidence: Evidence) -> None:
    flush = Flush(7, [0], now_ns=0, deadline_ns=10)
    flush.see(0, look)
    assert flush.done
    assert flush.evidence == {0: evidence}


@pytest.mark.parametrize(
    "look", [sight(writing=5), sight(writing=5, closed=6), sight(writing=5, newest=7)]
)
def test_inside_the_critical_section_of_the_old_generation_nothing_is_proved(look: Sight) -> None:
    flush = Flush(7, [0], now_ns=0, deadline_ns=10)
    for _ in range(3):
        flush.see(0, look)
    assert not flush.done


def test_another_odd_number_proves_that_the_record_under_way_at_the_fence_is_over() -> None:
    flush = Flush(7, [0], now_ns=0, deadline_ns=10)
    flush.see(0, sight(writing=5))
    flush.see(0, sight(writing=7))
    assert flush.evidence == {0: Evidence.IDLE}


def test_the_deadline_calls_the_rest_stalled_and_only_them() -> None:
    flush = Flush(7, [0, 1], now_ns=100, deadline_ns=10)
    flush.see(0, sight(writing=0))
    flush.see(1, sight(writing=1))
    assert not flush.expire(109)
    assert flush.waiting == [1]
    assert flush.expire(110)
    assert flush.done
    assert flush.evidence == {0: Evidence.IDLE, 1: Evidence.STALLED}


def test_two_flushes_keep_the_evidence_of_the_first_and_mend_stalled_by_the_second() -> None:
    flushes = Flushes(2, deadline_ns=10)
    first = flushes.begin(7, [0, 1], now_ns=0)
    first.see(0, sight(writing=5, closed=7))
    first.see(1, sight(writing=5))
    first.expire(10)
    flushes.finish(10)
    assert not flushes.done
    second = flushes.begin(8, [0, 1, 2], now_ns=11)
    second.see(0, sight(writing=4))
    second.see(1, sight(writing=6))
    second.see(2, sight(writing=0))
    flushes.finish(12)
    assert flushes.done
    assert flushes.wanted == 7
    assert flushes.evidence == {0: Evidence.CLOSED, 1: Evidence.IDLE, 2: Evidence.IDLE}


@pytest.mark.parametrize(("fenced", "evidence"), [(True, "idle"), (False, "stalled")])
def test_without_a_fence_only_the_last_look_counts(fenced: bool, evidence: str) -> None:
    flushes = Flushes(2, deadline_ns=10)
    flushes.begin(7, [0], now_ns=0).see(0, sight(writing=4))
    flushes.finish(1, fenced=fenced)
    second = flushes.begin(8, [0], now_ns=1)
    second.see(0, sight(writing=5))
    second.expire(10)
    flushes.finish(10, fenced=fenced)
    assert flushes.evidence == {0: evidence}


def test_the_flushes_of_a_snapshot_share_one_deadline() -> None:
    flushes = Flushes(2, deadline_ns=10)
    first = flushes.begin(7, [0], now_ns=0)
    first.see(0, sight(writing=1))
    assert first.expire(10)
    flushes.finish(10)
    second = flushes.begin(8, [0], now_ns=10)
    second.see(0, sight(writing=1))
    assert second.expire(10)


def test_one_flush_is_enough_where_it_is_asked_for() -> None:
    flushes = Flushes(1, deadline_ns=10)
    flushes.begin(7, [], now_ns=0)
    flushes.finish(0)
    assert flushes.done
    with pytest.raises(RuntimeError):
        flushes.begin(8, [], now_ns=0)


@pytest.mark.parametrize("count", [0, 3, -1])
def test_there_are_one_or_two_flushes(count: int) -> None:
    with pytest.raises(ValueError, match="1 or 2"):
        Flushes(count, deadline_ns=10)


def test_a_flush_is_not_finished_before_everybody_was_seen() -> None:
    flushes = Flushes(2, deadline_ns=10)
    flushes.begin(7, [0], now_ns=0)
    with pytest.raises(RuntimeError):
        flushes.finish(1)


def head(generation: int, start: int, size: int = 100) -> Head:
    return Head(generation, generation, start, size, 1, 0, 0, 0)


RINGS = [
    [head(1, 1000), head(2, 2000), head(3, 3000)],
    [head(2, 2100), head(3, 3100), head(4, 4000)],
]
ENDS = {1: 2000, 2: 3000, 3: 4000, 4: 5000}


@pytest.mark.parametrize(
    ("size", "period", "oldest"),
    [
        (10_000, 10_000, 1),
        (10_000, 0, 3),
        (0, 10_000, 3),
        (0, 0, 3),
        # The generation that crosses a limit stays, the one beyond it does not.
        (150, 10_000, 2),
        (10_000, 1500, 2),
        (10_000, 1000, 2),
        (10_000, 999, 3),
    ],
)
def test_generations_are_kept_whole_from_the_newest_complete_one_to_the_limits(
    size: int, period: int, oldest: int
) -> None:
    kept = oldest_kept(RINGS, 3, ENDS, size=size, period_ns=period, now_ns=4000)
    assert kept == oldest


def test_one_producer_that_lies_about_its_times_costs_the_others_nothing() -> None:
    liar = [dataclasses.replace(RINGS[0][-1], start_ns=1)]
    rings = [*RINGS, liar]
    for period in (999, 1500, 10_000):
        kept = oldest_kept(rings, 3, ENDS, size=10_000, period_ns=period, now_ns=4000)
        assert kept == oldest_kept(RINGS, 3, ENDS, size=10_000, period_ns=period, now_ns=4000)


def test_without_a_ledger_a_generations_beginning_decides() -> None:
    assert oldest_kept(RINGS, 3, {}, size=10_000, period_ns=1500, now_ns=4000) == 2


def test_nothing_recorded_keeps_nothing_and_does_not_fail() -> None:
    assert oldest_kept([], 3, {}, size=0, period_ns=0, now_ns=0) == 3
