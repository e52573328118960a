"""Every byte of the shared-memory segment and of the snapshot file, declared once.

Read by all processes. Tables and arithmetic only: nothing here opens, reads or writes.

The segment::

    0            requests_offset   table_offset     rings_offset        stacks_offset
    +------------+-----------------+----------------+-------------------+-------------------+
    | control    | request slots   | producer table | ring 0 | ring 1 | | stack 0 | stack 1 |
    | CONTROL    | REQUEST x 16    | ENTRY x N      | SLOT x M each     | reserved, 64 KiB  |
    +------------+-----------------+----------------+-------------------+-------------------+

    one stack area, written by faulthandler at C level:
    +-- threads -------------+-- fatal ---------------+-- asked ---------------------------+
    | ident, kernel id x 256 | at a fatal signal      | when the collector asks            |
    +------------------------+------------------------+------------------------------------+

    one slot of a ring:
    +----------------------------- 64 bytes -----------------------------+-- payload ------+
    | number | generation | start_ns | committed | first | flags | -- -- | msgpack events  |
    +--------------------------------------------------------------------+-----------------+

Invariants, kept by every module that touches the segment:

- A word is 8 bytes, aligned, in native order, read and written whole through
  ``memoryview.cast("Q")`` (or a C atomic), never through ``struct.pack_into``.
- Every word has one writing side, named in its row. Words of different sides that may be
  written at the same time are on different cache lines.
- A slot's ``number`` is 0 while the slot is being reset, else the number of the batch in
  it, counted from 1 without repetition; batch n lives in slot (n - 1) mod slots.
- ``committed`` holds the batch's committed bytes (low half) and recorded events (high
  half) in one word, so that a reader never sees one without the other.

Changing any row, or a row of the events' table, changes ``LAYOUT_ID``, which every opener
compares, and the engine that loads the extension; changing the meaning of a row without
changing the row needs a new ``LAYOUT_VERSION``. The extension's header is generated from here
by ``tools/generate_header.py``.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

from shmrec.events import KINDS

__all__ = [
    "BYTE_ORDER",
    "CONTROL",
    "ENTRY",
    "FILE_MAGIC",
    "FRAME_HEADER",
    "FRAME_MARKER",
    "LAYOUT_ID",
    "LAYOUT_VERSION",
    "LOSSES",
    "NAME_PREFIX",
    "REQUEST",
    "SEGMENT_MAGIC",
    "SLOT",
    "STACK",
    "TELLABLE",
    "TRIGGERS",
    "Geometry",
    "Table",
]

WORD: Final = 8
CACHE_LINE: Final = 64
PAGE: Final = 4096
LAYOUT_VERSION: Final = 1
SEGMENT_MAGIC: Final = int.from_bytes(b"SHMRECS1", "little")
BYTE_ORDER: Final = 0x0102030405060708
NAME_PREFIX: Final = "shmrec."
NAME_BYTES: Final = 64
LABEL_BYTES: Final = 96
LEDGER: Final = 128
"""Generations whose beginnings the control block remembers."""


class Row(NamedTuple):
    """One field: its byte offset and size in the region, who writes it, what it means."""

    name: str
    offset: int
    size: int
    writer: str
    meaning: str


class Table:
    """A region's fields. ``table["name"]`` is a byte offset, ``word`` a word index."""

    def __init__(self, name: str, size: int, rows: tuple[Row, ...]) -> None:
        self.name: Final = name
        self.size: Final = size
        self.rows: Final = rows
        self._rows: Final = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> int:
        return self._rows[name].offset

    def word(self, name: str, base: int = 0) -> int:
        """The index of a word in ``memoryview.cast("Q")``, its region starting at `base`."""
        return (base + self._rows[name].offset) // WORD

    def bytes_at(self, name: str, base: int = 0) -> slice:
        """The slice of a field's bytes, its region starting at `base` bytes."""
        row = self._rows[name]
        return slice(base + row.offset, base + row.offset + row.size)


