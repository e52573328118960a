"""Merging the producers' events into one stream in time order, without holding many of them.

Runs in tools. Each stream is one producer's events, in short runs. The runs read so far are
held in one list; what is older than the least of the streams' newest times cannot be preceded
by anything still unread, and is handed out. So many runs are read between two sorts that
sorting costs little for an event, and so few that not much more is held than a run a stream.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Final

from shmrec.decoder import Event

__all__ = ["merged", "run_size"]

_AT_A_TIME: Final = 256
"""Events to read at least between two sorts."""
_LEAST, _MOST = 16, 128
"""Events of a run: below, what a run costs shows; above, nothing is gained."""
_HELD: Final = 1 << 12
"""Events of all streams' runs: objects that fit into a processor's cache are cheaper by half."""

_time = itemgetter(Event._fields.index("time_ns"))


def run_size(streams: int) -> int:
    """How many events a run should have, so that all streams' runs are not many events."""
    return min(_MOST, max(_LEAST, _HELD // max(streams, 1)))


def merged(streams: Sequence[Iterable[list[Event]]], size: int) -> Iterator[list[Event]]:
    """The streams' events in time order, in lists; no run is longer than `size`.

    Events of one stream keep their order; which of two streams' events of the same nanosecond
    comes first is open. A stream out of order, which no producer writes, costs the order
    but no memory.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    readers = [iter(stream) for stream in streams]
    # The time up to which a stream has been read, and which it is: least first, and those of
    # which nothing is known yet before all others.
    waiting = [(-1, number) for number in range(len(readers))]
    # In order, a stream has no more than its newest run behind the least of the times.
    bound = max(_AT_A_TIME, len(readers) * size)
    held: list[Event] = []
    while waiting:
        missing = max(_AT_A_TIME, len(held) // 2)
        # A stream's runs side by side: for the sort they are one that is in order already.
        fresh: dict[int, list[Event]] = {}
        while waiting and missing > 0:
            number = waiting[0][1]
            run = next(readers[number], None)
            if run is None:
                heapq.heappop(waiting)
                continue
            missing -= len(run)
            if number in fresh:
                fresh[number] += run
            else:
                fresh[number] = run
            heapq.heapreplace(waiting, (run[-1].time_ns, number))
        held += chain.from_iterable(fresh.values())
        held.sort(key=_time)
        if not waiting:
            break
        ready = bisect_right(held, waiting[0][0], key=_time)
        if len(held) - ready > bound:
            ready = len(held)
        if ready:
            yield held[:ready]
            del held[:ready]
    if held:
        yield held
