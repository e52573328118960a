"""Claiming a ring: which one, and how it changes hands.

Runs in producers, under the segment's lock. Free rings are claimed first, then the one whose
owner ended longest ago; never one whose owner died and whose death the collector has not
dealt with, for that ring is evidence.

Invariants: the choice is made under the lock, and what takes long without it, while the entry
says CLAIMING; the ring's pages are reserved before anything is said to be recorded there; the
old owner's batches lose their numbers before `incarnation` changes, and that before the entry
says LIVE, so that a reader who was copying notices; it says LIVE before anybody can record there.
A claim that a signal handler's exception ends leaves no ring that nobody has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
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
    try:
        _clear(segment, index)
        _introduce(segment, index, engine_name, label, fenced)
        # Bound last: from then on other threads record, and what they record must be looked for.
        engine.bind(
            segment.view,
            words,
            entry=at,
            ring=geometry.ring(index),
            slot_size=geometry.slot_size,
            slots=geometry.slots,
            fenced=fenced,
        )
    except BaseException:
        engine.unbind()
        _give_back(segment, at)
        raise
    return index


def _choose_with_memory(
    segment: Segment, started: int, held: Collection[int], timeout: float
) -> tuple[int, int]:
    """A ring of which the pages are there, marked as being claimed; or the refusal is counted."""
    geometry = segment.geometry
    index, at = _choose(segment, started, held, timeout)
    # The ring is ours: what takes long is done without the lock.
    try:
        segment.reserve(geometry.ring(index), geometry.ring_size)
        return index, at
    except SpaceError as full:
        _give_back(segment, at)
        try:
            # One that somebody has used has its memory already.
            return _choose(segment, started, held, timeout, used=True)
        except RingsTakenError:
            with segment.locked():
                segment.bump("refused_space")
            raise full from None
    except BaseException:
        _give_back(segment, at)
        raise


def _introduce(segment: Segment, index: int, engine_name: str, label: str, fenced: bool) -> None:
    """Say in the entry who has the ring now, and that it lives."""
    words, at = segment.words, segment.geometry.entry(index)
    where = ENTRY.bytes_at("identity", at)
    segment.view[where] = os.urandom(where.stop - where.start)
    set_label(segment, index, label)
    words[ENTRY.word("attached_ns", at)] = time.monotonic_ns()
    words[ENTRY.word("detached_ns", at)] = 0
    words[ENTRY.word("engine", at)] = layout.ENGINES.index(engine_name)
    words[ENTRY.word("fenced", at)] = int(fenced)
    incarnation = ENTRY.word("incarnation", at)
    fence.release()
    words[incarnation] = (words[incarnation] & PLAUSIBLE) + 1  # step: incarnation
    fence.release()
    words[ENTRY.word("state", at)] = EntryState.LIVE  # step: live


def _give_back(segment: Segment, at: int) -> None:
    """Leave the ring that was being claimed to others."""
    words, state = segment.words, ENTRY.word("state", at)
    if words[state] == EntryState.CLAIMING:
        words[state] = EntryState.FREE
    elif words[state] == EntryState.LIVE:
        # The collector may watch it already.
        words[ENTRY.word("detached_ns", at)] = time.monotonic_ns()
        words[state] = EntryState.DETACHED


def _choose(
    segment: Segment,
    started: int,
    held: Collection[int],
    timeout: float,
    *,
    used: bool = False,
) -> tuple[int, int]:
    """Mark a ring as being claimed by this process; its index and its entry's offset."""
    words, pid = segment.words, os.getpid()
    claimed = -1
    try:
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
            claimed = at = segment.geometry.entry(index)
            # First, lest the old owner be taken for a claimer that lives if this one is killed.
            words[ENTRY.word("claimer_start", at)] = started
            words[ENTRY.word("claimer", at)] = pid
            fence.release()
            words[ENTRY.word("state", at)] = EntryState.CLAIMING  # step: claiming
            words[ENTRY.word("pid", at)] = pid
            words[ENTRY.word("start_ticks", at)] = started
        return index, at
    except BaseException:
        if claimed >= 0:
            _give_back(segment, claimed)
        raise


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
        if state == EntryState.CLAIMING:
            # A claimer that died before it was ready recorded nothing.
            pid, started = words[ENTRY.word("claimer", at)], words[ENTRY.word("claimer_start", at)]
            dealt_with, when = True, 0
        else:
            pid, started = words[ENTRY.word("pid", at)], words[ENTRY.word("start_ticks", at)]
            dealt_with = words[ENTRY.word("settled", at)] == words[ENTRY.word("incarnation", at)]
            when = words[ENTRY.word("ended_ns", at)]
        if dealt_with and not process.alive(pid, started):
            ended.append((when, index))
    return min(ended)[1] if ended else None