CONTROL: Final = Table(
    "control",
    PAGE,
    (
        Row("magic", 0, 8, "creator", "written last: the segment is whole"),
        Row("layout_version", 8, 8, "creator", "LAYOUT_VERSION"),
        Row("layout_id", 16, 8, "creator", "LAYOUT_ID, a digest of these tables"),
        Row("byte_order", 24, 8, "creator", "BYTE_ORDER as this machine stores it"),
        Row("segment_size", 32, 8, "creator", "bytes"),
        Row("producers", 40, 8, "creator", "entries in the producer table"),
        Row("slot_size", 48, 8, "creator", "bytes of a slot, its header included"),
        Row("slots", 56, 8, "creator", "slots of a ring"),
        Row("requests_offset", 64, 8, "creator", "bytes from the segment's start"),
        Row("table_offset", 72, 8, "creator", "bytes from the segment's start"),
        Row("rings_offset", 80, 8, "creator", "bytes from the segment's start"),
        Row("stacks_offset", 88, 8, "creator", "bytes from the segment's start"),
        Row("stack_size", 96, 8, "creator", "bytes of one producer's stack area"),
        Row("uid", 104, 8, "creator", "effective user of the creator"),
        Row("pid_namespace", 112, 8, "creator", "inode of the creator's pid namespace"),
        Row("created_mono_ns", 120, 8, "creator", "CLOCK_MONOTONIC"),
        Row("created_wall_ns", 128, 8, "creator", "CLOCK_REALTIME"),
        Row("keep_size", 136, 8, "creator", "bytes per producer that a snapshot keeps"),
        Row("keep_period_ns", 144, 8, "creator", "age that a snapshot keeps"),
        Row("boot_id", 152, 16, "creator", "the kernel's random boot id"),
        Row("run_id", 168, 16, "creator", "random, one per segment"),
        Row("name", 192, NAME_BYTES, "creator", "the recording's name, NUL padded UTF-8"),
        Row("generation", 512, 8, "collector", "advanced once a tick and at every flush"),
        Row("state", 576, 8, "collector", "a SegmentState"),
        Row("collector_pid", 584, 8, "collector", "0 before the first"),
        Row("collector_start", 592, 8, "collector", "its start time in clock ticks"),
        Row("heartbeat_ns", 600, 8, "collector", "CLOCK_MONOTONIC of its last tick"),
        Row("snapshots", 608, 8, "collector", "snapshots written"),
        Row("suppressed", 640, 16 * 8, "collector", "not taken, one word per row of TRIGGERS"),
        Row("refused_full", 1032, 8, "attachers", "no ring to be had, under the lock"),
        Row("refused_space", 1040, 8, "attachers", "no memory for a ring, under the lock"),
        Row("refused_busy", 1048, 8, "attachers", "no ring, for the lock was held"),
        Row("lock", 1056, 8, "attachers", "a record lock here: attaching, requests, taking over"),
        Row("busy_lock", 1064, 8, "attachers", "a record lock here: counting those"),
        Row("ledger", 2048, LEDGER * 16, "collector", "pairs: generation, when it began"),
    ),
)


class SegmentState:
    """Values of the control block's ``state``."""

    STARTING: Final = 0
    OPEN: Final = 1
    CLOSED: Final = 2


TRIGGERS: Final = (
    "death",
    "request",
    "timeout",
    "exception",
    "log",
    "slow_span",
    "stall",
    "counter",
    "signal",
)
"""What may cause a snapshot, in the order of the control block's `suppressed` words.

death: a producer's abnormal end; request: somebody asked; timeout: a host's word that a
producer does not answer; exception, log: a producer's word; slow_span, stall, counter: seen by
the collector in the rings; signal: sent to the collector.
"""

TELLABLE: Final = ("exception", "log")
"""The kinds of triggers that a producer gives word of, in the order of `held_back`.

Its counts outlive the producer: whoever has the ring next goes on from there.
"""

REQUESTS: Final = 16
REASON_BYTES: Final = 512
ANSWER_BYTES: Final = 4096

