"""A recording while it is being recorded, seen without disturbing anybody.

Runs in tools. Reads the segment and ``/proc``; asks nobody, flushes nothing, writes nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from shmrec import process
from shmrec.decoder import OpenSpan
from shmrec.ending import SPANS, SPANS_IN_ALL, Ending, find_ending
from shmrec.entry import Entry
from shmrec.errors import NoSuchRecordingError, ShmrecError, UnfinishedSegmentError
from shmrec.layout import EntryState, SegmentState
from shmrec.naming import names
from shmrec.ring import Head, RingReader, readers
from shmrec.segment import Segment, open_segment

__all__ = [
    "LappedError",
    "LiveProducer",
    "Recording",
    "States",
    "ending_of",
    "look",
    "overwritten",
    "producers",
    "recordings",
]

OPEN: Final = "open"
STALE: Final = "stale"
CLOSED: Final = "closed"
FOREIGN: Final = "foreign"
UNFINISHED: Final = "unfinished"
UNREADABLE: Final = "unreadable"

RUNNING: Final = "running"
STOPPED: Final = "stopped"
DEAD: Final = "dead"
DETACHED: Final = "detached"
JOINING: Final = "joining"
UNKNOWN: Final = "unknown"
LIVING: Final = (RUNNING, STOPPED, JOINING)

NEWEST: Final = 8
"""Batches of a ring that are read to learn how its producer is: of nearly all, one tells."""

_ATTEMPTS: Final = 8


@dataclass
class Recording:
    """A recording as a whole.

    `state`: open (a collector or a producer lives), stale (neither does), closed (it was ended
    in order, but its memory is still there), foreign (its processes are in another pid
    namespace, so nothing can be told of them), unfinished (its creator died while it was making
    it), unreadable (`problem` says why).
    """

    name: str
    state: str
    collector: int | None = None
    generation: int = 0
    heartbeat_age_ns: int | None = None
    snapshots: int = 0
    size: int = 0
    live: int = 0
    dead: int = 0
    detached: int = 0
    unknown: int = 0
    refused: int = 0
    suppressed: dict[str, int] = field(default_factory=dict)
    """Snapshots not taken because of limits, by trigger; none of those that are 0."""
    problem: str = ""

    @property
    def used(self) -> bool:
        """Whether any process ever joined it."""
        return bool(self.live or self.dead or self.detached or self.unknown)


@dataclass
class LiveProducer:
    """A producer at this moment. `state` is one of this module's words."""

    entry: Entry
    state: str
    overwritten: int = 0
    recorded: int = 0
    newest_ns: int = 0
    open_spans: list[OpenSpan] = field(default_factory=list)
    partial: bool = False
    """Whether more spans may be open than could be named."""
    damage: list[str] = field(default_factory=list)

    @property
    def reference_ns(self) -> int:
        """The moment to which its open spans have lasted: its end, or now."""
        return self.entry.ended_ns or self.entry.detached_ns or time.monotonic_ns()


def recordings() -> list[Recording]:
    """All recordings in shared memory, readable or not, by name."""
    found = []
    for name in names():
        try:
            with open_segment(name, writable=False) as segment:
                found.append(look(segment))
        except NoSuchRecordingError:
            continue
        except UnfinishedSegmentError as error:
            found.append(Recording(name, UNFINISHED, problem=str(error)))
        except ShmrecError as error:
            found.append(Recording(name, UNREADABLE, problem=str(error)))
    return found


def look(segment: Segment) -> Recording:
    """The recording as a whole."""
    collector = segment.collector()
    recording = Recording(
        segment.name,
        STALE,
        collector=collector,
        generation=segment.word("generation"),
        snapshots=segment.word("snapshots"),
        size=segment.geometry.segment_size,
        refused=segment.refused(),
        suppressed={kind: count for kind, count in segment.suppressed().items() if count},
    )
    heartbeat = segment.word("heartbeat_ns")
    if heartbeat and segment.field("boot_id") == process.boot_id():
        recording.heartbeat_age_ns = max(0, time.monotonic_ns() - heartbeat)
    states = States(segment)
    for reader in _claimed(segment):
        state = states.of(reader.entry())
        recording.live += state in LIVING
        recording.dead += state == DEAD
        recording.detached += state == DETACHED
        recording.unknown += state == UNKNOWN
    if states.foreign:
        recording.state = FOREIGN
    elif collector is None and segment.state == SegmentState.CLOSED:
        recording.state = CLOSED
    elif collector is not None or recording.live:
        recording.state = OPEN
    return recording


