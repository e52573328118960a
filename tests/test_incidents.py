"""What waits to become a snapshot: windows, coalescing, deaths, limits; with made-up times."""

from __future__ import annotations

from typing import Any

import pytest

from shmrec.deaths import Death, Watched
from shmrec.incidents import Incidents, Plan
from shmrec.layout import REQUESTS, Verb
from shmrec.manifest import Cause
from shmrec.requests import Request
from shmrec.triggers import Trigger, defaults, parse, parse_all

MS = 1_000_000
SECOND = 1000 * MS
DAY = 86_400 * SECOND

SLOW = parse("slow_span 5s window=2s")
PROMPT = parse("slow_span x 5s")


def incidents(*texts: str) -> Incidents:
    return Incidents(defaults(parse_all(texts), 5 * SECOND))


def death(index: int, noticed: int, cause: str = "signal 9") -> Death:
    watched = Watched(index, 1, 100 + index, 0, -1)
    return Death(watched, "worker", noticed, Cause(cause, "test") if cause else None)


def request(ticket: int) -> Request:
    return Request(0, ticket, Verb.TRIGGER, 100, "", (0, 0))


def when(waiting: Incidents, now: int, deaths: list[Death] | None = None) -> tuple[int, Plan]:
    """The first plan, and when it comes; looks only as often as it is told to."""
    for _ in range(100):
        plan = waiting.due(deaths or [], now)
        if plan is not None:
            return now, plan
        wait = waiting.wait_ns(deaths or [], now)
        assert wait is not None, "it waits for nothing"
        assert wait > 0, "it would turn without end"
        now += wait
    raise AssertionError("it is never due")


def test_nothing_waits_for_nothing() -> None:
    waiting = incidents()
    assert waiting.due([], 0) is None
    assert waiting.wait_ns([], 0) is None


def test_a_trigger_without_a_window_is_due_at_once() -> None:
    waiting = incidents()
    assert waiting.fire(PROMPT, "slow span x", 7, suspects=[(3, 1)]) == ""
    at, plan = when(waiting, 7)
    assert at == 7
    assert (plan.trigger, plan.reason, plan.triggered_ns) == ("slow_span", "slow span x", 0)
    assert plan.suspects == [(3, 1)]
    waiting.done(plan)
    assert waiting.due([], 8) is None


def test_a_window_goes_on_recording_and_gathers_what_fires_meanwhile() -> None:
    waiting = incidents()
    waiting.fire(SLOW, "slow span a", 0, suspects=[(1, 1)])
    assert waiting.due([], 2 * SECOND - 1) is None
    assert waiting.fire(SLOW, "slow span b", SECOND, suspects=[(2, 1), (1, 1)]) == ""
    waiting.add_stacks({(1, 1): ["stack"], (9, 9): ["of nobody"]})
    at, plan = when(waiting, SECOND)
    assert at == 2 * SECOND
    assert plan.reason == "slow span a and 1 more"
    assert plan.suspects == [(1, 1), (2, 1)]
    assert plan.stacks == {(1, 1): ["stack"]}
    assert waiting.limits.suppressed["slow_span"] == 0


def test_when_it_fired_is_told_where_there_is_a_window() -> None:
    waiting = incidents()
    waiting.fire(SLOW, "a", 5)
    waiting.fire(PROMPT, "b", 2 * SECOND + 5)
    _, plan = when(waiting, 2 * SECOND + 5)
    assert plan.triggered_ns == 5
    assert plan.reason == "a; b"


def test_what_the_limits_refuse_is_counted_and_says_why() -> None:
    waiting = incidents()
    waiting.fire(PROMPT, "a", 0)
    waiting.done(when(waiting, 0)[1])
    assert "one in 30 s" in waiting.fire(PROMPT, "b", SECOND)
    assert waiting.due([], SECOND) is None
    assert waiting.limits.suppressed["slow_span"] == 1
    assert waiting.fire(PROMPT, "c", 30 * SECOND) == ""


