"""How many processes the kernel killed for want of memory, around the end of one of ours.

Runs in the collector. Each cgroup that a live producer is in is read once a tick, and again when
one of its producers has died: the difference is evidence, of a death that was a kill of this
kind, or was none.

The kernel counts before it kills, and a process with much memory takes its time to die. So the
reading before a death is one of some ticks ago, when the victim cannot have been counted yet.

Invariant: what was found out about a producer that ended stays as it was.
"""

from __future__ import annotations

import time
import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from shmrec.cgroup import Cgroups, Group, Limit, Machine

__all__ = ["Kills", "Memory", "Sigkilled"]

_KEPT: Final = 6
_BACK_NS: Final = 2_000_000_000
_LIMIT_TICKS: Final = 5


class _Reading(NamedTuple):
    """A count at a time, CLOCK_MONOTONIC."""

    ns: int
    kills: int


class Tally:
    """What one source has counted, tick by tick."""

    def __init__(self, source: Group | Machine) -> None:
        self.source: Final = source
        self.limit = Limit(0, "")
        self.risen_ns = 0
        """When a count was first seen to be higher than the one before; 0 if none was."""
        self._kept: deque[_Reading] = deque(maxlen=_KEPT)
        self._last = 0
        self.tick()
        self.look_at_limit()

    def tick(self) -> None:
        """Keep the count as it is now."""
        reading = self.read()
        if reading is not None:
            self._kept.append(reading)

    def look_at_limit(self) -> None:
        """Learn the limit as it is now."""
        if isinstance(self.source, Group):
            self.limit = self.source.limit()

    def read(self) -> _Reading | None:
        """The count as it is now; None if it cannot be read."""
        count = self.source.kills()
        if count is None:
            return None
        now = time.monotonic_ns()
        if count < self._last:
            # Another cgroup of the same name.
            self._kept.clear()
        elif count > self._last and self._kept:
            self.risen_ns = now
        self._last = count
        return _Reading(now, count)

    def before(self, now: int) -> _Reading | None:
        """The newest kept reading that is old enough, or else the oldest."""
        old = [each for each in self._kept if each.ns <= now - _BACK_NS]
        return old[-1] if old else next(iter(self._kept), None)


class Kills:
    """The counts of all cgroups that live producers are in, and of the machine."""

    def __init__(self, proc: str = "/proc") -> None:
        self.cgroups: Final = Cgroups(proc)
        self.machine: Final = Tally(self.cgroups.machine)
        # Those that a live producer holds: as many as there are cgroups, not producers.
        self._tallies: weakref.WeakValueDictionary[Group, Tally] = weakref.WeakValueDictionary()
        self._ticks = 0

    def tick(self) -> None:
        """The readings of a tick."""
        self._ticks += 1
        for tally in [self.machine, *self._tallies.values()]:
            tally.tick()
            if self._ticks % _LIMIT_TICKS == 0:
                tally.look_at_limit()

    def tally(self, pid: int) -> Tally:
        """That of the process's cgroup, or of the machine where there is none to be seen."""
        group = self.cgroups.of(pid)
        if group is None:
            return self.machine
        known = self._tallies.get(group)
        if known is None:
            known = self._tallies[group] = Tally(group)
        return known


class Memory:
    """What the kernel's counts say of one producer.

    Without a `pid` the process had gone before it was seen: its cgroup cannot be known any more.
    """

    def __init__(self, kills: Kills, pid: int | None) -> None:
        self._machine: Final = kills.machine
        self._kills: Final = kills
        self._pid: Final = pid
        self._tally = kills.machine if pid is None else kills.tally(pid)
        self._first = None if pid is None else self._tally.read()
        self._found: dict[str, Any] | None = None
        self._window = 0, 0

    def refresh(self) -> None:
        """Look which cgroup it is in now."""
        if self._pid is not None and self._found is None:
            tally = self._kills.tally(self._pid)
            if tally is not self._tally:
                self._tally, self._first = tally, tally.read()

    def end(self) -> None:
        """Its process has ended: find out now what has been counted."""
        if self._found is None:
            self._found = self._find(ended=True)
            self._tally = self._machine  # Let go of one that perhaps nobody else is in.

    def told(self, sigkilled: Sigkilled) -> dict[str, Any]:
        """As `manifest.Producer.memory` has it; `sigkilled` are all that died of SIGKILL."""
        found = self._find(ended=False) if self._found is None else self._found
        if not found:
            return {}
        began, ended = self._window
        # Of one that was found dead a little later, the kill may have been counted already.
        others = sigkilled.between(found["source"], began, ended + _BACK_NS)
        return {**found, "others": others - (self in sigkilled)}

    @property
    def source(self) -> str:
        """The file that counted; empty before the end."""
        return str(self._found["source"]) if self._found else ""

    @property
    def ended_ns(self) -> int:
        """When it was found out what was counted; 0 before the end."""
        return self._window[1] if self._found else 0

    def _find(self, *, ended: bool) -> dict[str, Any]:
        # The second: its cgroup may have gone with it.
        for tally in (self._tally, self._machine):
            now = tally.read()
            if now is None:
                continue
            first = self._first if tally is self._tally else None
            before = tally.before(now.ns) if ended or first is None else None
            start = max((each for each in (first, before) if each is not None), default=None)
            if start is None:
                continue
            self._window = start.ns, now.ns
            found: dict[str, Any] = {
                "limit": self._tally.limit.limit,
                "limit_source": _shown(self._tally.limit.source),
                "kills": max(0, now.kills - start.kills),
                "source": _shown(tally.source.source),
                "whole_machine": tally is self._machine,
                "window_ns": now.ns - start.ns,
                "risen_ns": tally.risen_ns,
            }
            if first is not None:
                found["seen_kills"] = max(0, now.kills - first.kills)
            if isinstance(tally.source, Group):
                found["current"], found["peak"] = tally.source.current(), tally.source.peak()
            return found
        return {}


class Sigkilled:
    """Those that died of SIGKILL, to be counted by the file that counted them and their end.

    Many may die at once, and of each it is asked how many others did.
    """

    def __init__(self, died: Iterable[Memory]) -> None:
        self._died = set(died)
        self._ends: dict[str, list[int]] = {}
        for each in self._died:
            self._ends.setdefault(each.source, []).append(each.ended_ns)
        for ends in self._ends.values():
            ends.sort()

    def __contains__(self, memory: Memory) -> bool:
        return memory in self._died

    def between(self, source: str, first: int, last: int) -> int:
        """How many of that source ended from `first` to `last`."""
        ends = self._ends.get(source, [])
        return bisect_right(ends, last) - bisect_left(ends, first)


def _shown(path: str) -> str:
    """The path as a text: a cgroup's name may be any bytes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