def producers(segment: Segment) -> list[LiveProducer]:
    """Every producer that joined and whose ring nobody has taken over."""
    states = States(segment)
    found: list[LiveProducer] = []
    spans = 0
    for reader in _claimed(segment):
        producer = _producer(states, reader, min(SPANS, SPANS_IN_ALL - spans))
        if producer is not None:
            found.append(producer)
            spans += len(producer.open_spans)
    return found


def _claimed(segment: Segment) -> list[RingReader]:
    return [reader for reader in readers(segment) if reader.incarnation()]


class States:
    """Says how producers of a segment are.

    `foreign`: it was made in this boot of the machine, but where pids mean something else.
    """

    def __init__(self, segment: Segment) -> None:
        self._here = segment.same_boot()
        self.foreign = not self._here and segment.field("boot_id") == process.boot_id()

    def of(self, entry: Entry, seen: process.Stat | None = None) -> str:
        """One of this module's words; `seen` is what was just read of the process, if it was."""
        if entry.state == EntryState.DETACHED:
            return DETACHED
        if self.foreign:
            return UNKNOWN
        if seen is None and self._here:
            seen = process.stat(entry.pid)
        if seen is None or not self._here or seen.state in "ZX":
            return DEAD
        if entry.start_ticks and seen.start_ticks != entry.start_ticks:
            return DEAD
        if entry.state == EntryState.CLAIMING:
            return JOINING
        return STOPPED if seen.state in "Tt" else RUNNING


class LappedError(Exception):
    """The producer overwrote what was being read."""


def ending_of(reader: RingReader, notes: list[str]) -> tuple[Ending, list[Head]]:
    """How its history ends, and the headers that it was read from, the oldest ones not decoded.

    Reads at most `NEWEST` batches, and adds what is wrong with them to `notes`. Raises
    `LappedError`.
    """

    def payload(head: Head) -> bytes:
        copy = reader.copy(head)
        if copy is None:
            raise LappedError
        return copy.payload

    oldest, newest = reader.announced()
    if not newest:
        return Ending(), []
    scan = reader.following(max(oldest, newest - NEWEST + 1), NEWEST)
    notes += scan.damage
    ending = find_ending(scan.heads, payload)
    notes += ending.damage
    return ending, scan.heads


def overwritten(reader: RingReader) -> int:
    """Events of its producer that are in the ring no more."""
    for _ in range(_ATTEMPTS):
        oldest, newest = reader.announced()
        if not newest:
            return 0
        # The oldest slot is the one that is being reset: then the next one tells.
        heads = reader.following(oldest, 2).heads
        if heads:
            return heads[0].first
    return 0


def _producer(states: States, reader: RingReader, spans: int) -> LiveProducer | None:
    def payload(head: Head) -> bytes:
        copy = reader.copy(head)
        if copy is None:
            raise LappedError
        return copy.payload

    for _ in range(_ATTEMPTS):
        entry = reader.entry()
        scan = reader.scan()
        damage = list(scan.damage)
        ending = Ending()
        try:
            ending = find_ending(scan.heads, payload, spans)
        except LappedError:
            damage.append("it records faster than it can be read")
            continue
        finally:
            taken_over = reader.incarnation() != entry.incarnation
        if not taken_over:
            break
    if taken_over:
        return None
    heads = scan.heads
    return LiveProducer(
        entry,
        states.of(entry),
        overwritten=heads[0].first if heads else 0,
        recorded=reader.recorded(heads),
        newest_ns=ending.newest_ns,
        open_spans=ending.open_spans,
        partial=ending.partial,
        damage=damage + ending.damage,
    )
