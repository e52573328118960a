"""Who is there: producers coming and going, and what is known of each.

Runs in the collector, which looks through it once a turn. It watches every producer that has
attached, notices those that end without detaching, and learns how. Once a tick it has their
facts sampled, and their cgroups' counts read.

Invariants:

- A death stays in `Roster.deaths` until the collector says that a snapshot holds it
  (`Roster.bury`); until then its ring is not settled, and so not free to be claimed again.
- What is known of a producer is kept until its ring has another owner, for later snapshots hold
  the dead one too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from shmrec import process
from shmrec.deaths import UNKNOWN, Death, Watched, Watcher
from shmrec.entry import Entry
from shmrec.facts import Facts
from shmrec.kills import Kills, Memory, Sigkilled
from shmrec.layout import ENTRY, EntryState
from shmrec.manifest import Cause
from shmrec.ring import readers
from shmrec.segment import Segment

__all__ = ["Roster"]

_CAUSE_NS: Final = 250_000_000
_SAMPLED_A_TICK: Final = 256
"""Producers; of more, each has its turn less often."""
_SIGKILL: Final = 9


@dataclass
class _Known:
    """All that is known of one producer."""

    watched: Watched
    facts: Facts
    memory: Memory
    cause: Cause | None = None


class Roster:
    """The producers of one recording, as the collector knows them."""

    def __init__(self, segment: Segment) -> None:
        self.watcher: Final = Watcher()
        self.deaths: Final[list[Death]] = []
        self.last_alive = time.monotonic()
        """When one was last seen to live."""
        self.ever_attached = False
        self._segment = segment
        self._kills: Final = Kills()
        self._known: dict[int, _Known] = {}
        self._killed: Sigkilled | None = None
        """Those of the known that died of SIGKILL, until another one does."""
        self._sampled = 0
        self.readers: Final = readers(segment)
        """Of all rings, by index."""

    def look(self, now: int, *, tick: bool = False) -> None:
        """Notice who has come, left or died; at a `tick`, take samples of those who are there.

        `now` in CLOCK_MONOTONIC nanoseconds.
        """
        if tick:
            # First: who is seen to live after it is not among the killed that it counts.
            self._kills.tick()
        self._notice_producers(now)
        self._notice_deaths(now)
        if tick:
            self._sample(now)

    def pidfds(self) -> list[int]:
        """The descriptors that become readable at a death not noticed yet."""
        return [each.pidfd for each in self.living() if each.pidfd >= 0]

    def living(self) -> list[Watched]:
        """Those who are there, as far as has been noticed."""
        dying = self._dying()
        return [each for index, each in self.watcher.watched.items() if index not in dying]

    def causes(self) -> dict[tuple[int, int], Cause]:
        """Why those that ended did, by ring index and incarnation."""
        causes = {
            (index, known.watched.incarnation): known.cause
            for index, known in self._known.items()
            if known.cause is not None
        }
        for death in self.deaths:
            ended = death.watched.index, death.watched.incarnation
            causes[ended] = death.cause or UNKNOWN
        return causes

    def bury(self, deaths: Iterable[Death]) -> None:
        """These deaths are on disk: their rings may have other owners."""
        buried = list(deaths)
        gone = set(map(id, buried))
        self.deaths[:] = [death for death in self.deaths if id(death) not in gone]
        for death in buried:
            self._settle(death.watched.index, death.watched.incarnation)
            self.watcher.forget(death.watched.index)

    def details(self, entry: Entry) -> dict[str, Any]:
        """What else is known of that producer: fields of `manifest.Producer`."""
        known = self._known.get(entry.index)
        if known is None or known.watched.incarnation != entry.incarnation:
            return {}
        found: dict[str, Any] = {}
        if known.cause is None and known.facts.sample(time.monotonic_ns(), closely=True):
            found["doing"] = known.facts.doing()
        if known.watched.timeout is not None:
            found["host"] = known.watched.timeout._asdict()
        return found | {
            "facts": known.facts.rows,
            "peak_rss": known.facts.peak_rss,
            "memory": known.memory.told(self._sigkilled()),
        }

    def anybody(self) -> bool:
        """Whether a live process has a ring or is getting one."""
        for reader in self.readers:
            entry = reader.entry()
            if entry.state in (EntryState.LIVE, EntryState.CLAIMING) and process.alive(
                entry.pid, entry.start_ticks
            ):
                return True
        return False

    def close(self) -> None:
        """Stop watching everybody."""
        self.watcher.close()

    def _sigkilled(self) -> Sigkilled:
        if self._killed is None:
            self._killed = Sigkilled(
                known.memory
                for known in self._known.values()
                if known.cause is not None and known.cause.signal == _SIGKILL
            )
        return self._killed

    def _sample(self, now: int) -> None:
        dying = self._dying()
        there = [index for index in self.watcher.watched if index not in dying]
        first = self._sampled if self._sampled < len(there) else 0
        self._sampled = first + _SAMPLED_A_TICK
        for index in islice(there, first, self._sampled):
            known = self._known[index]
            if known.facts.sample(now) and known.facts.looked_closely:
                known.memory.refresh()

    def _notice_producers(self, now: int) -> None:
        words, geometry = self._segment.words, self._segment.geometry
        alive, dying = False, self._dying()
        for index, reader in enumerate(self.readers):
            at = geometry.entry(index)
            incarnation = words[ENTRY.word("incarnation", at)]
            if not incarnation:
                continue
            state = words[ENTRY.word("state", at)]
            if state == EntryState.DETACHED:
                if index in self.watcher.watched and index not in dying:
                    self._known[index].memory.end()
                    self.watcher.forget(index)
                self._settle(index, incarnation)
                # It may have come and gone between two looks.
                self.ever_attached = True
            elif state == EntryState.LIVE and words[ENTRY.word("settled", at)] != incarnation:
                watched = self.watcher.watched.get(index)
                if watched is None or watched.incarnation != incarnation:
                    self._meet(reader.entry(), now)
                self.ever_attached = alive = True
        if alive:
            self.last_alive = time.monotonic()

    def _meet(self, entry: Entry, now: int) -> None:
        watched = self.watcher.watch(
            entry.index, entry.incarnation, entry.pid, entry.start_ticks, entry.attached_ns
        )
        facts = Facts(entry.pid, entry.start_ticks)
        pid = entry.pid if facts.sample(now) else None
        self._killed = None
        self._known[entry.index] = _Known(watched, facts, Memory(self._kills, pid))

    def _dying(self) -> set[int]:
        return {death.watched.index for death in self.deaths}

    def _notice_deaths(self, now: int) -> None:
        dying = self._dying()
        for index, watched in list(self.watcher.watched.items()):
            if index in dying or not self.watcher.gone(watched):
                continue
            self._known[index].memory.end()
            entry = self.readers[index].entry()
            if entry.state == EntryState.DETACHED or entry.incarnation != watched.incarnation:
                self.watcher.forget(index)
                continue
            at = self._segment.geometry.entry(index)
            self._segment.words[ENTRY.word("ended_ns", at)] = now  # step: ended
            self.deaths.append(Death(watched, entry.label, now))
        left: list[Death] = []
        for death in self.deaths:
            if death.cause in (None, UNKNOWN):
                # Word may come late, but before the snapshot.
                found = self.watcher.cause(death.watched)
                late = now - death.noticed_ns > _CAUSE_NS
                death.cause = found or (UNKNOWN if late else death.cause)
            known = self._known.get(death.watched.index)
            if known is not None and known.watched is death.watched and known.cause != death.cause:
                known.cause = death.cause
                self._killed = None
            given_up = death.watched.timeout is not None
            if death.cause is not None and death.cause.exit_code == 0 and not given_up:
                # It left by os._exit(0): in order, but for saying so.
                left.append(death)
        self.bury(left)

    def _settle(self, index: int, incarnation: int) -> None:
        word = ENTRY.word("settled", self._segment.geometry.entry(index))
        if self._segment.words[word] != incarnation:
            self._segment.words[word] = incarnation  # step: settle
