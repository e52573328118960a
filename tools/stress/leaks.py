"""What a recording's life has left: rings that nobody can claim, and what its events say.

Read by the process that runs a trial, from the segment and from snapshot files.
"""

from __future__ import annotations

from collections.abc import Iterator

import shmrec
from shmrec.layout import ENTRY, EntryState
from shmrec.manifest import Producer
from shmrec.segment import Segment
from tools.stress.numbered import NUMBERED

_OF_OTHERS = ("overwritten", "unmatched", "closed", "interrupted", "late")
"""Losses that programs cause which end, or leave, in the middle of something, are ended by a
signal handler in the middle of a record, or find the lock held by others."""


def held_rings(segment: Segment) -> Iterator[str]:
    """The rings that somebody has, or that nobody could claim."""
    words, geometry = segment.words, segment.geometry
    for index in range(geometry.producers):
        at = geometry.entry(index)
        state = words[ENTRY.word("state", at)]
        if state in (EntryState.FREE, EntryState.DETACHED):
            continue
        settled = words[ENTRY.word("settled", at)] == words[ENTRY.word("incarnation", at)]
        if state != EntryState.LIVE or not settled:
            yield f"ring {index}, state {state}, pid {words[ENTRY.word('pid', at)]}"


def wrong_in(found: shmrec.Snapshot) -> Iterator[str]:
    """What is damaged, does not add up, was lost without being overwritten, or has a hole."""
    yield from found.damage
    for producer in found.producers:
        yield from (f"pid {producer.pid}: {what}" for what in _wrong(producer))
    yield from _holes(found)


def _wrong(producer: Producer) -> Iterator[str]:
    overwritten = producer.losses.get("overwritten", 0)
    if producer.recorded != producer.events + producer.trimmed + overwritten:
        yield (
            f"{producer.recorded} recorded, but {producer.events} kept, {producer.trimmed} "
            f"trimmed, {overwritten} overwritten"
        )
    for cause, count in producer.losses.items():
        if count and cause not in _OF_OTHERS:
            yield f"{count} lost: {cause}"
    yield from producer.damage


def _holes(found: shmrec.Snapshot) -> Iterator[str]:
    last: dict[tuple[int, int], int] = {}
    for event in found:
        if event.name != NUMBERED:
            continue
        who, number = (event.producer, event.args["t"]), event.args["n"]
        if last.get(who, number - 1) != number - 1:
            yield f"pid {event.pid}: {number} comes after {last[who]}"
        last[who] = number