def test_a_death_is_snapshotted_with_those_that_come_with_it() -> None:
    waiting = incidents()
    deaths = [death(1, 0), death(2, 30 * MS)]
    at, plan = when(waiting, 30 * MS, deaths)
    assert at == 50 * MS
    assert plan.deaths == deaths
    assert plan.reason == "death of worker pid 101: signal 9 and 1 more"
    assert plan.suspects == [(1, 1), (2, 1)]
    assert (plan.trigger, plan.triggered_ns) == ("death", 0)


def test_a_death_waits_for_its_cause_and_for_the_interval() -> None:
    waiting = incidents("death interval=9s")
    unknown = death(1, 0, cause="")
    assert waiting.due([unknown], SECOND) is None
    assert waiting.wait_ns([unknown], SECOND) == 20 * MS
    unknown.cause = Cause("exit code 1", "test")
    at, plan = when(waiting, SECOND, [unknown])
    assert at == SECOND
    waiting.done(plan)
    at, plan = when(waiting, 2 * SECOND, [death(2, 2 * SECOND), death(3, 3 * SECOND)])
    assert at == 10 * SECOND
    assert len(plan.deaths) == 2


def test_deaths_beyond_the_daily_cap_are_dealt_with_and_counted() -> None:
    waiting = incidents("death daily=1 interval=0")
    waiting.done(when(waiting, 0, [death(1, 0)])[1])
    deaths = [death(2, SECOND), death(3, SECOND)]
    _, plan = when(waiting, SECOND, deaths)
    assert plan.deaths == deaths
    assert "limit of 1 snapshots in 24 h" in plan.refusal
    waiting.done(plan)
    assert waiting.limits.suppressed["death"] == 2
    assert not when(waiting, DAY, [death(4, DAY)])[1].refusal


def test_a_snapshot_that_failed_is_tried_again_for_deaths_and_uses_up_no_limit() -> None:
    waiting = incidents("death daily=1 interval=0")
    deaths = [death(1, 0)]
    now = 0
    for _ in range(3):
        at, plan = when(waiting, now, deaths)
        assert at >= now
        assert not plan.refusal
        waiting.failed(plan, at)
        now = at + 1
        assert waiting.wait_ns(deaths, now) == 5 * SECOND - 1
    waiting.fire(PROMPT, "a", now)
    waiting.failed(when(waiting, now)[1], now)
    assert waiting.due([], now + DAY) is None


def test_snapshots_that_could_not_be_written_do_not_use_up_the_day() -> None:
    waiting = incidents("slow_span 5s window=1s interval=30s daily=2")
    trigger = parse("slow_span 5s window=1s interval=30s daily=2")
    now = 0
    for _ in range(5):
        assert waiting.fire(trigger, "slow", now) == ""
        at, plan = when(waiting, now)
        waiting.failed(plan, at)
        # A disk that is full is not tried more often than one that is not.
        assert "one in 30 s" in waiting.fire(trigger, "slow", now + 29 * SECOND)
        now += 30 * SECOND
    for _ in range(2):
        assert waiting.fire(trigger, "slow", now) == ""
        waiting.done(when(waiting, now)[1])
        now += 30 * SECOND
    assert "2 snapshots in 24 h" in waiting.fire(trigger, "slow", now)


def test_a_death_does_not_wait_for_a_window_and_takes_its_own_suspect_along() -> None:
    waiting = incidents()
    other = parse("stall 5s window=3s")
    waiting.fire(SLOW, "slow", 0, suspects=[(1, 1)])
    waiting.fire(other, "stalled", 0, suspects=[(2, 1)])
    at, plan = when(waiting, 0, [death(1, 0)])
    assert at == 50 * MS
    assert (plan.trigger, plan.reason) == ("death", "death of worker pid 101: signal 9; slow")
    waiting.done(plan)
    at, plan = when(waiting, at)
    assert (at, plan.reason) == (3 * SECOND, "stalled")


