"""Merging streams of runs: order, nothing lost, and how much is held while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmrec.decoder import Event
from shmrec.merging import merged, run_size

# However busy the machine is.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def event(time_ns: int, stream: int, number: int = 0) -> Event:
    return Event(time_ns, "instant", "x", 1, "t", 1, span=number, producer=stream)


def runs(times: list[int], stream: int, size: int) -> list[list[Event]]:
    events = [event(time, stream, number) for number, time in enumerate(times)]
    return [events[at : at + size] for at in range(0, len(events), size)]


times = st.lists(st.integers(0, 2000), max_size=400)


@PATIENT
@given(st.lists(times.map(sorted), max_size=6), st.integers(1, 60))
def test_order_within_and_among_streams(streams: list[list[int]], size: int) -> None:
    parted = [runs(each, number, size) for number, each in enumerate(streams)]
    found = list(chain.from_iterable(merged(parted, size)))
    assert [each.time_ns for each in found] == sorted(chain.from_iterable(streams))
    for number, each in enumerate(streams):
        mine = [event for event in found if event.producer == number]
        assert [event.span for event in mine] == list(range(len(each)))


@PATIENT
@given(st.lists(times, max_size=6), st.integers(1, 60))
def test_streams_out_of_order_lose_nothing(streams: list[list[int]], size: int) -> None:
    parted = [runs(each, number, size) for number, each in enumerate(streams)]
    found = list(chain.from_iterable(merged(parted, size)))
    assert sorted(each.time_ns for each in found) == sorted(chain.from_iterable(streams))


@pytest.mark.parametrize("kind", ["alike", "one is fast", "all begins far ahead", "times go back"])
def test_little_is_held(kind: str) -> None:
    count, size, streams = 20_000, 32, 8
    taken = passed = most = 0

    def stream(number: int) -> Iterator[list[Event]]:
        nonlocal taken
        for at in range(0, count, size):
            if kind == "one is fast":
                step = 1 if number == 0 else 1_000
                numbers = [step * n for n in range(at, at + size)]
            elif kind == "all begins far ahead" and number:
                numbers = [10**9 + n for n in range(at, at + size)]
            elif kind == "times go back":
                numbers = [10**9 + n for n in range(at, at + size - 1)] + [0]
            else:
                numbers = list(range(at, at + size))
            taken += size
            yield [event(time, number) for time in numbers]

    for run in merged([stream(number) for number in range(streams)], size):
        most = max(most, taken - passed)
        passed += len(run)
    assert passed == taken == streams * count
    assert most < 3_000


def test_the_size_of_runs_shrinks_with_the_number_of_streams() -> None:
    sizes = [run_size(streams) for streams in (0, 1, 10, 100, 1_000, 4_096)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 128
    assert sizes[-1] == 16