REQUEST: Final = Table(
    "request",
    2 * PAGE,
    (
        Row("asked", 0, 8, "requester", "ticket; published last"),
        Row("released", 8, 8, "requester", "ticket whose answer has been read"),
        Row("verb", 16, 8, "requester", "a Verb"),
        Row("pid", 24, 8, "requester", "who asks"),
        Row("start_ticks", 32, 8, "requester", "its start time in clock ticks"),
        Row("argument", 40, 8, "requester", "of the verb"),
        Row("argument2", 48, 8, "requester", "of the verb"),
        Row("reason_size", 56, 8, "requester", "bytes of the reason"),
        Row("reason", 64, REASON_BYTES, "requester", "UTF-8"),
        Row("answered", 1024, 8, "collector", "ticket answered; published last"),
        Row("status", 1032, 8, "collector", "a Status"),
        Row("answer_size", 1040, 8, "collector", "bytes of the answer"),
        Row("answer", 1088, ANSWER_BYTES, "collector", "a path, or what went wrong"),
    ),
)


class Verb:
    """What a request asks of the collector."""

    SNAPSHOT: Final = 1
    """A snapshot in the directory; the answer is its path. `argument` is a `Stacks`, with
    `argument2` the process of `Stacks.ONE`."""
    TRANSFER: Final = 2
    """The same under a hidden name that the requester removes; the answer is its path."""
    ENDED: Final = 3
    """Word of a host: process `argument` ended with wait status `argument2`."""
    STOP: Final = 4
    """An orderly stop."""
    TRIGGER: Final = 5
    """Cause number `argument` of TRIGGERS has come up in process `argument2`: a snapshot, within
    the limits of that trigger; the answer is its path, or status SUPPRESSED."""
    TIMEOUT: Final = 6
    """Word of a host: process `argument` has not answered for `argument2` ms and is about to be
    ended. A snapshot with its stack; answered like TRIGGER."""


class Stacks:
    """Of whom a requested snapshot has stacks taken."""

    NONE: Final = 0
    ALL: Final = 1
    ONE: Final = 2


class Status:
    """How a request went."""

    DONE: Final = 0
    FAILED: Final = 1
    SUPPRESSED: Final = 2
    """No snapshot, because of a limit; it was counted."""


LOST_AT_MOST: Final = 1 << 48
"""A loss word counts no further: beyond it, somebody has scribbled on it."""

LOSSES: Final = (
    "reentrant",
    "oversized",
    "unencodable",
    "interrupted",
    "closed",
    "unmatched",
    "no_memory",
    "late",
)
"""Why an event was not recorded, in the order of the entry's loss words.

reentrant: made while the same thread was inside another record, and not yet written;
oversized: more than a batch holds; unencodable: recorded without what had no bounded form;
interrupted: a signal handler raised in the middle of recording; closed: the recording had
ended; unmatched: the end of a span that was not open; no_memory: allocation failed; late: made
by a forked process before it had a ring, for the lock was held.
"""

