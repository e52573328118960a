"""What a snapshot says about itself and about each producer: plain data, no behaviour.

Filled by the collector (`capture`), carried by the file (`snapshot_file`), read by everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shmrec._version import __version__
from shmrec.decoder import OpenSpan

__all__ = ["Cause", "Header", "Producer"]


@dataclass(frozen=True)
class Cause:
    """Why a producer ended, as far as is known, and how it is known.

    `text` is never a guess: "unknown" where there is no evidence. `signal` or `exit_code` is
    set when the wait status was learnt.
    """

    text: str
    source: str
    signal: int | None = None
    exit_code: int | None = None


@dataclass
class Header:
    """What is true of the whole snapshot. Times in nanoseconds; `*_wall_ns` since the epoch."""

    recording: str = ""
    reason: str = ""
    trigger: str = ""
    version: str = __version__
    run_id: str = ""
    host: str = ""
    taken_mono_ns: int = 0
    taken_wall_ns: int = 0
    started_wall_ns: int = 0
    generation: int = 0
    """The newest complete generation."""
    generations: list[int] = field(default_factory=list)
    """The generations kept, oldest first."""
    flushes: int = 0
    fenced: bool = False
    """Whether membarrier(2) proved what the flushes saw."""
    keep_size: int = 0
    keep_period_ns: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Who asked: pid and reason of each request that this snapshot answers."""
    notes: list[str] = field(default_factory=list)
    """What could not be read while it was taken."""


@dataclass
class Producer:
    """One producer in a snapshot.

    `state` is running, stalled, detached, exited (with 0, without detaching) or dead;
    `evidence` how the flush knew it was past the old generation: closed, idle, ended, stalled,
    or cold where nothing was flushed.
    `losses` counts by cause, ``overwritten`` among them; `trimmed` are events still in the
    ring that the limits of the snapshot left out.
    """

    index: int = 0
    incarnation: int = 0
    pid: int = 0
    start_ticks: int = 0
    identity: str = ""
    label: str = ""
    engine: str = ""
    state: str = ""
    evidence: str = ""
    fenced: bool = False
    attached_ns: int = 0
    detached_ns: int = 0
    ended_ns: int = 0
    recorded: int = 0
    trimmed: int = 0
    losses: dict[str, int] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    cause: Cause | None = None
    reported: bool = False
    """Whether its end was dealt with before this snapshot: told by an earlier one, or in order."""
    # What follows is worked out by the reader.
    events: int = 0
    oldest_ns: int = 0
    newest_ns: int = 0
    open_spans: list[OpenSpan] = field(default_factory=list)