def test_a_firing_takes_along_deaths_that_wait_for_their_interval() -> None:
    waiting = incidents()
    waiting.done(when(waiting, 0, [death(1, 0)])[1])
    late = [death(2, SECOND)]
    waiting.fire(PROMPT, "slow", SECOND)
    at, plan = when(waiting, SECOND, late)
    assert at == SECOND + 50 * MS
    assert (plan.trigger, plan.deaths) == ("death", late)
    assert plan.reason.endswith("; slow")


def test_a_firing_does_not_wait_for_deaths_without_end() -> None:
    waiting = incidents()
    waiting.fire(PROMPT, "slow", 0)
    now = 0
    while (plan := waiting.due([death(1, now, cause="")], now)) is None:
        now += 20 * MS
        assert now < SECOND
    assert now == 500 * MS
    assert (plan.trigger, plan.deaths) == ("slow_span", [])


def test_a_crash_loop_does_not_put_off_the_snapshot_without_end() -> None:
    waiting = incidents()
    deaths = [death(0, 0)]
    now = 0
    while (plan := waiting.due(deaths, now)) is None:
        now += 20 * MS
        assert now < SECOND
        # The next one, of whose cause nothing is known yet.
        deaths = [*deaths[:1], death(1, now, cause="")]
        wait = waiting.wait_ns(deaths, now)
        assert wait is not None
        assert 0 < wait <= 20 * MS
    assert now == 500 * MS
    assert plan.deaths == deaths[:1]


@pytest.mark.parametrize("end", ["done", "failed"])
def test_stacks_of_others_than_suspects_are_nothing_that_was_kept(end: str) -> None:
    waiting = incidents()
    waiting.fire(SLOW, "slow", 0, suspects=[(1, 1)])
    waiting.add_stacks({(1, 1): ["its stack"]})
    at, plan = when(waiting, 0, [death(2, 0)])
    # As the collector adds them, told to take everybody's.
    plan.stacks.update({(3, 1): [], (1, 1): ["a later one"]})
    waiting.done(plan) if end == "done" else waiting.failed(plan, at)
    _, plan = when(waiting, at)
    assert (plan.reason, plan.stacks) == ("slow", {(1, 1): ["its stack"]})


def test_at_the_end_everything_that_waits_is_due() -> None:
    waiting = incidents()
    waiting.fire(SLOW, "slow", 0)
    plan = waiting.due([death(1, 0)], 0, last=True)
    assert plan is not None
    assert plan.reason == "death of worker pid 101: signal 9; slow"


def test_who_asked_is_answered_with_the_snapshot() -> None:
    waiting = incidents("log window=1s", "exception interval=9s")
    log, exception = waiting.trigger("log"), waiting.trigger("exception")
    assert waiting.fire(log, "log", 0, request=request(1)) == ""
    assert waiting.fire(log, "log", 1, request=request(2)) == ""
    assert waiting.holds(request(1))
    assert not waiting.holds(request(3))
    assert when(waiting, 1)[1].requests == [request(1), request(2)]
    assert waiting.fire(exception, "exception", 1, request=request(3)) == ""


def test_only_so_many_may_wait() -> None:
    waiting = incidents("log window=1s")
    refused = [
        waiting.fire(waiting.trigger("log"), "log", 0, request=request(n)) for n in range(20)
    ]
    assert refused.count("") == REQUESTS // 2
    assert waiting.limits.suppressed["log"] == 20 - REQUESTS // 2
    assert len(when(waiting, 0)[1].requests) == REQUESTS // 2


@pytest.mark.parametrize("kind", ["exception", "log", "timeout", "signal", "death"])
def test_every_kind_without_a_text_has_limits(kind: str) -> None:
    found: Any = incidents().trigger(kind)
    assert isinstance(found, Trigger)
    assert found.daily
