"""What is missing from a snapshot, and why the rest can be believed.

Runs in ``shmrec-dump info``, as the end of its report, and in the verbs whose exit status tells
that a file is damaged.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final

import click

from shmrec.commands.screen import Surface
from shmrec.commands.wording import LOST, age, counted, safe, size, some, who
from shmrec.snapshot_file import Snapshot

__all__ = ["exit_if_damaged", "print_losses", "print_reliability"]

_DAMAGE_SHOWN: Final = 10


def print_losses(screen: Surface, snapshot: Snapshot) -> None:
    """Say what was recorded and is not in the snapshot, by cause."""
    lost = [
        (each, kind, number)
        for each in snapshot.producers
        for kind, number in each.losses.items()
        if number
    ]
    trimmed = [each for each in snapshot.producers if each.trimmed]
    if not lost and not trimmed:
        screen.line()
        screen.line("Nothing was lost.")
        return
    screen.heading(("Not in this snapshot:", "strong"))
    for cause in dict.fromkeys(kind for _, kind, _ in lost):
        those = [(each, number) for each, kind, number in lost if kind == cause]
        total = counted(sum(number for _, number in those), "event")
        meaning = LOST.get(cause, f"lost: {safe(cause)}")
        of = some([f"pid {each.pid} {number:,}" for each, number in those])
        style = "" if cause == "overwritten" else "warn"
        screen.line((total, style), f" {meaning} ({of})", indent=2)
    if trimmed:
        header = snapshot.header
        total = counted(sum(each.trimmed for each in trimmed), "event")
        limits = f"{size(header.keep_size)} a process, {age(header.keep_period_ns)}"
        screen.line(f"{total} beyond what a snapshot keeps ({limits})", indent=2)


def print_reliability(screen: Surface, snapshot: Snapshot, unreadable: Sequence[str]) -> None:
    """Say whether the snapshot is complete, what was damaged, and what proves the rest.

    `unreadable` are the batches of which not all events could be read.
    """
    header = snapshot.header
    screen.line()
    if snapshot.complete and not unreadable:
        screen.line(("Complete", "good"), f" up to generation {header.generation}.")
    else:
        screen.line(("Not complete", "bad"), f", up to generation {header.generation}:")
    for producer in snapshot.producers:
        if producer.evidence == "stalled":
            screen.line(
                f"{who(producer)} did not show in time that it had finished its last event: what "
                "it was just recording may be missing",
                indent=2,
            )
        for note in producer.damage[:_DAMAGE_SHOWN]:
            screen.line(f"{who(producer)}: {safe(note)}", indent=2)
    said = {f"pid {each.pid}, {note}" for each in snapshot.producers for note in each.damage}
    notes = [*snapshot.damage, *(each for each in unreadable if each not in said), *header.notes]
    for note in notes[:_DAMAGE_SHOWN]:
        screen.line(safe(note), indent=2)
    more = len(notes) - _DAMAGE_SHOWN
    if more > 0:
        screen.line(f"and {more} more: see `shmrec-dump verify`", indent=2)
    screen.line(_proof(snapshot))


def exit_if_damaged(snapshot: Snapshot, damage: Sequence[str], missing: str) -> None:
    """Nothing, or one line that says what is damaged, and the status that goes with it.

    `missing` is what there may be less of.
    """
    if not damage:
        return
    more = f", and {len(damage) - 1} more: see `shmrec-dump verify`" if damage[1:] else ""
    name = safe(snapshot.path.name)
    # Behind what was printed, where a person sees it. That is on its way before it is.
    sys.stdout.flush()
    click.echo(
        f"shmrec-dump: {name} is damaged, {missing} may be missing: {safe(damage[0])}{more}",
        err=True,
    )
    sys.exit(1)


def _proof(snapshot: Snapshot) -> str:
    header = snapshot.header
    if not header.flushes:
        return "Nothing was flushed: the memory was read as it was found."
    shown = Counter(producer.evidence for producer in snapshot.producers)
    evidence = ", ".join(f"{number} {safe(kind)}" for kind, number in sorted(shown.items()))
    flushes = {1: "One flush", 2: "Two flushes"}.get(header.flushes, f"{header.flushes} flushes")
    if header.fenced:
        return f"{flushes}, fenced by membarrier ({evidence})."
    if header.flushes == 1:
        return f"membarrier was not available: one flush, the in-band signal alone ({evidence})."
    return f"membarrier was not available: two flushes carried the proof ({evidence})."
