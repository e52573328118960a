"""Holds the events of a snapshot against the books of those who recorded them.

Runs in the random trial, over snapshots that the validator has checked. Each thread of a producer
numbers its events from 0 and says in a book how many it began and how many returned.

Invariants that it holds a snapshot to:

- Of each thread the events are a run without a gap, but where the producer's batches have one.
- The run reaches at least what had returned before the snapshot was begun, and at most what had
  been begun when it was there.
- ``recorded`` is the sum of what the threads have recorded, exactly where all of them are in the
  file, or have fallen silent; so what is missing is overwritten, or trimmed, and counted exactly.
- Whoever had a ring and had recorded is in the snapshot, unless another has his ring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from shmrec.events import COUNTER
from tools.stress.batch_rules import Said
from tools.stress.books import Key, Read, Sample
from tools.stress.producing import NUMBER, thread_name
from tools.stress.validator import OVERWRITTEN, Checked, Told

__all__ = ["Account", "audit"]

_NONE: Final[list[int]] = []


@dataclass
class Account:
    """What an audit counted: events known to be overwritten, exactly or between two bounds."""

    exact: int = 0
    bounded: int = 0
    wrong: tuple[str, ...] = ()


def audit(
    checked: Checked,
    floor: Sample,
    book: Callable[[Key], Read | None],
    lost_ring: Callable[[str, Key], bool],
) -> Account:
    """Hold the snapshot against the books.

    `floor` is what had returned before the snapshot was begun. `book` gives a process's book as it
    is now; `lost_ring` says whether a process of that recording is rightly not in the file.
    """
    account = Account()
    wrong: list[str] = []
    present = set()
    for told in checked.producers:
        key = Key(told.fields["pid"], told.fields["start_ticks"])
        present.add(key)
        read = book(key)
        if read is None:
            if told.fields["recorded"]:
                wrong.append(f"{told}: recorded events, and has no book")
            continue
        found = _Auditing(told, floor.returned.get(key, _NONE), read)
        wrong += [f"{told}: {text}" for text in found.run()]
        if found.exact:
            account.exact += told.losses[OVERWRITTEN]
        else:
            account.bounded += told.losses[OVERWRITTEN]
    if floor.run == checked.header["run_id"]:
        for key, ring in floor.owners.items():
            said = sum(floor.returned.get(key, _NONE))
            if said and key not in present and not lost_ring(floor.run, key):
                wrong.append(f"pid {key.pid} in ring {ring} is missing, with {said} events")
    account.wrong = tuple(wrong)
    return account


class _Auditing:
    """One producer."""

    def __init__(self, told: Told, floor: list[int], read: Read) -> None:
        self._told = told
        self._floor = floor
        self._read = read
        numbers = [batch.number for batch in told.batches]
        ends = sum(told.batches[-1][3:5]) if told.batches else 0
        self._loose = (bool(numbers) and numbers[-1] - numbers[0] >= len(numbers)) or told.fields[
            "recorded"
        ] > ends
        self.exact = True

    def run(self) -> Iterator[str]:
        said: dict[str, list[Said]] = {}
        for event in self._told.events:
            said.setdefault(event.thread_name, []).append(event)
        least = most = 0
        for thread, begun in enumerate(self._read.begun):
            returned = self._floor[thread] if thread < len(self._floor) else 0
            events = said.pop(thread_name(thread), [])
            ends = None
            if events:
                name = thread_name(thread)
                ends, problem = self._sequence(events)
                if problem:
                    yield f"{name}: {problem}"
                if ends is not None and ends > begun:
                    yield f"{name}: event {ends - 1} is there, {begun} had been begun"
                if ends is not None and ends < returned and not self._loose:
                    yield f"{name}: {returned} events had returned, {ends} are accounted for"
            if ends is not None and not self._loose:
                least, most = least + ends, most + ends
            else:
                low = max(returned, ends or 0, len(events))
                least, most = least + low, most + max(low, begun)
        if said:
            yield f"threads {sorted(said)} never spoke"
        recorded = self._told.fields["recorded"]
        self.exact = least == most
        if not least <= recorded <= most:
            yield f"{recorded} recorded, its threads have recorded {least} to {most}"

    def _sequence(self, events: list[Said]) -> tuple[int | None, str]:
        """How many events the thread had recorded by the last of these; and what is wrong."""
        following: int | None = None
        unnumbered = 0
        for event in events:
            n = event.value if event.kind == COUNTER.name else event.args.get(NUMBER)
            if following is None:
                if n is None:
                    unnumbered += 1
                    continue
                if n < unnumbered:
                    return None, f"{unnumbered} events before number {n}"
                following = n
            if n is not None and n != following:
                if n < following or not self._loose:
                    return n + 1, f"event {n} comes where {following} should"
                following = n
            following += 1
        return following, ""
