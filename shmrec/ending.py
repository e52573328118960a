"""How a producer's history ends: what it is inside of, and when it was last heard of.

Runs in whoever reads, over a ring as it lives or over a snapshot file. The newest batches
suffice: a batch's preamble names every span that was open when the batch was opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol, TypeVar

from shmrec.decoder import OpenSpan, decode
from shmrec.layout import SlotFlag

__all__ = ["SPANS", "SPANS_IN_ALL", "Ending", "find_ending"]

SPANS: Final = 1 << 14
"""Open spans that are known of one producer at most: who lies may claim any number."""
SPANS_IN_ALL: Final = 1 << 17
"""Of all producers together."""
_BATCHES: Final = 256
"""Batches that are decoded for them at most."""


class _Headed(Protocol):
    """A batch's header, wherever it was read from."""

    number: int
    generation: int
    start_ns: int
    flags: int


_H = TypeVar("_H", bound=_Headed)


@dataclass
class Ending:
    """`open_spans` by the time they began; `newest_ns` of the last event, 0 if there is none.

    `partial`: no batch that was decoded names every open span, or there are more than are
    known of one producer, so that some may be missing.
    """

    open_spans: list[OpenSpan] = field(default_factory=list)
    newest_ns: int = 0
    partial: bool = False
    damage: list[str] = field(default_factory=list)


def find_ending(
    batches: Sequence[_H], payload: Callable[[_H], bytes], limit: int = SPANS
) -> Ending:
    """Decode as few of a producer's batches, given oldest first, as tell how it ends.

    Of more open spans than `limit` the oldest are left out, which damage says. `payload`
    fetches a batch's committed bytes, and may bring its header's flags up to date.
    """
    newest: list[tuple[_H, bytes]] = []
    for head in reversed(batches):
        data = payload(head)
        if not data:
            # Opened, but its preamble was not published: the batch before it still tells.
            continue
        newest.append((head, data))
        if not head.flags & SlotFlag.PARTIAL_PREAMBLE or len(newest) == _BATCHES:
            break
    ending = Ending(partial=bool(newest) and bool(newest[-1][0].flags & SlotFlag.PARTIAL_PREAMBLE))
    spans: dict[int, OpenSpan] = {}
    dropped = 0
    for head, data in reversed(newest):
        decoded = decode(
            data,
            start_ns=head.start_ns,
            generation=head.generation,
            flags=head.flags,
            open_spans=spans,
        )
        ending.newest_ns = head.start_ns
        for event in decoded:
            ending.newest_ns = event.time_ns
        if decoded.damage:
            ending.damage.append(f"batch {head.number}: {decoded.damage}")
        dropped += max(0, len(spans) - limit)
        for span in list(islice(spans, max(0, len(spans) - limit))):
            del spans[span]
    if dropped:
        ending.partial = True
        ending.damage.append(f"{dropped} open spans more than can be known were left out")
    ending.open_spans = sorted(spans.values(), key=lambda span: (span.start_ns, span.span))
    return ending
