"""Word to the collector that something has come up: sent, and not waited for.

Runs in producers, from any thread, from logging handlers and from garbage collection. The
collector has the limits (`layout.TRIGGERS`), and counts what they forbid; what comes faster than
any limit leaves room for is not sent at all, so that a storm of errors costs nobody much; nor
is it counted.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

from shmrec import requests
from shmrec.errors import ShmrecError
from shmrec.layout import TRIGGERS, Verb
from shmrec.segment import Segment

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

    def send(self, segment: Segment, wakeup: Any, kind: str, reason: str) -> bool:
        """Send word of that kind; whether it was sent. Never raises, waits 50 ms at most.

        Not without a collector, nor within 0.1 s of the last one of that kind.
        """
        now = time.monotonic_ns()
        if now < self._next_ns.get(kind, 0):
            return False
        self._next_ns[kind] = now + _EVERY_NS
        try:
            # Without a collector it would wait for the next one, and call for a snapshot then.
            return segment.collector() is not None and requests.tell(
                segment,
                wakeup,
                Verb.TRIGGER,
                reason=reason,
                argument=trigger_argument(kind),
                timeout=_LOCK_SECONDS,
            )
        except (ShmrecError, OSError, ValueError):
            # ValueError: another thread detached meanwhile, and the mapping is gone.
            return False
