"""Holds a snapshot against what a producer told: nothing missing, nothing invented, all counted.

Runs in the trials. A producer records events numbered from 0 and tells of each call that has
returned; what it was in the middle of may be there or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shmrec.decoder import Event
from shmrec.manifest import Producer
from shmrec.snapshot_file import Snapshot

__all__ = ["Told", "check"]


@dataclass
class Told:
    """What a producer has told. `maybe`: events whose calls began and have not returned.

    `missed` events were recorded by a signal handler while there was no ring yet, and are counted;
    `outside`: what raised did so before the event, and is not counted; `optional`: there may have
    been no ring for it.
    """

    pid: int
    returned: list[int] = field(default_factory=list)
    raised: list[int] = field(default_factory=list)
    maybe: set[int] = field(default_factory=set)
    missed: int = 0
    outside: bool = False
    optional: bool = False


def number_of(event: Event) -> int:
    """The number that an event bears, -1 for one that was never recorded."""
    found = event.value if event.kind == "counter" else (event.args or {}).get("n")
    return found if type(found) is int else -1


def check(snapshot: Snapshot, told: Told, states: Iterable[str]) -> list[str]:
    """What is wrong with the producer in the snapshot, in words; `states` are those it may be in.

    A producer that has told nothing need not be there.
    """
    found = [producer for producer in snapshot.producers if producer.pid == told.pid]
    if not found:
        missing = told.returned and not told.optional
        return [f"pid {told.pid} is missing"] if missing else []
    # One that left and came again is there twice: what it told is of the second time.
    producer = max(found, key=lambda each: each.attached_ns)
    numbers = [number_of(event) for event in snapshot.events(producers={producer.index})]
    wrong = _order(numbers, told)
    if producer.state not in states:
        wrong.append(f"state {producer.state} ({producer.evidence}), not {' or '.join(states)}")
    if producer.damage:
        wrong.append(f"damage: {producer.damage}")
    present = set(numbers)
    missing = [number for number in told.returned if number not in present]
    if missing != told.returned[: len(missing)]:
        wrong.append(f"returned and not there: {missing[-8:]} of {told.returned[-3:]}")
    elif numbers and missing and missing[-1] > numbers[0]:
        wrong.append(f"a gap before {numbers[0]}")
    return [f"pid {told.pid}: {each}" for each in wrong + _counts(producer, numbers, missing, told)]


def _order(numbers: list[int], told: Told) -> list[str]:
    wrong = []
    if numbers != sorted(set(numbers)):
        wrong.append(f"order: {numbers}")
    invented = set(numbers) - set(told.returned) - set(told.raised) - told.maybe
    if invented:
        wrong.append(f"never recorded: {sorted(invented)}")
    return wrong


def _counts(producer: Producer, numbers: list[int], missing: list[int], told: Told) -> list[str]:
    wrong = []
    losses = dict(producer.losses)
    overwritten = losses.pop("overwritten", 0)
    if overwritten != len(missing):
        wrong.append(f"{len(missing)} overwritten, {overwritten} counted")
    if producer.recorded != len(missing) + len(numbers) or producer.trimmed:
        wrong.append(
            f"recorded {producer.recorded}, trimmed {producer.trimmed}: "
            f"there are {len(numbers)}, and {len(missing)} were overwritten"
        )
    expected = {"reentrant": told.missed} if told.missed else {}
    interrupted = [number for number in told.raised if number not in set(numbers)]
    if interrupted and not told.outside:
        expected["interrupted"] = len(interrupted)
    if {cause: count for cause, count in losses.items() if count} != expected:
        wrong.append(f"losses {losses}, not {expected}")
    return wrong
