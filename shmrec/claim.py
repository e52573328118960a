"""Claiming a ring: which one, and how it changes hands.

Runs in producers, under the segment's lock. Free rings are claimed first, then the one whose
owner ended longest ago; never one whose owner died and whose death the collector has not
dealt with, for that ring is evidence.

Invariants: the choice is made under the lock, and what takes long without it, while the entry
says CLAIMING; the ring's pages are reserved before anything is said to be recorded there; the
old owner's batches lose their numbers before `incarnation` changes, and that before the entry
says LIVE, so that a reader who was copying notices.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from typing import Final

from shmrec import fence, interpreters, layout, process
from shmrec._engine import Engine
from shmrec.errors import (
    AttachError,
    InterpreterError,
    NoSuchRecordingError,
    RingsTakenError,
    SpaceError,
)
from shmrec.layout import ENTRY, LABEL_BYTES, SLOT, EntryState, SegmentState
from shmrec.segment import LOCK_SECONDS, PLAUSIBLE, Segment
from shmrec.values import bounded_text

__all__ = ["claim", "set_label"]

_ORDERED_STORES: Final = ("x86_64", "AMD64", "i386", "i686")


def claim(
    segment: Segment,
    engine: Engine,
    engine_name: str,
    label: str,
    *,
    held: Collection[int] = (),
    timeout: float = LOCK_SECONDS,
) -> int:
    """Give this process a ring and bind `engine` to it; the ring's index.

    `held` are the rings that other recorders of this process have, `timeout` the seconds to
    wait for the lock.

    Raises `NoSuchRecordingError` if the recording has been closed, `RingsTakenError`,
    `SpaceError`, the refusal is counted in the segment; `AttachError` from another pid namespace,
    `InterpreterError` from another interpreter than the main one.
    """
    words, geometry = segment.words, segment.geometry
    if not interpreters.in_main():
        raise InterpreterError(interpreters.REFUSAL)
    if not segment.same_boot():
        raise AttachError(
            f"recording {segment.name!r} is of another pid namespace or boot, where this process "
            "could not be told from others: start a recording of its own here"
        )
    machine = os.uname().machine
    asked = os.environ.get("SHMREC_ENGINE")
    if engine_name == "python" and machine not in _ORDERED_STORES and asked != "python":
        raise AttachError(
            f"the python engine relies on stores being seen in order, which {machine} does not "
            "promise: it needs the native engine (SHMREC_ENGINE=python takes the risk)"
        )
    fenced = fence.register()
    started = process.start_ticks(os.getpid())
    index, at = _choose_with_memory(segment, started, held, timeout)
    with _given_back(segment, at):
        _prepare(segment, index, label, engine_name, fenced)
        engine.bind(
            segment.view,
            words,
            entry=at,
            ring=geometry.ring(index),
            slot_size=geometry.slot_size,
            slots=geometry.slots,
            fenced=fenced,
        )
    fence.release()
    words[ENTRY.word("state", at)] = EntryState.LIVE  # step: live
    return index


@contextlib.contextmanager
def _given_back(segment: Segment, at: int) -> Iterator[None]:
    """The ring that is being claimed is another's to claim if it cannot be had after all."""
    try:
        yield
    except BaseException:
        segment.words[ENTRY.word("state", at)] = EntryState.FREE
        raise


def _choose_with_memory(
    segment: Segment, started: int, held: Collection[int], timeout: float
) -> tuple[int, int]:
    """A ring of which the pages are there, marked as being claimed; or the refusal is counted."""
    geometry = segment.geometry
    index, at = _choose(segment, started, held, timeout)
    # The ring is ours: what takes long is done without the lock.
    try:
        with _given_back(segment, at):
            segment.reserve(geometry.ring(index), geometry.ring_size)
        return index, at
    except SpaceError as full:
        try:
            # One that somebody has used has its memory already.
            return _choose(segment, started, held, timeout, used=True)
        except RingsTakenError:
            with segment.locked():
                segment.bump("refused_space")
            raise full from None


def _prepare(segment: Segment, index: int, label: str, engine_name: str, fenced: bool) -> None:
    """Take the old owner's batches away, and say who the new one is."""
    words, at = segment.words, segment.geometry.entry(index)
    _clear(segment, index)
    where = ENTRY.bytes_at("identity", at)
    segment.view[where] = os.urandom(where.stop - where.start)
    set_label(segment, index, label)
    values = {
        "attached_ns": time.monotonic_ns(),
        "detached_ns": 0,
        "engine": layout.ENGINES.index(engine_name),
        "fenced": int(fenced),
        "incarnation": (words[ENTRY.word("incarnation", at)] & PLAUSIBLE) + 1,  # step: incarnation
    }
    fence.release()
    for name, value in values.items():
        words[ENTRY.word(name, at)] = value


