"""What viewers draw of a snapshot: processes, tracks, slices that nest, moments on them.

Runs in whoever shows a snapshot. Plain data; `tracks` says what it means and makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from shmrec.findings import Finding
from shmrec.lineage import Key
from shmrec.manifest import Producer
from shmrec.stack_text import ThreadStack

__all__ = ["LATEST", "Item", "Process", "Slice", "Track", "moment"]

LATEST: Final = (1 << 63) - 1
"""Times are from 0 to this."""
PIDS: Final = 1 << 22
"""The kernel's process and thread ids are below; others stand for what has none of its own."""
MORE_PIDS: Final = 1 << 30
LANES_FROM: Final = 1 << 24
"""Track numbers of lanes, which no thread has."""


def moment(time_ns: int) -> int:
    """The time in the range that there is."""
    return min(max(time_ns, 0), LATEST)


@dataclass(slots=True, eq=False)
class Track:
    """A row of slices that nest. `number` is a thread's id, or one that no thread has.

    `family` is "" for a thread's own track. `thread` is the thread that the spans are of.
    """

    process: Process
    number: int
    name: str
    thread: int
    thread_name: str
    family: str = ""
    lane: int = 0
    open: list[Slice] = field(default_factory=list, repr=False)


@dataclass(slots=True, eq=False)
class Process:
    """A producer. `pid` is a process id that no other one here has, mostly the producer's own."""

    place: int
    pid: int
    producer: Producer
    finding: Finding
    name: str
    begin_ns: int = 0
    end_ns: int = 0
    """When its history ends: its end, or when the snapshot was taken."""
    threads: list[Track] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)

    @property
    def died(self) -> bool:
        return self.producer.state == "dead"

    @property
    def state(self) -> str:
        """Its state in a few words."""
        verdict = self.finding.verdict
        if self.died and verdict is not None:
            return f"dead: {verdict.text}"
        return self.producer.state


@dataclass(slots=True, eq=False)
class Slice:
    """A span on its track. What is below `parent` is only whole once it has ended."""

    key: Key
    name: str
    span: int
    track: Track
    begin_ns: int
    args: dict[str, Any]
    depth: int
    in_flight: bool
    above: Slice | None
    """The slice that it is in, on its track."""
    parent: Key | None
    """The span that caused it: the one that it names, else `above`'s."""
    link: int = 0
    """The number of the arrow that ends here, if it names a parent in another process."""
    links: tuple[int, ...] = ()
    """Those of the arrows that may begin here."""
    stack: ThreadStack | None = None
    end_ns: int = 0
    end_args: dict[str, Any] = field(default_factory=dict)
    lost: bool = False


class Item(NamedTuple):
    """One thing to show; which fields are filled depends on `kind`, see the module."""

    time_ns: int
    kind: str
    name: str
    process: Process | None = None
    track: Track | None = None
    slice: Slice | None = None
    args: dict[str, Any] = {}  # noqa: RUF012
    value: int | float = 0
    stack: ThreadStack | None = None
