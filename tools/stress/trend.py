"""Whether a series of samples grows, and how surely: a slope with its confidence.

Pure. The slope is Theil and Sen's, the median of those between all pairs of points, which a few
wild samples do not move; its bounds are Sen's, from the variance of Kendall's statistic. Samples
that lie near each other are alike, which would make the bounds too narrow: so the points are not
the samples but one figure for each of a few blocks of them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

BLOCKS = 36
_CONFIDENCE = statistics.NormalDist().inv_cdf(0.975)
_FEWEST = 4
"""Points without which nothing can be said."""


class Trend(NamedTuple):
    """A slope in units a second, and bounds that hold it with a confidence of 95 %."""

    slope: float
    low: float
    high: float


def trend(
    times: Sequence[float],
    values: Sequence[float],
    of_block: Callable[[Sequence[float]], float] = statistics.median,
) -> Trend:
    """The trend of a series, each block of which counts as `of_block` of its values.

    Raises `ValueError` for fewer samples than can tell.
    """
    points = _blocks(times, values, of_block)
    if len(points) < _FEWEST:
        raise ValueError(f"{len(values)} samples are too few to tell a trend")
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, earlier in enumerate(points)
        for later in points[number + 1 :]
    )
    count = len(points)
    spread = _CONFIDENCE * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    below = max(0, math.floor((len(slopes) - spread) / 2))
    above = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    return Trend(statistics.median(slopes), slopes[below], slopes[above])


def _blocks(
    times: Sequence[float],
    values: Sequence[float],
    of_block: Callable[[Sequence[float]], float],
) -> list[tuple[float, float]]:
    count = min(BLOCKS, len(values))
    edges = [number * len(values) // count for number in range(count + 1)] if count else []
    return [
        (statistics.fmean(times[first:last]), of_block(values[first:last]))
        for first, last in itertools.pairwise(edges)
    ]