def _choose(
    segment: Segment,
    started: int,
    held: Collection[int],
    timeout: float,
    *,
    used: bool = False,
) -> tuple[int, int]:
    """Mark a ring as being claimed by this process; its index and its entry's offset."""
    words = segment.words
    with segment.locked(timeout):  # step: lock
        if segment.state == SegmentState.CLOSED:
            raise NoSuchRecordingError(f"recording {segment.name!r} has been closed")
        _leave_rings_of_before_exec(segment, started, held)
        index = _free_ring(segment, used)
        if index is None:
            if not used:
                segment.bump("refused_full")
            raise RingsTakenError(
                f"all {segment.geometry.producers} rings of recording {segment.name!r} are "
                "taken: start it with more (--producers)"
            )
        at = segment.geometry.entry(index)
        words[ENTRY.word("state", at)] = EntryState.CLAIMING  # step: claiming
        words[ENTRY.word("pid", at)] = os.getpid()
        words[ENTRY.word("start_ticks", at)] = started
    return index, at


def _leave_rings_of_before_exec(segment: Segment, started: int, held: Collection[int]) -> None:
    """Detach rings that this very process has and nobody in it holds: from before an exec."""
    words = segment.words
    for index in range(segment.geometry.producers):
        if index in held:
            continue
        at = segment.geometry.entry(index)
        if (
            words[ENTRY.word("pid", at)] == os.getpid()
            and words[ENTRY.word("start_ticks", at)] == started
            and words[ENTRY.word("state", at)] == EntryState.LIVE
        ):
            words[ENTRY.word("detached_ns", at)] = time.monotonic_ns()
            words[ENTRY.word("state", at)] = EntryState.DETACHED


def set_label(segment: Segment, index: int, label: str) -> None:
    where = ENTRY.bytes_at("label", segment.geometry.entry(index))
    raw = bounded_text(label, LABEL_BYTES).encode()[:LABEL_BYTES]
    raw = raw.decode("utf-8", "ignore").encode()
    segment.view[where] = raw.ljust(LABEL_BYTES, b"\0")


def _clear(segment: Segment, index: int) -> None:
    """Take the numbers off all batches of the ring's previous owner, and its counts."""
    words, geometry = segment.words, segment.geometry
    at = geometry.entry(index)
    number = SLOT["number"]
    for slot in range(geometry.slots):
        offset = geometry.ring(index) + slot * geometry.slot_size + number
        words[offset // layout.WORD] = 0  # step: clear
    if words[ENTRY.word("opening", at)] >= 1 << 62:
        words[ENTRY.word("opening", at)] = 0
    words[ENTRY.word("writing", at)] = 0
    words[ENTRY.word("closed_generation", at)] = 0
    for cause in range(len(layout.LOSSES)):
        words[ENTRY.word("losses", at) + cause] = 0


def _free_ring(segment: Segment, used: bool) -> int | None:
    """The ring to claim: a free one unless `used`, else the one that ended longest ago."""
    words = segment.words
    ended: list[tuple[int, int]] = []
    for index in range(segment.geometry.producers):
        at = segment.geometry.entry(index)
        state = words[ENTRY.word("state", at)]
        if state == EntryState.FREE and not used:
            return index
        if state == EntryState.FREE or (used and state == EntryState.CLAIMING):
            continue  # Perhaps without memory yet.
        if state == EntryState.DETACHED:
            ended.append((words[ENTRY.word("detached_ns", at)], index))
            continue
        incarnation = words[ENTRY.word("incarnation", at)]
        dealt_with = state == EntryState.CLAIMING or words[ENTRY.word("settled", at)] == incarnation
        pid, started = words[ENTRY.word("pid", at)], words[ENTRY.word("start_ticks", at)]
        if dealt_with and not process.alive(pid, started):
            # A claimer that died before it was ready recorded nothing.
            when = 0 if state == EntryState.CLAIMING else words[ENTRY.word("ended_ns", at)]
            ended.append((when, index))
    return min(ended)[1] if ended else None
