"""When each of the last generations began: the collector's ledger in the control block.

Written by the collector each time that it advances the generation, read by whoever chooses
what a snapshot keeps. A generation's end is the beginning of the one after it, which nothing
else in the segment tells when nobody recorded anything for a while.
"""

from __future__ import annotations

import time
from typing import Final

from shmrec import fence, process
from shmrec.layout import CONTROL, LEDGER, WORD
from shmrec.segment import PLAUSIBLE, Segment

__all__ = ["advance", "ends", "latest_ns"]


_JUMP: Final = 1 << 40
"""Nobody has advanced the generation by so much: somebody has scribbled."""


def advance(segment: Segment) -> int:
    """Begin the next generation; the number of the one that was. Only the collector may."""
    old, own = segment.word("generation") & PLAUSIBLE, segment.own
    if own.generation and not own.generation <= old < own.generation + _JUMP:
        # Not what we wrote. Forwards producers may have followed, and so do we.
        old = own.generation
    now = time.monotonic_ns()
    own.generation = old + 1
    own.began[old + 1] = now
    if len(own.began) > LEDGER:
        del own.began[next(iter(own.began))]
    base = CONTROL["ledger"] // WORD + (old + 1) % LEDGER * 2
    # The time first: a reader that finds the number finds its time too.
    segment.words[base] = 0  # step: ledger
    fence.release()
    segment.words[base + 1] = now  # step: ledger
    fence.release()
    segment.words[base] = old + 1  # step: ledger
    fence.release()
    segment.set_word("generation", old + 1)  # step: advance
    return old


def ends(segment: Segment) -> dict[int, int]:
    """When recent generations ended, CLOCK_MONOTONIC nanoseconds by generation.

    What this process wrote itself it takes from its own memory. Of the rest only what is between
    the segment's creation and its last sign of life can be true.
    """
    base = CONTROL["ledger"] // WORD
    found = segment.words[base : base + 2 * LEDGER].tolist()
    began = {found[i]: found[i + 1] for i in range(0, 2 * LEDGER, 2) if found[i] > 0}
    first, last = segment.word("created_mono_ns"), latest_ns(segment)
    began = {number: ns for number, ns in began.items() if first <= ns <= last}
    return {number - 1: ns for number, ns in (began | segment.own.began).items()}


def latest_ns(segment: Segment) -> int:
    """CLOCK_MONOTONIC of now, or, of an earlier boot, what it can have come to at most."""
    if segment.field("boot_id") == process.boot_id():
        return time.monotonic_ns()
    since = max(0, time.time_ns() - segment.word("created_wall_ns"))
    return segment.word("created_mono_ns") + since
