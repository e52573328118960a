"""Word to the collector that something has come up: sent, and not waited for.

Runs in producers, from any thread, from logging handlers and from garbage collection. The
collector has the limits (`layout.TRIGGERS`), and counts what they forbid; what comes faster than
any limit leaves room for is not sent at all, so that a storm of errors costs nobody much. It is
counted in the producer's entry, from where the collector takes it to what else was suppressed.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Final

from shmrec import requests
from shmrec.errors import ShmrecError
from shmrec.layout import ENTRY, TELLABLE, TRIGGERS, Verb
from shmrec.segment import PLAUSIBLE, Segment

__all__ = ["Words", "trigger_argument"]

_EVERY_NS: Final = 100_000_000
_LOCK_SECONDS: Final = 0.05


def trigger_argument(kind: str) -> tuple[int, int]:
    """What `Verb.TRIGGER` says of a kind of trigger that has come up in this process."""
    return TRIGGERS.index(kind), os.getpid()


class Words:
    """What a recorder has sent, by kind of trigger."""

    def __init__(self) -> None:
        self._next_ns: dict[str, int] = {}

    def forget(self) -> None:
        """The next word of each kind may be sent at once: another recording or process."""
        self._next_ns.clear()

    def send(
        self, segment: Segment, wakeup: Any, kind: str, reason: str, *, ring: int = -1
    ) -> bool:
        """Send word of that kind; whether it was sent. Never raises, waits 50 ms at most.

        Not without a collector, nor within 0.1 s of the last one of that kind; what the collector
        is not told is counted in the entry of `ring`, this process's own, or -1.
        """
        try:
            now = time.monotonic_ns()
            if now < self._next_ns.get(kind, 0):
                _hold_back(segment, kind, ring)
                return False
            self._next_ns[kind] = now + _EVERY_NS
            # Without a collector it would wait for the next one, and call for a snapshot then.
            if segment.collector() is None:
                return False
            if requests.tell(
                segment,
                wakeup,
                Verb.TRIGGER,
                reason=reason,
                argument=trigger_argument(kind),
                timeout=_LOCK_SECONDS,
            ):
                return True
        except (ShmrecError, OSError):
            pass
        except ValueError:
            # Another thread detached meanwhile, and the mapping is gone.
            return False
        with contextlib.suppress(ValueError):
            _hold_back(segment, kind, ring)
        return False


def _hold_back(segment: Segment, kind: str, ring: int) -> None:
    if ring >= 0:
        word = ENTRY.word("held_back", segment.geometry.entry(ring)) + TELLABLE.index(kind)
        words = segment.words
        # One statement without a call: no other thread and no handler comes between.
        words[word] = (words[word] & PLAUSIBLE) + 1
