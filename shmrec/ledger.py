"""When each of the last generations began: the collector's ledger in the control block.

Written by the collector each time that it advances the generation, read by whoever chooses
what a snapshot keeps. A generation's end is the beginning of the one after it, which nothing
else in the segment tells when nobody recorded anything for a while.
"""

from __future__ import annotations

import time

from shmrec import fence
from shmrec.layout import CONTROL, LEDGER, WORD
from shmrec.segment import PLAUSIBLE, Segment

__all__ = ["advance", "ends"]


def advance(segment: Segment) -> int:
    """Begin the next generation; the number of the one that was. Only the collector may."""
    old = segment.word("generation") & PLAUSIBLE
    base = CONTROL["ledger"] // WORD + (old + 1) % LEDGER * 2
    # The time first: a reader that finds the number finds its time too.
    segment.words[base] = 0  # step: ledger
    fence.release()
    segment.words[base + 1] = time.monotonic_ns()  # step: ledger
    fence.release()
    segment.words[base] = old + 1  # step: ledger
    fence.release()
    segment.set_word("generation", old + 1)  # step: advance
    return old


def ends(segment: Segment) -> dict[int, int]:
    """When recent generations ended, CLOCK_MONOTONIC nanoseconds by generation."""
    base = CONTROL["ledger"] // WORD
    found = segment.words[base : base + 2 * LEDGER].tolist()
    return {found[i] - 1: found[i + 1] for i in range(0, 2 * LEDGER, 2) if found[i] > 0}
