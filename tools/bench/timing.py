"""Measuring candidates in turns, so that a machine's drift meets all of them alike."""

from __future__ import annotations

import random
import statistics
import timeit
from collections.abc import Callable, Mapping
from typing import Any

Sample = Callable[[], float]
Samples = dict[str, list[float]]

_COPIES = 10


def interleaved(candidates: Mapping[str, Sample], rounds: int) -> Samples:
    """`rounds` samples of each candidate, every round in another order."""
    order = list(candidates)
    # The same orders in every run, yet no candidate always behind the same one.
    shuffle = random.Random(1).shuffle
    samples: Samples = {name: [] for name in order}
    for candidate in candidates.values():
        candidate()
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(candidates[name]())
    return samples


def ratio(samples: Samples, name: str, floor: str) -> float:
    """The median of the ratios within each round."""
    pairs = zip(samples[name], samples[floor], strict=True)
    return statistics.median(sample / below for sample, below in pairs)


def statement(code: str, names: Mapping[str, Any], number: int) -> Sample:
    """A sample: nanoseconds for one execution of `code`, of `number`; `names` are its locals.

    As locals they cost the least to look up, so that a floor is as low as it can be. The code is
    written out several times in the loop's body: the loop's own cost, which is a good part of a
    call that does nothing, would bring every ratio nearer to 1.
    """
    setup = "; ".join(f"{name} = _given[{name!r}]" for name in names) or "pass"
    body = "\n".join([code] * _COPIES)
    timer = timeit.Timer(body, setup, globals={"_given": dict(names)})
    loops = max(1, number // _COPIES)

    def sample() -> float:
        return timer.timeit(loops) / (loops * _COPIES) * 1e9

    return sample