ENTRY: Final = Table(
    "entry",
    512,
    (
        Row("incarnation", 0, 8, "attacher", "how often the ring has been claimed"),
        Row("state", 8, 8, "attacher", "an EntryState"),
        Row("pid", 16, 8, "attacher", "as seen in the segment's pid namespace"),
        Row("start_ticks", 24, 8, "attacher", "process start time, clock ticks since boot"),
        Row("attached_ns", 32, 8, "attacher", "CLOCK_MONOTONIC"),
        Row("detached_ns", 40, 8, "attacher", "CLOCK_MONOTONIC, 0 while attached"),
        Row("engine", 48, 8, "attacher", "an index into ENGINES"),
        Row("fenced", 56, 8, "attacher", "1 if registered with membarrier(2)"),
        Row("identity", 64, 16, "attacher", "random"),
        Row("label", 80, LABEL_BYTES, "attacher", "NUL padded UTF-8"),
        Row("stacks", 176, 8, "attacher", "a union of StackFlag"),
        Row("stack_signal", 184, 8, "attacher", "the signal that has its stacks taken, or 0"),
        Row("writing", 192, 8, "producer", "odd inside the critical section"),
        Row("opening", 200, 8, "producer", "number of the newest batch, published first"),
        Row("closed_generation", 208, 8, "producer", "no event of this or older will follow"),
        Row("stack_answered", 216, 8, "producer", "ticket of `stack_wanted` that was answered"),
        Row("held_back", 224, 8 * 2, "producer", "words not sent, by kind, as TELLABLE has them"),
        Row("losses", 256, 8 * 8, "producer", "one word per row of LOSSES"),
        Row("settled", 320, 8, "collector", "incarnation whose end has been dealt with"),
        Row("ended_ns", 328, 8, "collector", "CLOCK_MONOTONIC when its end was noticed"),
        Row("stack_turn", 336, 8, "collector", "changes when `asked` may be filled anew"),
        Row(
            "stack_wanted", 344, 8, "collector", "ticket: leave stacks when it is safe; 0: no more"
        ),
        Row("held_counted", 352, 8 * 2, "collector", "of `held_back`, those in `suppressed`"),
        Row("claimer", 384, 8, "claimer", "pid of who is claiming it; before the state says so"),
        Row("claimer_start", 392, 8, "claimer", "its start time in clock ticks"),
    ),
)


class EntryState:
    """Values of a producer entry's ``state``."""

    FREE: Final = 0
    CLAIMING: Final = 1
    LIVE: Final = 2
    DETACHED: Final = 3


class StackFlag:
    """Bits of an entry's ``stacks``: which stacks the process leaves."""

    ASKED: Final = 1
    """At ``stack_signal``, those of all its threads."""
    FATAL: Final = 2
    """The same at a fatal signal."""
    POLITE: Final = 8
    """It has a handler in Python too, which leaves them when its main thread comes to it."""
    APPLICATION: Final = 4
    """At a fatal signal they go where the application's own faulthandler writes."""


ENGINES: Final = ("", "python", "native")

SLOT: Final = Table(
    "slot",
    CACHE_LINE,
    (
        Row("number", 0, 8, "producer", "0 while being reset"),
        Row("generation", 8, 8, "producer", "of every event in the batch"),
        Row("start_ns", 16, 8, "producer", "CLOCK_MONOTONIC; the first delta counts from it"),
        Row("committed", 24, 8, "producer", "events << COUNT_SHIFT | payload bytes"),
        Row("first", 32, 8, "producer", "events the producer recorded before this batch"),
        Row("flags", 40, 8, "producer", "a union of SlotFlag"),
    ),
)
COUNT_SHIFT: Final = 32
SIZE_MASK: Final = (1 << COUNT_SHIFT) - 1


class SlotFlag:
    """Bits of a slot's ``flags``."""

    SEALED: Final = 1
    END_OF_GENERATION: Final = 2
    PARTIAL_PREAMBLE: Final = 4
    """More spans were open than the preamble holds; older batches name the others."""


SLOT_SIZE: Final = 16 * 1024
STACK_SIZE: Final = 64 * 1024

STACK: Final = Table(
    "stack",
    STACK_SIZE,
    (
        Row("threads", 0, PAGE, "producer", "pairs: a thread's ident, its kernel id"),
        Row("fatal", PAGE, 7 * PAGE, "producer", "faulthandler's text at a fatal signal"),
        Row("asked", 8 * PAGE, 8 * PAGE, "producer", "the same when asked; cleared by collector"),
    ),
)
STACK_THREADS: Final = PAGE // (2 * WORD)
"""Threads that the table of a stack area has room for."""
MINIMUM_SLOTS: Final = 4
DEFAULT_RING_SIZE: Final = 2 * 1024 * 1024
DEFAULT_PRODUCERS: Final = 64
MAXIMUM_PRODUCERS: Final = 4096
MAXIMUM_RING_SIZE: Final = 1 << 30


