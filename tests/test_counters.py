"""A producer's facts as counters: what cannot be computed is left out."""

from __future__ import annotations

import pytest

from shmrec.counters import fact_runs
from shmrec.manifest import Producer

from .findings import SECOND

SHARE = SECOND // 4


def percents(*times: tuple[int, int]) -> list[object]:
    """The share of a processor that is told of rows with these times and processor times."""
    rows = [[time_ns, 1, cpu_ns, 1, 1, "S"] for time_ns, cpu_ns in times]
    events = [event for run in fact_runs(Producer(facts=rows), 4) for event in run]
    assert len([event for event in events if event.name == "process.rss"]) == len(rows)
    return [event.value for event in events if event.name == "process.cpu"]


def test_the_share_of_a_processor_is_that_since_the_row_before() -> None:
    assert percents((0, 0), (SECOND, SHARE), (3 * SECOND, SHARE)) == [25.0, 0.0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, SHARE + 1), (SECOND, SHARE)),
        ((0, SHARE), (SECOND, -1)),
        ((0, -1), (SECOND, SHARE)),
        ((0, -1), (SECOND, -1)),
        ((SECOND, 0), (SECOND, SHARE)),
        ((SECOND, 0), (0, SHARE)),
    ],
    ids=["less than before", "unread", "unread before", "never read", "no time", "back in time"],
)
def test_what_makes_no_sense_has_no_share(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert percents(before, after) == []
    # Only the one row: the next is good again.
    later = (after[0] + SECOND, max(0, after[1]) + SHARE)
    expected = [] if after[1] < 0 else [25.0]
    assert percents(before, after, later) == expected


def test_runs_are_bounded() -> None:
    producer = Producer(facts=[[n, 1, n, 1, 1, "S"] for n in range(10)])
    runs = list(fact_runs(producer, 4))
    assert [len(run) for run in runs[:-1]] == [4] * (len(runs) - 1)
    assert 0 < len(runs[-1]) <= 4
    assert sum(map(len, runs)) == 3 + 9 * 4
