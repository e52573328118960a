"""Request slots: both halves, without a collector's loop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from shmrec import requests
from shmrec.errors import CollectorError, LockedError, RequestFailedError, SnapshotActiveError
from shmrec.layout import REASON_BYTES, REQUESTS, Status, Verb
from shmrec.segment import Segment

from .conftest import Script, wait_until
from .recordings import unserved


@pytest.fixture
def made(recording_name: str) -> Iterator[Segment]:
    """A segment whose collector is this very process."""
    with unserved(recording_name, producers=1) as opened:
        yield opened


def asking(made: Segment, answers: list[object], **options: object) -> threading.Thread:
    def ask() -> None:
        try:
            answers.append(requests.ask(made, None, Verb.SNAPSHOT, timeout=30, **options))  # type: ignore[arg-type]
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_an_answer_reaches_its_requester(made: Segment) -> None:
    answers: list[object] = []
    thread = asking(made, answers, reason="näher")
    wait_until(lambda: requests.pending(made))
    [request] = requests.pending(made)
    assert (request.verb, request.pid, request.reason) == (Verb.SNAPSHOT, os.getpid(), "näher")
    requests.answer(made, request, "/some/path\udce4")
    thread.join()
    assert answers == ["/some/path\udce4"]
    assert not requests.pending(made)


class Clock:
    """Time that passes only in `sleep`, and an answer that comes when it is time for it."""

    def __init__(self, made: Segment, after: float) -> None:
        self.made = made
        self.after = after
        self.now = 1000.0
        self.polls = 0

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.polls += 1
        self.now += seconds
        if self.now >= 1000.0 + self.after:
            for request in requests.pending(self.made):
                requests.answer(self.made, request, "answered")


@pytest.mark.parametrize("after", [0.0001, 0.001, 0.01, 0.04, 0.06, 0.5, 5.0])
def test_an_answer_is_seen_a_small_share_of_its_time_after_it_came(
    made: Segment, monkeypatch: pytest.MonkeyPatch, after: float
) -> None:
    clock = Clock(made, after)
    monkeypatch.setattr(requests, "time", clock)
    assert requests.ask(made, None, Verb.SNAPSHOT, timeout=30) == "answered"
    late = clock.now - 1000.0 - after
    assert late <= max(0.0002, after / 30)
    assert late <= 0.02
    # Nor is it looked for all the time.
    assert clock.polls < 200 + after / 0.01


def test_a_failure_is_raised_in_the_collectors_words(made: Segment) -> None:
    answers: list[object] = []
    thread = asking(made, answers)
    wait_until(lambda: requests.pending(made))
    requests.answer(made, requests.pending(made)[0], "disk full", Status.FAILED)
    thread.join()
    assert isinstance(answers[0], RequestFailedError)
    assert str(answers[0]) == "disk full"


def test_a_reason_of_any_length_is_cut(made: Segment) -> None:
    answers: list[object] = []
    thread = asking(made, answers, reason="é" * 10_000)
    wait_until(lambda: requests.pending(made))
    [request] = requests.pending(made)
    assert len(request.reason) <= REASON_BYTES
    requests.answer(made, request, "x" * 100_000)
    thread.join()
    assert len(str(answers[0])) == 4096


def test_slots_are_used_again_for_ever(made: Segment) -> None:
    for n in range(3 * REQUESTS):
        assert requests.tell(made, None, Verb.ENDED, argument=(n, 2 * n))
        [request] = requests.pending(made)
        assert request.argument == (n, 2 * n)
        requests.answer(made, request, "")


def test_with_every_slot_in_use_the_next_is_told_so_at_once(made: Segment) -> None:
    for _ in range(REQUESTS):
        assert requests.tell(made, None, Verb.ENDED)
    assert not requests.tell(made, None, Verb.ENDED)
    with pytest.raises(SnapshotActiveError, match="16 requests"):
        requests.ask(made, None, Verb.SNAPSHOT, timeout=30)
    for request in requests.pending(made):
        requests.answer(made, request, "")
    assert requests.tell(made, None, Verb.ENDED)


def test_the_slot_of_a_requester_that_died_is_free_again(
    made: Segment, script: Callable[..., Script]
) -> None:
    source = (
        "import sys\n"
        "from shmrec import requests\n"
        "from shmrec.segment import open_segment\n"
        "requests.ask(open_segment(sys.argv[1]), None, 1, timeout=60)\n"
    )
    dying = [script(source, made.name) for _ in range(REQUESTS)]
    wait_until(lambda: len(requests.pending(made)) == REQUESTS)
    for each in dying:
        each.kill()
        each.wait()
    assert not requests.tell(made, None, Verb.ENDED)
    for request in requests.pending(made):
        requests.answer(made, request, "nobody hears this")
    assert requests.tell(made, None, Verb.ENDED)


def test_without_a_collector_the_error_says_what_to_do(made: Segment) -> None:
    made.set_word("collector_pid", 0)
    with pytest.raises(CollectorError, match="shmrec-collect"):
        requests.ask(made, None, Verb.SNAPSHOT, timeout=30)


def test_no_answer_in_time_is_an_error_and_frees_the_slot_once_answered(made: Segment) -> None:
    with pytest.raises(CollectorError, match="did not answer within"):
        requests.ask(made, None, Verb.SNAPSHOT, timeout=0.01)
    [late] = requests.pending(made)
    requests.answer(made, late, "")
    assert requests.tell(made, None, Verb.ENDED)


def test_a_lock_that_somebody_keeps_is_waited_for_no_longer_than_the_answer(
    made: Segment, script: Callable[..., Script]
) -> None:
    holder = script(
        "import sys\n"
        "from shmrec.segment import open_segment\n"
        "with open_segment(sys.argv[1]).locked():\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.readline()\n",
        made.name,
    )
    assert holder.line() == "locked"
    with pytest.raises(LockedError, match=r"locked by another process for 0\.01 s"):
        requests.ask(made, None, Verb.SNAPSHOT, timeout=0.01)
    holder.end_input()


@pytest.mark.parametrize(
    ("heartbeat", "why"),
    [(0, "it is stopped"), (1 << 64, "it is at work"), (-1, "it is at work")],
    ids=["silent", "now", "scribbled"],
)
def test_who_gets_no_answer_learns_whether_the_collector_gives_a_sign_of_life(
    made: Segment, heartbeat: int, why: str
) -> None:
    value = min(heartbeat, time.monotonic_ns()) if heartbeat >= 0 else (1 << 64) - 1
    made.set_word("heartbeat_ns", value)
    with pytest.raises(CollectorError, match=f"pid {os.getpid()}, did not answer.*{why}"):
        requests.ask(made, None, Verb.SNAPSHOT, timeout=0.01)


def test_garbage_in_the_slots_is_bounded(made: Segment) -> None:
    start = made.geometry.requests_offset
    end = made.geometry.table_offset
    made.view[start:end] = os.urandom(end - start)
    for request in requests.pending(made):
        assert len(request.reason) <= REASON_BYTES
        requests.answer(made, request, "x")
    assert not requests.pending(made)
    assert requests.tell(made, None, Verb.ENDED)
