"""A producer's facts as events: what the kernel said of it, on the same timeline.

Runs in whoever reads a snapshot. Each row of `manifest.FACTS` becomes counters named
``process.rss`` (bytes), ``process.cpu`` (percent of one processor since the row before),
``process.threads`` and ``process.open_files``; what could not be read becomes none. They are of
no thread: their `thread` is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shmrec.decoder import Event
from shmrec.events import COUNTER
from shmrec.manifest import Producer

__all__ = ["fact_runs"]

_WHOSE: Final = "process"


def fact_runs(producer: Producer, size: int) -> Iterator[list[Event]]:
    """The facts as events, oldest first, in lists of no more than `size`."""
    found: list[Event] = []
    previous: tuple[int, int] | None = None
    for time_ns, rss, cpu_ns, threads, files, _ in producer.facts:
        values: dict[str, int | float] = {"rss": rss, "threads": threads, "open_files": files}
        if previous is not None and time_ns > previous[0] and cpu_ns >= previous[1] >= 0:
            percent = 100 * (cpu_ns - previous[1]) / (time_ns - previous[0])
            values["cpu"] = round(percent, 1)
        previous = time_ns, cpu_ns
        found += [
            Event(
                time_ns,
                COUNTER.name,
                f"{_WHOSE}.{name}",
                0,
                _WHOSE,
                0,
                value=value,
                pid=producer.pid,
                label=producer.label,
                producer=producer.index,
            )
            for name, value in values.items()
            if value >= 0
        ]
        while len(found) >= size:
            yield found[:size]
            del found[:size]
    if found:
        yield found
