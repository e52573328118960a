"""What a snapshot keeps: generations, chosen by size and age, and which batch is of which.

Runs in the collector, and in whoever reads memory cold; nothing here reads it.

Invariant: what one producer says of its times and generations, which may be a lie, never has less
kept of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shmrec.ring import Head

__all__ = ["oldest_kept", "reached_by"]


def oldest_kept(
    heads: Iterable[Sequence[Head]],
    wanted: int,
    ends: Mapping[int, int],
    *,
    size: int,
    period_ns: int,
    now_ns: int,
) -> int:
    """The oldest generation that a snapshot keeps.

    From the newest complete generation `wanted` backwards, until `size` bytes per producer
    or the age `period_ns` is exceeded; the generation that crosses a limit stays, one that
    lies beyond it does not. `ends` says when generations ended, as far as is known. `heads`,
    those of each ring, is gone through once.
    """
    sizes: dict[int, int] = {}
    starts: dict[int, int] = {}
    latest: dict[int, int] = {}
    rings = 0
    for ring in heads:
        rings += bool(ring)
        begun: dict[int, int] = {}
        for head in ring:
            generation = head.generation
            if generation <= wanted:
                sizes[generation] = sizes.get(generation, 0) + head.size
                begun[generation] = min(head.start_ns, begun.get(generation, now_ns))
                latest[generation] = max(head.start_ns, latest.get(generation, 0))
        # The latest: one ring that lies of its times must not make the others' history old.
        for generation, start in begun.items():
            starts[generation] = max(start, starts.get(generation, 0))
    oldest, total, start = wanted, 0, now_ns
    limit = size * rings
    for number, generation in enumerate(sorted(sizes, reverse=True)):
        # Whoever lies can only have more kept: it had not ended when a batch of it began.
        ended = max(ends.get(generation, start), latest[generation])
        if number and (total > limit or now_ns - ended > period_ns):
            break
        oldest = generation
        total += sizes[generation]
        start = min(start, starts[generation])
    return oldest


def reached_by(heads: Sequence[Head], newest: int) -> dict[int, int]:
    """The generation that each batch belongs to, by its number.

    That is its own, unless somebody has scribbled on the word that it comes from: one beyond the
    `newest` has not been yet, and none is older than one before it.
    """
    reached, found = 0, {}
    for head in heads:
        if reached < head.generation <= newest:
            reached = head.generation
        found[head.number] = reached
    return found
