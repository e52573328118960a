"""What a snapshot says about itself and about each producer: plain data, no behaviour.

Filled by the collector (`capture`), carried by the file (`snapshot_file`), read by everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from shmrec._version import __version__
from shmrec.decoder import OpenSpan

__all__ = ["ENDED", "FACTS", "Cause", "Header", "Producer", "Stack"]

FACTS: Final = ("time_ns", "rss", "cpu_ns", "threads", "files", "state")
"""A row of a producer's facts: CLOCK_MONOTONIC; bytes; processor time, user and system; counts,
-1 where they were not read, or could not be; the kernel's state letter."""


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


@dataclass(frozen=True)
class Stack:
    """One dump by faulthandler: what every thread of a producer was executing.

    `kind` is fatal (at a fatal signal) or asked. `text` is as faulthandler wrote it, `cut` if
    its room ended before it did. `taken_ns` is when it was asked for, or when the process's end
    was noticed. `idents` leads from the idents in the text to kernel thread ids, as events
    have them.
    """

    kind: str
    taken_ns: int
    text: str
    cut: bool = False
    note: str = ""
    idents: dict[int, int] = field(default_factory=dict)


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
    suspects: list[int] = field(default_factory=list)
    """The producers, by index, that the trigger names."""
    triggered_ns: int = 0
    """When the trigger fired, where recording went on for a while afterwards; else 0."""
    first: bool = False
    """Whether it is the first of an incident's snapshots."""
    suppressed: dict[str, int] = field(default_factory=dict)
    """Snapshots not taken so far in this recording because of limits, by trigger."""


ENDED: Final = ("dead", "exited", "detached")
"""The states of producers that are no more."""


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
    facts: list[list[Any]] = field(default_factory=list)
    """What the kernel said of the process in its last minute: rows of FACTS, oldest first."""
    peak_rss: int = 0
    """Bytes; the most it ever had resident, 0 if not known."""
    memory: dict[str, Any] = field(default_factory=dict)
    """Of its memory cgroup: `limit` in bytes (0: none), `kills` by the kernel for want of memory
    since the producer was first seen, `others` that died meanwhile of SIGKILL in the same
    cgroup, `source` where this was read; empty if it could not be. Of one that ended, `kills` and
    `others` are only of the last seconds, `window_ns`, before its end was noticed.

    Besides: `seen_kills` since it was first seen, `risen_ns` when the count was last seen to
    rise (0: never), `limit_source`, `peak` and `current` bytes of the cgroup (0: not known).
    `whole_machine` is true where no cgroup told, and the counts are of all processes there are:
    weaker evidence."""
    host: dict[str, Any] = field(default_factory=dict)
    """A host's word that it did not answer: `timeout_ms`, `told_ns`; empty without one."""
    doing: dict[str, Any] = field(default_factory=dict)
    """Of one that lives, its main thread: `wchan` and `syscall` as the kernel names them, where
    readable; `time_ns` when that was. Where it has more threads, but not very many, `running` are
    the ids of those that ran, or waited for nothing but a processor."""
    stack_flags: int = 0
    """A union of `layout.StackFlag`."""
    # What follows is worked out by the reader.
    events: int = 0
    oldest_ns: int = 0
    newest_ns: int = 0
    open_spans: list[OpenSpan] = field(default_factory=list)
    spans_missing: bool = False
    """Whether more spans may have been open than could be named."""
    stacks: list[Stack] = field(default_factory=list)
