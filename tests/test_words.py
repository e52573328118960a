"""Word to the collector: what is sent, and what is not; snapshots asked for by a handler."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

import shmrec
from shmrec import requests
from shmrec import words as words_module
from shmrec.layout import ENTRY, REQUESTS, TRIGGERS, Status, Verb
from shmrec.segment import Segment
from shmrec.words import Words

from .conftest import Script
from .recordings import Answering, recorded, unserved, words


@pytest.fixture
def made(recording_name: str) -> Iterator[Segment]:
    with unserved(recording_name) as opened:
        yield opened


@pytest.fixture
def rec(made: Segment) -> Iterator[shmrec.Recorder]:
    attached = shmrec.attach(made.name, required=True, exceptions=False)
    yield attached
    attached.detach()


class Clock:
    """`time`, as far as word asks for it."""

    now = 1_000_000_000_000

    def monotonic_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(words_module, "time", made)
    return made


def test_word_names_the_trigger_the_process_and_the_reason(
    rec: shmrec.Recorder, made: Segment
) -> None:
    assert rec.trigger("log", "näher")
    assert words(made) == [("log", os.getpid(), "näher")]


def test_word_of_a_kind_is_sent_ten_times_a_second_at_most(made: Segment, clock: Clock) -> None:
    sending = Words()
    assert sending.send(made, None, "log", "1")
    assert not sending.send(made, None, "log", "2")
    assert sending.send(made, None, "exception", "3")
    clock.now += 99_999_999
    assert not sending.send(made, None, "log", "4")
    clock.now += 1
    assert sending.send(made, None, "log", "5")
    sending.forget()
    assert sending.send(made, None, "log", "6")
    assert sorted(reason for _, _, reason in words(made)) == ["1", "3", "5", "6"]


def test_words_that_are_held_back_are_counted_in_the_senders_entry(
    rec: shmrec.Recorder, made: Segment, clock: Clock
) -> None:
    def held() -> list[int]:
        first = ENTRY.word("held_back", made.geometry.entry(rec._index))
        return made.words[first : first + 2].tolist()

    for kind, times in (("exception", 2), ("log", 4)):
        for _ in range(times):
            rec.trigger(kind, "storm")
    assert (len(words(made)), held()) == (2, [1, 3])
    clock.now += 1_000_000_000
    for _ in range(REQUESTS):
        assert requests.tell(made, None, Verb.ENDED, argument=(1, 0))
    assert not rec.trigger("log", "no slot left")
    assert held() == [1, 4]
    made.set_word("collector_pid", 0)
    clock.now += 1_000_000_000
    assert not rec.trigger("log", "nobody is there who could be told")
    assert held() == [1, 4]


def test_a_child_that_has_no_ring_yet_counts_nothing_in_its_parents(
    rec: shmrec.Recorder, made: Segment
) -> None:
    assert rec.trigger("log", "sent")
    pid = os.fork()
    if pid == 0:
        rec.trigger("log", "sent too")
        rec.trigger("log", "held back, without a ring")
        os._exit(0)
    os.waitpid(pid, 0)
    first = ENTRY.word("held_back", made.geometry.entry(rec._index))
    assert made.words[first + 1] == 0


def test_without_a_collector_no_word_waits_for_the_next(
    rec: shmrec.Recorder, made: Segment
) -> None:
    made.set_word("collector_pid", 0)
    assert not rec.trigger("log", "x")
    assert requests.pending(made) == []


def test_a_detached_recorder_sends_no_word(rec: shmrec.Recorder, made: Segment) -> None:
    rec.detach()
    assert not rec.trigger("log", "x")
    assert requests.pending(made) == []


def test_no_word_where_every_slot_is_in_use(rec: shmrec.Recorder, made: Segment) -> None:
    for _ in range(REQUESTS):
        assert requests.tell(made, None, Verb.ENDED)
    assert not rec.trigger("log", "x")


def test_word_does_not_wait_for_a_lock_that_another_holds(
    rec: shmrec.Recorder, made: Segment, script: Callable[..., Script]
) -> None:
    other = script(
        "import sys\n"
        "from shmrec.segment import open_segment\n"
        "with open_segment(sys.argv[1]).locked():\n"
        "    print('locked', flush=True); sys.stdin.readline()\n",
        made.name,
    )
    assert other.line() == "locked"
    began = time.monotonic()
    assert not rec.trigger("log", "x")
    assert time.monotonic() - began < 1.0
    other.say()


# A snapshot from an except block.


def ask_while_handling(error: BaseException, reason: str = "") -> str | None:
    try:
        raise error
    except BaseException:
        return shmrec.snapshot(reason, timeout=30)


def test_a_handler_asks_within_the_limits_of_exceptions(
    rec: shmrec.Recorder, made: Segment
) -> None:
    with Answering(made, "/path") as collector:
        assert ask_while_handling(ValueError("what"), "orders") == "/path"
        assert ask_while_handling(LookupError()) == "/path"
    first, second = collector.seen
    assert (first.verb, first.reason) == (Verb.TRIGGER, "orders")
    assert first.argument == (TRIGGERS.index("exception"), os.getpid())
    assert second.reason == "handled LookupError"
    assert [(event.kind, event.name) for event in recorded(made)] == [
        ("exception", "ValueError"),
        ("exception", "LookupError"),
    ]
    assert recorded(made)[0].args["message"] == "what"


def test_a_suppressed_snapshot_is_none_without_a_warning(
    rec: shmrec.Recorder, made: Segment
) -> None:
    rec._warned = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Answering(made, "not again", Status.SUPPRESSED):
            assert ask_while_handling(ValueError()) is None
        assert caught == []
        # It would be told of anything else.
        with Answering(made, "the disk is full", Status.FAILED):
            assert ask_while_handling(ValueError()) is None
        assert [str(each.message) for each in caught] == ["shmrec: no snapshot: the disk is full"]
    assert [event.name for event in recorded(made)] == ["ValueError"] * 2


def test_an_exception_is_recorded_once_and_the_next_one_again(
    rec: shmrec.Recorder, made: Segment
) -> None:
    with Answering(made, "", Status.SUPPRESSED):
        for number in range(3):
            # Each has the address of the one before, most likely.
            try:
                raise ValueError(number)
            except ValueError as error:
                shmrec.exception(error)
                shmrec.snapshot()
                shmrec.snapshot()
        for number in range(3, 5):
            try:
                raise ValueError(number)
            except ValueError:
                shmrec.snapshot()
                shmrec.snapshot()
    assert [event.args["message"] for event in recorded(made)] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_failure_is_a_request_like_any(
    rec: shmrec.Recorder, made: Segment, error: BaseException
) -> None:
    with Answering(made, "/path") as collector:
        assert ask_while_handling(error, "bye") == "/path"
        assert shmrec.snapshot("plain", timeout=30) == "/path"
    assert [(request.verb, request.reason) for request in collector.seen] == [
        (Verb.SNAPSHOT, "bye"),
        (Verb.SNAPSHOT, "plain"),
    ]
    assert recorded(made) == []


def test_a_detached_recorder_records_and_asks_nothing(rec: shmrec.Recorder, made: Segment) -> None:
    rec.detach()
    assert ask_while_handling(ValueError()) is None
    assert requests.pending(made) == []
