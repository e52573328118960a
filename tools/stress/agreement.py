"""Whether shmrec's own reader sees in a snapshot what the validator saw.

Runs in trials and tests: the two share nothing but the tables, so that what one of them got wrong
shows here. A mistake that both make does not.
"""

from __future__ import annotations

from itertools import zip_longest

import shmrec
from shmrec.errors import ShmrecError
from shmrec.manifest import Producer
from tools.stress.batch_rules import Said
from tools.stress.validator import Checked, Told

__all__ = ["disagreements"]


def disagreements(checked: Checked) -> list[str]:
    """What `shmrec.read` says otherwise than the validator, in words."""
    try:
        snapshot = shmrec.read(checked.path)
    except ShmrecError as error:
        return [f"shmrec cannot read it: {error}"]
    found = [f"verify: {damage}" for damage in snapshot.verify()]
    if len(snapshot.producers) != len(checked.producers):
        found.append(f"{len(snapshot.producers)} producers, {len(checked.producers)} are there")
        return found
    for ours, told in zip(snapshot.producers, checked.producers, strict=True):
        if (ours.index, ours.pid, ours.recorded) != tuple(
            told.fields[key] for key in ("index", "pid", "recorded")
        ):
            found.append(f"{told}: it is taken for pid {ours.pid} in ring {ours.index}")
        events = snapshot.events(producers={ours.index})
        for n, (event, said) in enumerate(zip_longest(events, told.events)):
            if event is None or said is None or _seen(event) != said:
                found.append(f"{told}: event {n} is read as {event}, it is {said}")
                break
        found += _open_spans(ours, told)
    return found


def _seen(event: shmrec.Event) -> Said:
    return Said(
        event.time_ns,
        event.kind,
        event.name,
        event.thread,
        event.thread_name,
        event.span,
        event.args,
        event.value,
        event.duration_ns,
        event.generation,
    )


def _open_spans(ours: Producer, told: Told) -> list[str]:
    """What it was in the middle of, where the file tells all of it."""
    seen = {
        span.span: (span.name, span.start_ns, span.thread, span.thread_name, span.args)
        for span in ours.open_spans
    }
    known = {number: tuple(span) for number, span in told.open.items()}
    if told.whole and not ours.spans_missing and seen != known:
        return [f"{told}: spans {sorted(seen)} are read as open, {sorted(known)} are"]
    return []
