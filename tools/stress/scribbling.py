"""Ways of scribbling on a segment, as a process that has it open can.

Each is a function of the segment, chance, and the ring whose owner is the liar. `SPARING` ones
leave what other producers wrote alone, so that all of it must still be found; `RUINOUS` ones do
not, and are followed by a new recording.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from random import Random
from typing import Final

from shmrec.layout import (
    CONTROL,
    ENTRY,
    LEDGER,
    REQUEST,
    REQUESTS,
    SLOT,
    STACK,
    WORD,
    SlotFlag,
    Verb,
)
from shmrec.segment import Segment

Scribble = Callable[[Segment, Random, int], None]

SPARING: Final[dict[str, Scribble]] = {}
RUINOUS: Final[dict[str, Scribble]] = {}

_WORDS: Final = (0, 1, 2, 3, (1 << 31) - 1, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 64) - 1)


def _kind(kinds: dict[str, Scribble]) -> Callable[[Scribble], Scribble]:
    def keep(scribble: Scribble) -> Scribble:
        kinds[scribble.__name__.replace("_", "-")] = scribble
        return scribble

    return keep


def _lie(random: Random) -> int:
    """A word: at a limit, plausible, near now, or anything."""
    near = time.monotonic_ns() + random.randrange(-(10**12), 10**12)
    return random.choice(
        (random.choice(_WORDS), random.randrange(1000), near % (1 << 64), random.getrandbits(64))
    )


def _slots(segment: Segment, random: Random, ring: int) -> list[int]:
    """Byte offsets of some of the ring's slots."""
    geometry = segment.geometry
    chosen = random.sample(range(geometry.slots), random.randint(1, geometry.slots))
    return [geometry.ring(ring) + slot * geometry.slot_size for slot in chosen]


def _put(segment: Segment, at: int, raw: bytes) -> None:
    segment.view[at : at + len(raw)] = raw


def _header(segment: Segment, at: int, **words: int) -> None:
    for name, value in words.items():
        segment.words[SLOT.word(name, at)] = value


# The liar's own ring.


