"""Triggers: the texts that describe them, and their limits."""

from __future__ import annotations

import signal

import pytest

from shmrec.errors import ShmrecError
from shmrec.layout import TRIGGERS
from shmrec.triggers import Limits, Trigger, defaults, parse, parse_all, shortened

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "slow_span request* 5s window=2s interval=60s daily=20",
            Trigger("slow_span", "request*", 5 * SECOND, window_ns=2 * SECOND,
                    interval_ns=60 * SECOND, daily=20),
        ),
        ("slow_span 250ms", Trigger("slow_span", "*", SECOND // 4)),
        ("slow_span 'GET /x y' 2m", Trigger("slow_span", "GET /x y", 120 * SECOND)),
        ("slow_span a=b 1", Trigger("slow_span", "a=b", SECOND)),
        ("stall 10s", Trigger("stall", threshold=10 * SECOND)),
        ("stall request 10s", Trigger("stall", "request", 10 * SECOND)),
        ("stall 10s heartbeat=loop", Trigger("stall", threshold=10 * SECOND, heartbeat="loop")),
        ("counter queue.depth > 1000", Trigger("counter", "queue.depth", 1000, ">")),
        ("counter queue.depth>=1e3", Trigger("counter", "queue.depth", 1000, ">=")),
        ("counter 'free  mem' <= -1.5", Trigger("counter", "free  mem", -1.5, "<=")),
        ("counter q < 1 window=0", Trigger("counter", "q", 1, "<")),
        ("exception", Trigger("exception")),
        ("log interval=1h", Trigger("log", interval_ns=3600 * SECOND)),
        ("signal USR1", Trigger("signal", "USR1")),
        ("signal sigusr2", Trigger("signal", "USR2")),
        ("timeout interval=0", Trigger("timeout", interval_ns=0)),
        ("death daily=7", Trigger("death", interval_ns=5 * SECOND, daily=7)),
    ],
)  # fmt: skip
def test_a_text_describes_a_trigger(text: str, expected: Trigger) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("slow_spam 5s", "there is no 'slow_spam', only slow_span, stall"),
        ("slow_span", "takes a pattern of names"),
        ("slow_span a b 5s", "takes a pattern of names"),
        ("slow_span request soon", "'soon' is no time"),
        ("slow_span request 0s", "more than 0"),
        ("slow_span request 5s window=61s", "no time from 0 to 60 s"),
        ("slow_span request -5s", "no time"),
        ("slow_span request 5s window=1s window=2s", "window is given twice"),
        ("slow_span request 5s heartbeat=x", "takes a pattern of names"),
        ("stall 10s heartbeat=", "takes the name"),
        ("stall request 10s heartbeat=x", "not both"),
        ("counter depth", "one of > >= < <="),
        ("counter depth > much", "'much' is no number"),
        ("counter depth > nan", "no number"),
        ("exception ValueError", "'ValueError' means nothing here"),
        ("signal TERM", "one of USR1, USR2, HUP"),
        ("signal", "one of USR1"),
        ("timeout window=1s", "no window"),
        ("death window=1s", "no window"),
        ("log daily=0", "from 1 to 100000"),
        ("log daily=9999999999999", "from 1 to 100000"),
        ("request", "never limited"),
        ("slow_span 'request 5s", "quotes do not match"),
        ("\x1b]0;owned\x07\n" * 50, "there is no"),
    ],
)
def test_what_describes_none_is_one_line_with_an_example(text: str, said: str) -> None:
    with pytest.raises(ShmrecError) as caught:
        parse(text)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert said in message
    assert "for example `" in message
    assert message.isprintable()
    assert len(message) < 500


def test_what_a_trigger_matches() -> None:
    assert parse("slow_span request* 5s").matches("request /x")
    assert not parse("slow_span request* 5s").matches("Request")
    assert parse("slow_span 5s").matches("anything")
    for sign, found in ((">", [3]), (">=", [2, 3]), ("<", [1]), ("<=", [1, 2])):
        trigger = parse(f"counter q {sign} 2")
        assert [value for value in (1, 2, 3) if trigger.beyond(value)] == found
        assert not trigger.beyond(float("nan"))
    assert parse("signal USR2").signal == signal.SIGUSR2


def test_only_some_kinds_may_be_given_several_times() -> None:
    assert len(parse_all(["slow_span a 5s", "slow_span b 5s", "stall 1s", "signal HUP"])) == 4
    for twice in (["log", "log daily=3"], ["signal USR1"] * 2, ["stall 1s", "stall 1s"]):
        with pytest.raises(ShmrecError, match="given twice"):
            parse_all(twice)
    with pytest.raises(ShmrecError, match="a list"):
        parse_all("stall 1s")


def test_some_kinds_are_there_without_being_given() -> None:
    every = defaults([], 7 * SECOND)
    assert {trigger.kind for trigger in every} == {
        "exception", "log", "timeout", "signal", "death"
    }  # fmt: skip
    death = next(trigger for trigger in every if trigger.kind == "death")
    assert (death.interval_ns, death.daily) == (7 * SECOND, 500)
    given = parse_all(["signal HUP", "death daily=3", "log daily=1"])
    kept = {trigger.kind: trigger for trigger in defaults(given, 7 * SECOND)}
    assert kept["signal"].name == "HUP"
    assert (kept["death"].daily, kept["log"].daily, kept["timeout"].daily) == (3, 1, 50)


def test_within_the_interval_there_is_no_second_snapshot() -> None:
    limits = Limits()
    trigger, other = parse("log interval=30s"), parse("exception")
    assert not limits.refusal(trigger, 0)
    limits.took(trigger, 0)
    assert "one in 30 s" in limits.refusal(trigger, 30 * SECOND - 1)
    assert not limits.refusal(trigger, 30 * SECOND)
    assert not limits.refusal(other, 1)


def test_the_daily_cap_is_of_any_24_hours() -> None:
    limits = Limits()
    trigger = parse("log interval=0 daily=2")
    limits.took(trigger, 0)
    limits.took(trigger, DAY // 2)
    assert "limit of 2 snapshots in 24 h" in limits.refusal(trigger, DAY - 1)
    assert not limits.refusal(trigger, DAY)
    limits.took(trigger, DAY)
    assert limits.refusal(trigger, DAY + DAY // 2 - 1)
    assert not limits.refusal(trigger, DAY + DAY // 2)


def test_a_deaths_interval_drops_nothing() -> None:
    limits = Limits()
    death = parse("death interval=5s daily=2")
    limits.took(death, 0)
    assert not limits.refusal(death, 1)
    limits.took(death, 1)
    assert limits.refusal(death, 2)


def test_what_is_suppressed_is_counted_by_kind_and_goes_on_from_before() -> None:
    limits = Limits({"log": 5})
    limits.suppress(parse("log"))
    limits.suppress(parse("death"), 3)
    assert list(limits.suppressed) == list(TRIGGERS)
    assert {kind: n for kind, n in limits.suppressed.items() if n} == {"log": 6, "death": 3}


def test_a_text_in_a_reason_is_one_short_line() -> None:
    assert shortened("a\nb\x1b[31m\u202e") == "a?b?[31m?"
    assert shortened("x" * 100_000) == "x" * 63 + "…"