def _aligned(size: int, to: int = PAGE) -> int:
    return -(-size // to) * to


class Geometry(NamedTuple):
    """How many rings of how many slots: fixes every offset in a segment."""

    producers: int = DEFAULT_PRODUCERS
    slots: int = DEFAULT_RING_SIZE // SLOT_SIZE
    slot_size: int = SLOT_SIZE
    stack_size: int = STACK_SIZE

    @classmethod
    def of(cls, ring_size: int, producers: int) -> Geometry:
        """The geometry for rings of at least `ring_size` bytes, never under four slots."""
        if not 0 <= ring_size <= MAXIMUM_RING_SIZE:
            raise ValueError(f"size must be from 0 to {MAXIMUM_RING_SIZE} bytes, not {ring_size}")
        if not 1 <= producers <= MAXIMUM_PRODUCERS:
            raise ValueError(f"producers must be from 1 to {MAXIMUM_PRODUCERS}, not {producers}")
        return cls(producers, max(MINIMUM_SLOTS, -(-ring_size // SLOT_SIZE)))

    @property
    def requests_offset(self) -> int:
        return _aligned(CONTROL.size)

    @property
    def table_offset(self) -> int:
        return self.requests_offset + REQUESTS * REQUEST.size

    @property
    def rings_offset(self) -> int:
        return _aligned(self.table_offset + self.producers * ENTRY.size)

    @property
    def ring_size(self) -> int:
        return self.slots * self.slot_size

    @property
    def stacks_offset(self) -> int:
        return self.rings_offset + self.producers * self.ring_size

    @property
    def segment_size(self) -> int:
        return self.stacks_offset + self.producers * self.stack_size

    @property
    def payload_size(self) -> int:
        return self.slot_size - SLOT.size

    def request(self, index: int) -> int:
        """Byte offset of request slot `index`."""
        return self.requests_offset + index * REQUEST.size

    def entry(self, index: int) -> int:
        """Byte offset of producer entry `index`."""
        return self.table_offset + index * ENTRY.size

    def ring(self, index: int) -> int:
        """Byte offset of ring `index`."""
        return self.rings_offset + index * self.ring_size

    def stack(self, index: int) -> int:
        """Byte offset of stack area `index`."""
        return self.stacks_offset + index * self.stack_size


# The snapshot file: FILE_MAGIC, then frames.
#
#     +--------+--------+--------+--------+------------------ length bytes ------------------+
#     | marker | length | crc32  |   0    | one msgpack value: [frame kind, ...]              |
#     +--------+--------+--------+--------+----------------------------------------------------+
#       4 bytes each, little endian; crc32 covers the length field and the value. The marker
#       lets a reader find the next frame behind one whose length was damaged.

FILE_MAGIC: Final = b"SHMRECF\x01"
FRAME_MARKER: Final = int.from_bytes(b"frAm", "little")
FRAME_HEADER: Final = "<IIII"
FRAME_HEADER_SIZE: Final = 16
MAXIMUM_FRAME: Final = 16 * 1024 * 1024


class Frame:
    """The first element of a frame's value; the others are named in `snapshot_file`."""

    HEADER: Final = 1
    PRODUCER: Final = 2
    BATCH: Final = 3
    STACK: Final = 4
    TRAILER: Final = 5


def _layout_id() -> int:
    tables = [
        (table.name, table.size, [(row.name, row.offset, row.size) for row in table.rows])
        for table in (CONTROL, REQUEST, ENTRY, SLOT, STACK)
    ]
    kinds = [(kind.number, kind.name, kind.fields, kind.counted) for kind in KINDS]
    rest = (LAYOUT_VERSION, REQUESTS, TRIGGERS, TELLABLE, LOSSES, ENGINES, COUNT_SHIFT)
    digested = repr((tables, kinds, rest)).encode()
    return zlib.crc32(digested) << 32 | zlib.adler32(digested)


LAYOUT_ID: Final = _layout_id()