@_kind(SPARING)
def headers(segment: Segment, random: Random, liar: int) -> None:
    """Any words in any headers."""
    for at in _slots(segment, random, liar):
        for row in SLOT.rows:
            if random.random() < 0.5:
                segment.words[(at + row.offset) // WORD] = _lie(random)


@_kind(SPARING)
def huge_committed(segment: Segment, random: Random, liar: int) -> None:
    """More bytes than a slot has, more events than bytes, a slot full of nothing."""
    full = segment.geometry.payload_size
    for at in _slots(segment, random, liar):
        committed = random.choice((full + 1, 1 << 31, full | full << 32, 1 << 63, (1 << 64) - 1))
        _header(segment, at, committed=committed)


@_kind(SPARING)
def other_numbers(segment: Segment, random: Random, liar: int) -> None:
    """Numbers of the past and the future, most of them right for their slots."""
    geometry = segment.geometry
    opening = segment.words[ENTRY.word("opening", geometry.entry(liar))]
    for at in _slots(segment, random, liar):
        slot = (at - geometry.ring(liar)) // geometry.slot_size
        laps = random.choice((0, 1, 2, opening // geometry.slots + 1, 1 << 40, 1 << 57))
        _header(segment, at, number=laps * geometry.slots + slot + random.choice((1, 1, 1, 0, 2)))


@_kind(SPARING)
def other_times(segment: Segment, random: Random, liar: int) -> None:
    """Times and counts of the past, the future, and beyond what a signed word holds."""
    for at in _slots(segment, random, liar):
        _header(segment, at, start_ns=_lie(random), first=_lie(random))


@_kind(SPARING)
def newest_batch(segment: Segment, random: Random, liar: int) -> None:
    """What the entry says of its newest batch."""
    at = ENTRY.word("opening", segment.geometry.entry(liar))
    segment.words[at] = random.choice(
        (0, 1, segment.words[at] + random.randrange(99), _lie(random))
    )


def _poison(segment: Segment, random: Random, liar: int, payload: bytes, flags: int = 0) -> None:
    """Batches of that payload in a row, complete with their announcement."""
    geometry = segment.geometry
    payload = payload[: geometry.payload_size]
    entry = geometry.entry(liar)
    opening = segment.words[ENTRY.word("opening", entry)] % (1 << 40)
    generation = segment.word("generation")
    for number in range(opening + 1, opening + 1 + random.randint(1, geometry.slots)):
        at = geometry.ring(liar) + (number - 1) % geometry.slots * geometry.slot_size
        segment.words[ENTRY.word("opening", entry)] = number
        _put(segment, at + SLOT.size, payload)
        count = random.choice((0, 1, len(payload)))
        _header(segment, at, generation=generation, start_ns=time.monotonic_ns(), first=0)
        _header(segment, at, committed=count << 32 | len(payload), flags=flags, number=number)


_BOMBS: Final = {
    "nested arrays": b"\x91" * (1 << 14),
    "nested maps": b"\x81\xa0" * (1 << 13),
    "array of four billion": b"\x95\x00\x00\xdd\xff\xff\xff\xff",
    "map of four billion": b"\x95\x04\x00\x00\x01\xdf\xff\xff\xff\xff\xa1a\x01",
    "bytes of four billion": b"\x93\x00\x00\xc6\xff\xff\xff\xff",
    "text of four billion": b"\x94\x00\x00\x00\xdb\xff\xff\xff\xff",
    "timestamp before time": b"\x93\x00\x00\xc7\x0c\xff"
    + struct.pack(">Iq", 999_999_999, -(1 << 63)),
    "timestamp beyond time": b"\x93\x00\xd7\xff" + b"\xff" * 8,
    "extension": b"\x93\x00\x00\xc9\xff\xff\xff\xff\x05",
    "deltas that run away": (b"\x93\x00\xcf" + b"\xff" * 8 + b"\x00") * 1200,
    "deltas backwards": b"\x94\x00\x00\x00\xa1a" + (b"\x93\x02\xd3\x80" + b"\0" * 7 + b"\0") * 900,
    "empty maps": b"\x94\x00\x00\x00\xa1a\x95\x03\x00\x00\x01\xdc\x3f\x00" + b"\x80" * 16_000,
    "kinds that are none": b"\x93\xcd\xff\xff\x00\x00" * 900,
    "a key that is none": b"\x94\x00\x00\x00\xa1a\x95\x03\x00\x00\x01\x81\x91\x90\x01",
    "text that is none": b"\x94\x00\x00\x00\xa5\xff\xfe\xed\xa0\x80\x93\x02\x00\x00",
}


@_kind(SPARING)
def bombs(segment: Segment, random: Random, liar: int) -> None:
    """What a careless reader of msgpack allocates memory or descends without end for."""
    _poison(segment, random, liar, _BOMBS[random.choice(sorted(_BOMBS))])


@_kind(SPARING)
def garbage(segment: Segment, random: Random, liar: int) -> None:
    """Random bytes as events."""
    _poison(segment, random, liar, random.randbytes(segment.geometry.payload_size))


@_kind(SPARING)
def open_spans(segment: Segment, random: Random, liar: int) -> None:
    """As many open spans as fit, in batches that all say that there are more."""
    spans = b"\x94\x00\x00\x00\xa1s" + b"".join(
        b"\x94\x03\x00\x00\xcf" + random.randbytes(8) for _ in range(1200)
    )
    _poison(segment, random, liar, spans, SlotFlag.PARTIAL_PREAMBLE)


@_kind(SPARING)
def own_entry(segment: Segment, random: Random, liar: int) -> None:
    """Any of the entry's words; and whose pid it says, as who it signs, what it is called."""
    at = segment.geometry.entry(liar)
    for row in ENTRY.rows:
        if row.size == WORD and random.random() < 0.3:
            segment.words[(at + row.offset) // WORD] = _lie(random)
    segment.words[ENTRY.word("pid", at)] = random.choice((1, 0, os.getpid(), os.getppid(), 1 << 63))
    label = ENTRY.bytes_at("label", at)
    segment.view[label] = random.randbytes(label.stop - label.start)


@_kind(SPARING)
def stack_areas(segment: Segment, random: Random, liar: int) -> None:
    """A stack that never was, of as many lines as fit, and threads that are none."""
    geometry = segment.geometry
    line = random.choice((b'  File "a", line 1 in f\n', b"Thread 0x1 (most recent call first):\n"))
    line = random.choice((line, b"\xff", b"\x1b]0;x\x07\n", random.randbytes(99)))
    for part in ("fatal", "asked"):
        where = STACK.bytes_at(part, geometry.stack(liar))
        size = where.stop - where.start
        segment.view[where] = (line * (size // len(line) + 1))[:size]
    where = STACK.bytes_at("threads", geometry.stack(liar))
    segment.view[where] = random.randbytes(where.stop - where.start)
    entry = geometry.entry(liar)
    segment.words[ENTRY.word("stacks", entry)] = random.randrange(16)
    segment.words[ENTRY.word("stack_signal", entry)] = random.choice(
        (0, 9, 34, 57, 64, _lie(random))
    )


# What all share.


@_kind(SPARING)
def request_slots(segment: Segment, random: Random, liar: int) -> None:
    """Requests that nobody made. Not one to stop, which is obeyed whoever makes it."""
    for slot in range(REQUESTS):
        at = segment.geometry.request(slot)
        for row in REQUEST.rows:
            if row.size == WORD and random.random() < 0.5:
                segment.words[(at + row.offset) // WORD] = _lie(random)
        verbs = (Verb.SNAPSHOT, Verb.ENDED, Verb.TRIGGER, Verb.TIMEOUT, 0, 99, (1 << 64) - 1)
        chosen = random.choice(verbs) if random.random() < 0.2 else 99
        segment.words[REQUEST.word("verb", at)] = chosen
        where = REQUEST.bytes_at("reason", at)
        segment.view[where] = random.randbytes(where.stop - where.start)


@_kind(SPARING)
def generation(segment: Segment, random: Random, liar: int) -> None:
    """The word that producers take the generation from."""
    found = segment.word("generation")
    segment.set_word("generation", random.choice((0, found // 2, found + 1000, _lie(random))))


@_kind(SPARING)
def ledger(segment: Segment, random: Random, liar: int) -> None:
    """When each generation began."""
    first = CONTROL["ledger"] // WORD
    now = segment.word("generation")
    for at in range(first, first + 2 * LEDGER, 2):
        segment.words[at] = random.choice((max(0, now - random.randrange(99)), _lie(random)))
        segment.words[at + 1] = _lie(random)


@_kind(SPARING)
def trigger_words(segment: Segment, random: Random, liar: int) -> None:
    """What was counted: suppressed, refused, taken."""
    first = CONTROL.word("suppressed")
    for at in range(first, first + 16):
        segment.words[at] = _lie(random)
    for name in ("refused_full", "refused_space", "refused_busy", "snapshots"):
        segment.set_word(name, _lie(random))


@_kind(SPARING)
def collector_words(segment: Segment, random: Random, liar: int) -> None:
    """Whether the recording is open, and who serves it."""
    for name in ("collector_pid", "collector_start", "heartbeat_ns"):
        segment.set_word(name, _lie(random))
    # Not "closed", after which a producer that records is told no more, as by a stop.
    segment.set_word("state", random.choice((0, 1, 3, 1 << 63)))


@_kind(SPARING)
def geometry(segment: Segment, random: Random, liar: int) -> None:
    """The creator's words: what the segment is, and where in it everything lies."""
    end = CONTROL.word("generation")
    for at in range(end):
        if random.random() < 0.5:
            segment.words[at] = random.choice((0, segment.words[at] + 1 & (1 << 63), _lie(random)))


# What others wrote.


@_kind(RUINOUS)
def all_entries(segment: Segment, random: Random, liar: int) -> None:
    """Everybody's entries."""
    where = segment.geometry.table_offset
    _put(segment, where, random.randbytes(segment.geometry.producers * ENTRY.size))


@_kind(RUINOUS)
def all_states(segment: Segment, random: Random, liar: int) -> None:
    """Whether everybody is there, who they are, how often their rings were claimed."""
    for index in range(segment.geometry.producers):
        at = segment.geometry.entry(index)
        for name in ("state", "incarnation", "pid", "start_ticks", "settled"):
            segment.words[ENTRY.word(name, at)] = random.choice((1, 2, 3, _lie(random)))


@_kind(RUINOUS)
def all_headers(segment: Segment, random: Random, liar: int) -> None:
    """Headers in everybody's rings."""
    for ring in range(segment.geometry.producers):
        headers(segment, random, ring)


@_kind(RUINOUS)
def everything_random(segment: Segment, random: Random, liar: int) -> None:
    """All of it."""
    for at in range(0, len(segment.view), 1 << 16):
        _put(segment, at, random.randbytes(min(1 << 16, len(segment.view) - at)))


@_kind(RUINOUS)
def everything_zero(segment: Segment, random: Random, liar: int) -> None:
    """All of it, as if it were new."""
    _put(segment, 0, bytes(len(segment.view)))


@_kind(RUINOUS)
def everything_ones(segment: Segment, random: Random, liar: int) -> None:
    """All of it, the largest numbers."""
    _put(segment, 0, b"\xff" * len(segment.view))


@_kind(RUINOUS)
def closed(segment: Segment, random: Random, liar: int) -> None:
    """That the recording is over."""
    segment.set_word("state", 2)


@_kind(RUINOUS)
def cut_short(segment: Segment, random: Random, liar: int) -> None:
    """The file, made shorter."""
    shapes = segment.geometry
    places = (
        0,
        4096,
        shapes.table_offset,
        shapes.rings_offset,
        shapes.ring(1),
        shapes.stacks_offset,
    )
    os.ftruncate(segment.fd, random.choice((*places, random.randrange(shapes.segment_size))))


@_kind(RUINOUS)
def cut_and_grown(segment: Segment, random: Random, liar: int) -> None:
    """The file, made shorter and as long as it was."""
    os.ftruncate(segment.fd, random.randrange(segment.geometry.rings_offset))
    os.ftruncate(segment.fd, segment.geometry.segment_size)


@_kind(RUINOUS)
def grown(segment: Segment, random: Random, liar: int) -> None:
    """The file, made longer, up to what no memory holds."""
    os.ftruncate(segment.fd, segment.geometry.segment_size + random.choice((1, 4096, 1 << 44)))
