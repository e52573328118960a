"""A short soak, and that one sees what grows, slowly or between other things."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.stress.test_life import run
from tools.stress.holdings import Holdings
from tools.stress.soak_samples import Samples, Series
from tools.stress.tally import Tally
from tools.stress.trend import trend

HOUR = 3600.0
TIMES = [5.0 * n for n in range(720)]
HELD = Holdings(
    private=14_000,
    resident=25_000,
    share=9_000,
    descriptors=9,
    threads=3,
    mappings=200,
    semaphores=1,
)


def noise(number: int) -> float:
    return random.Random(number).gauss(0, 40)


def test_a_slope_is_found_in_noise_and_outliers_do_not_move_it() -> None:
    values = [100 + 0.05 * at + noise(int(at)) for at in TIMES]
    for wild in range(0, 720, 50):
        values[wild] = 1e6
    found = trend(TIMES, values)
    assert found.low < 0.05 < found.high
    assert found.high - found.low < 0.02


def test_what_does_not_grow_has_a_slope_of_nothing() -> None:
    assert trend(TIMES, [7.0] * 720) == (0, 0, 0)
    found = trend(TIMES, [noise(int(at)) for at in TIMES])
    assert found.low < 0 < found.high
    with pytest.raises(ValueError, match="too few"):
        trend(TIMES[:3], [1, 2, 3])


def judged(**grows: float) -> list[str]:
    """What is said of an hour in which something grows by so much."""
    series = Series(TIMES)
    for at in TIMES:
        more = {what: round(by * at / HOUR) for what, by in grows.items()}
        swing = round(abs(noise(int(at))))
        series.seen.append(
            HELD._replace(
                private=HELD.private + more.get("private", 0) + swing,
                # A process that starts others has some more at any time.
                descriptors=HELD.descriptors + more.get("descriptors", 0) + swing % 3,
                semaphores=HELD.semaphores + more.get("semaphores", 0),
            )
        )
    samples = Samples(HOUR, {"worker": series}, TIMES, [12_000] * 720, [2] * 720, {"kills": 7})
    kept = json.loads(json.dumps(samples.as_json()))
    assert Samples.of_json(kept) == samples
    tally = Tally("soak", 1)
    samples.judge(tally)
    return [failure.partition(" grows")[0] for failure in tally.failures]


def test_an_hour_is_judged_by_what_may_have_grown() -> None:
    assert judged() == []
    # A page every half minute, and one descriptor every twenty minutes.
    assert judged(private=450) == ["worker: private"]
    assert judged(descriptors=3, semaphores=3) == ["worker: descriptors", "worker: semaphores"]


@pytest.mark.stress
def test_a_short_soak_of_some(tmp_path: Path) -> None:
    found = run(tmp_path, "soak", "comings", "--minutes", "0.1")["counts"]
    assert found["generations"] > 50
    assert found["producers"] > 50
