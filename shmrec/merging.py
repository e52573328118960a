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
from operator import attrgetter
from typing import Final

from shmrec.decoder import Event

__all__ = ["merged", "run_size"]

_AT_A_TIME: Final = 2048
"""Events to read at least between two sorts: few enough to stay in a processor's cache."""
_LEAST, _MOST = 16, 128
"""Events of a run: below, what a run costs shows; above, nothing is gained."""
_HELD_AT_MOST: Final = 1 << 15

_time = attrgetter("time_ns")


def run_size(streams: int) -> int:
    """How many events a run should have, so that all streams' runs are not many events."""
    return min(_MOST, max(_LEAST, _HELD_AT_MOST // max(streams, 1)))


def merged(streams: Sequence[Iterable[list[Event]]], size: int) -> Iterator[list[Event]]:
    """The streams' events in time order, in lists; `size` is what `run_size` says.

    Events of one stream keep their order; which of two streams' events of the same nanosecond
    comes first is open. A stream out of order, which no producer writes, costs the order
    but no memory.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    readers = [iter(stream) for stream in streams]
    # The time up to which a stream has been read, and which it is: least first.
    waiting = [(-1, number) for number in range(len(readers))]
    bound = max(_AT_A_TIME, len(readers) * size)
    held: list[Event] = []
    while waiting:
        enough = len(held) + max(_AT_A_TIME, len(held) // 2)
        # The first time, every stream says where it begins.
        while waiting and (len(held) < enough or waiting[0][0] < 0):
            seen, number = waiting[0]
            run = next(readers[number], None)
            if run is None:
                heapq.heappop(waiting)
                continue
            held += run
            heapq.heapreplace(waiting, (max(seen, run[-1].time_ns, 0), number))
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
