"""What a soak has seen, and the verdict on it; it can be kept, and judged again.

Pure but for what it prints. Flat means, over the last three quarters: no process's private memory,
and not its resident memory, grows by `ALLOWED_KIB` or more at the upper bound of its slope, which
holds with a confidence of 95 % (`trend`). What is counted (descriptors, threads, mapped semaphores,
mappings) comes and goes by itself, and of it the least is what is held: its slope itself must not
make one more. A process that was recorded nowhere is shown beside the others, and not judged.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field
from typing import Any

from tools.stress.holdings import Holdings
from tools.stress.tally import Tally
from tools.stress.trend import Trend, trend

ALLOWED_KIB = 256
"""Of growth in the judged part: 64 pages."""
UNRECORDED = "threads, recorded nowhere"
_WARMING_KIB = 2048
"""The same where the trial is too short for what is filled once to be full."""
_WARM_SECONDS = 1800.0
_JUDGED = 0.75
"""The part of the trial that is judged, its last."""
_MEMORY = ("private", "resident")
_COUNTED = {"descriptors": 1, "threads": 1, "semaphores": 1, "mappings": 4}
"""With how many more of them would be a leak. Memory comes in mappings: what grows by one
anew for each thing that is done would have thousands."""


@dataclass
class Series:
    """What one process was seen to hold, and when."""

    times: list[float] = field(default_factory=list)
    seen: list[Holdings] = field(default_factory=list)


@dataclass
class Samples:
    """All that was seen in a soak of so many seconds: by process, and of the recording itself.

    `counts` are those of the trial, for who judges it again.
    """

    seconds: float
    processes: dict[str, Series] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def judge(self, tally: Tally) -> None:
        """Fail for everything that has grown, and print what grew by how much at most."""
        warm = self.seconds >= _WARM_SECONDS
        allowed = ALLOWED_KIB if warm else _WARMING_KIB
        most = 0.0
        for name, series in self.processes.items():
            # Pages of rings are resident in the collector from the first time that it reads them.
            for what in (*(_MEMORY if warm else _MEMORY[:1]), *_COUNTED):
                values = [getattr(each, what) for each in series.seen]
                growth = _judge(tally, name, what, series.times, values, allowed)
                if what == "private" and name != UNRECORDED and growth is not None:
                    most = max(most, growth.high)
        _judge(tally, "recording", "memory", self.times, self.memory, allowed)
        _judge(tally, "recording", "objects", self.times, self.objects, 1)
        tally.count("KiB an hour at most (95 %) of private memory by any process", round(most))

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {
            "seconds": self.seconds,
            "counts": self.counts,
            "fields": Holdings._fields,
            "processes": {
                name: [
                    [round(at, 2), *seen]
                    for at, seen in zip(series.times, series.seen, strict=True)
                ]
                for name, series in self.processes.items()
            },
            "recording": [
                [round(at, 2), memory, objects]
                for at, memory, objects in zip(self.times, self.memory, self.objects, strict=True)
            ],
        }

    @classmethod
    def of_json(cls, kept: dict[str, Any]) -> Samples:
        """The same again."""
        found = cls(kept["seconds"], counts=kept["counts"])
        for name, rows in kept["processes"].items():
            found.processes[name] = Series(
                [row[0] for row in rows], [Holdings(*row[1:]) for row in rows]
            )
        for at, memory, objects in kept["recording"]:
            found.times.append(at)
            found.memory.append(memory)
            found.objects.append(objects)
        return found


def _judge(
    tally: Tally, called: str, what: str, times: list[float], values: list[int], allowed: float
) -> Trend | None:
    """The trend by the hour; a failure if it has grown, or memory may have, by too much."""
    first = round(len(values) * (1 - _JUDGED))
    times, values = times[first:], values[first:]
    counted = what in _COUNTED
    try:
        found = trend(times, values, min if counted else statistics.median)
    except ValueError as error:
        tally.fail(f"{called}: {what}: {error}")
        return None
    growth = (found.slope if counted else found.high) * (times[-1] - times[0])
    by_hour = Trend(*(bound * 3600 for bound in found))
    if growth >= _COUNTED.get(what, allowed) and called != UNRECORDED:
        tally.fail(
            f"{called}: {what} grows by {by_hour.slope:.1f} an hour "
            f"({by_hour.low:.1f} to {by_hour.high:.1f}), from {values[0]} to {values[-1]}"
        )
    print(
        f"  {called:28} {what:12} {values[0]:>9,} {values[-1]:>9,}  "
        f"{by_hour.slope:+9.1f} an hour ({by_hour.low:+.1f} to {by_hour.high:+.1f})",
        file=sys.stderr,
    )
    return by_hour
