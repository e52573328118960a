"""The native engine's times: CLOCK_MONOTONIC's, however they are come by, and never backwards."""

from __future__ import annotations

import os
import threading
import time

import pytest

from shmrec import _engine

from .arena import Arena, events_in
from .native import a_writer, rebind

pytestmark = pytest.mark.skipif(
    bool(_engine.refusal("native")), reason=f"no native engine: {_engine.refusal('native')}"
)

# A preempted reading of the clock may be wrong by as much; one that is wrong in kind, by more.
TOLERANCE_NS = 50_000


@pytest.fixture
def arena() -> Arena:
    return Arena(slots=4096, slot_size=16 * 1024)


def check(arena: Arena, bracketed: dict[int, tuple[int, int]]) -> None:
    """Every event was recorded between the two times that were read around it."""
    found = [event for event in events_in(arena.reader()) if event.name == "timed"]
    assert len(found) == len(bracketed)
    times = [event.time_ns for event in found]
    assert times == sorted(times)
    for event in found:
        before, after = bracketed[event.args["n"]]
        assert before - TOLERANCE_NS <= event.time_ns <= after + TOLERANCE_NS


def test_times_are_those_of_the_monotonic_clock_in_bursts_and_after_pauses(arena: Arena) -> None:
    writer = a_writer(arena)
    bracketed: dict[int, tuple[int, int]] = {}
    end = time.monotonic_ns() + 300_000_000
    n = 0
    while time.monotonic_ns() < end:
        for _ in range(300):
            before = time.monotonic_ns()
            writer.instant("timed", n=n)
            bracketed[n] = before, time.monotonic_ns()
            n += 1
        # Longer and longer: within what the counter is trusted for, and beyond.
        threading.Event().wait(n / 3e7)
    check(arena, bracketed)


def test_threads_share_a_clock_that_never_goes_back(arena: Arena) -> None:
    writer = a_writer(arena)

    def work() -> None:
        for n in range(20_000):
            writer.instant("x", n=n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [event.time_ns for event in events_in(arena.reader())]
    assert len(times) == 80_000
    assert times == sorted(times)


def test_durations_are_the_differences_of_times(arena: Arena) -> None:
    writer = a_writer(arena)
    for _ in range(1000):
        with writer.span("timed"):
            pass
    found = events_in(arena.reader())
    for begin, end in zip(found[::2], found[1::2], strict=True):
        assert end.duration_ns == end.time_ns - begin.time_ns


def test_a_forked_child_goes_on_with_the_right_time(arena: Arena) -> None:
    writer = a_writer(arena)
    for _ in range(50_000):
        writer.instant("warm")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            writer.forget()
            own = Arena(slots=64, slot_size=16 * 1024)
            bracketed = {}
            rebind(writer, own)
            for n in range(1000):
                before = time.monotonic_ns()
                writer.instant("timed", n=n)
                bracketed[n] = before, time.monotonic_ns()
            check(own, bracketed)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
