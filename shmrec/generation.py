"""The flush protocol: when is every producer known to be past a generation?

Runs in the collector. A state machine without I/O: the clock is passed in, looks at the
producers are passed in, and what to do next is returned. The driver is `capture`.

One flush::

    advance generation -> fence -> look at every producer until each is one of

      closed   it says so: ``closed_generation`` reached the old generation, or its newest
               batch is of a newer one
      idle     ``writing`` even after the fence, or no longer what it was at the first look:
               its next event must see the new generation
      ended    it detached, or its process is gone
      stalled  none of these before the deadline

A snapshot is two flushes: the first closes the generation that is wanted, the second proves
it closed even where there is no fence, and gives a straggler a second look. The protocol is
that of the flight recorder in Go's ``golang.org/x/exp/trace``, whose ``WriteTo`` advances
twice; the evidence is shmrec's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["Evidence", "Flush", "Flushes", "Sight"]


class Evidence(StrEnum):
    """How a producer is known to be past the old generation, or that it is not."""

    CLOSED = "closed"
    IDLE = "idle"
    ENDED = "ended"
    STALLED = "stalled"
    COLD = "cold"
    """Nothing was flushed: the memory was read as it was found."""


@dataclass(frozen=True)
class Sight:
    """One look at a producer: its progress words, and whether it is still there."""

    writing: int
    closed_generation: int
    newest_generation: int
    ended: bool


class Flush:
    """One flush of the generation `old`; `evidence` fills as producers are seen."""

    def __init__(self, old: int, producers: Iterable[int], *, now_ns: int, deadline_ns: int):
        self.old: Final = old
        self.deadline: Final = now_ns + deadline_ns
        self.evidence: dict[int, Evidence] = {}
        self._waiting = dict.fromkeys(producers, -1)

    @property
    def waiting(self) -> list[int]:
        """The producers that have shown nothing yet."""
        return list(self._waiting)

    @property
    def done(self) -> bool:
        """Whether every producer has its evidence."""
        return not self._waiting

    def see(self, producer: int, sight: Sight) -> None:
        """Take a look, made after the fence, into account."""
        first = self._waiting.get(producer)
        if first is None:
            return
        if sight.closed_generation >= self.old or sight.newest_generation > self.old:
            evidence = Evidence.CLOSED
        elif sight.ended:
            evidence = Evidence.ENDED
        elif sight.writing % 2 == 0 or first not in (-1, sight.writing):
            evidence = Evidence.IDLE
        else:
            self._waiting[producer] = sight.writing
            return
        self._settle(producer, evidence)

    def expire(self, now_ns: int) -> bool:
        """Past the deadline, call the remaining producers stalled; whether it was."""
        if now_ns < self.deadline:  # step: deadline
            return False
        for producer in self.waiting:
            self._settle(producer, Evidence.STALLED)
        return True

    def _settle(self, producer: int, evidence: Evidence) -> None:
        del self._waiting[producer]
        self.evidence[producer] = evidence


class Flushes:
    """The flushes of one snapshot, in order.

    For each: `begin` with the generation before advancing, feed `current` until done, `finish`.
    `evidence` is the wanted (first) generation's; a second look replaces "stalled". Without
    a fence the first look proves nothing, and the second one's evidence stands.
    """

    def __init__(self, count: int, *, deadline_ns: int) -> None:
        if count not in (1, 2):
            raise ValueError(f"flushes must be 1 or 2, not {count}")
        self.count: Final = count
        self.wanted = 0
        self.evidence: dict[int, Evidence] = {}
        self.current: Flush | None = None
        self._deadline = deadline_ns
        self._begun = 0

    @property
    def done(self) -> bool:
        """Whether the last flush has been finished."""
        return self._begun == self.count and self.current is None

    def begin(self, old: int, producers: Iterable[int], *, now_ns: int) -> Flush:
        """Start the next flush; call after the generation went from `old` to `old` + 1."""
        if self.done or self.current is not None:
            raise RuntimeError("a flush is under way, or all have been made")
        if not self._begun:
            self.wanted = old
        self._begun += 1
        # All flushes share the deadline: nobody waits longer because there are two.
        left = self._deadline if self._begun == 1 else self._left
        self.current = Flush(old, producers, now_ns=now_ns, deadline_ns=left)
        return self.current

    def finish(self, now_ns: int, *, fenced: bool = True) -> None:
        """Take the current flush's evidence over; were producers and collector `fenced`?"""
        flush = self.current
        if flush is None or not flush.done:
            raise RuntimeError("no flush that has seen every producer")
        self._left = max(0, flush.deadline - now_ns)
        for producer, evidence in flush.evidence.items():
            known = self.evidence.get(producer)
            if known is None or known is Evidence.STALLED or not fenced:
                self.evidence[producer] = evidence
        self.current = None
