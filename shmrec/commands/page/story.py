"""What the page says in words: whom it is about, what they were inside of, what is missing.

Runs in ``shmrec-dump report``. The same sentences as those of ``info``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shmrec.commands.blame import (
    death_rows,
    missing_stack,
    print_last,
    suspect_rows,
    within,
)
from shmrec.commands.insides import side_by_side, span_parts, thread_named
from shmrec.commands.page.outline import Block, Outline, Pieces, split
from shmrec.commands.reliability import print_losses, print_reliability
from shmrec.commands.report import cast, headline, print_also, print_others, summary
from shmrec.commands.screen import Rows
from shmrec.commands.stack_lines import stack_lines
from shmrec.commands.wording import safe, who
from shmrec.forensics import Analysis, Finding, Thread
from shmrec.snapshot_file import Snapshot

__all__ = ["Card", "Lane", "Story", "tell"]

_THREADS: Final = 24
_SPANS: Final = 40
_CALLS: Final = 64
_UNKNOWNS: Final = 12


@dataclass
class Lane:
    """A thread: its open spans, innermost first, beside what it was executing, newest first."""

    title: str
    note: str
    spans: list[Pieces]
    calls: list[Pieces]


@dataclass
class Card:
    """A process that the page is about, or one of the others."""

    title: str
    bad: bool
    place: int
    rows: Block
    lanes: list[Lane]
    missing: str
    unknowns: list[str]
    last: list[Block]


@dataclass
class Story:
    """The page's words, in its order."""

    title: str
    headline: tuple[str, str]
    summary: Block
    damaged: bool
    cards: list[Card]
    others: list[Block]
    other_cards: list[Card]
    losses: list[Block]
    reliability: list[Block]


def tell(snapshot: Snapshot, analysis: Analysis) -> Story:
    """Everything that there is to read."""
    told = cast(analysis)
    cards = []
    for finding in [*told.died, *told.more]:
        assert finding.verdict is not None
        rows = death_rows(snapshot, finding)
        evidence = finding.verdict.evidence
        cards.append(_card(snapshot, analysis, finding, "Died", rows, evidence))
    for culprit in told.suspects:
        finding = analysis.findings[culprit.finding]
        rows = suspect_rows(finding, culprit.reasons)
        cards.append(_card(snapshot, analysis, finding, "Suspect", rows, []))
    about = {card.place for card in cards}
    others, losses, reliability = Outline(), Outline(), Outline()
    print_others(others, snapshot, analysis, told)
    print_also(others, analysis, told)
    print_losses(losses, snapshot)
    print_reliability(reliability, snapshot, analysis.damage)
    said = split([headline(snapshot, analysis)])[0]
    return Story(
        title=f"{said[0]} - {safe(snapshot.header.recording)}",
        headline=said,
        summary=_pairs(summary(snapshot)),
        damaged=bool(snapshot.damage),
        cards=cards,
        others=others.blocks,
        other_cards=[
            _card(snapshot, analysis, finding, "", [], [])
            for place, finding in enumerate(analysis.findings)
            if place not in about and finding.threads
        ],
        losses=losses.blocks,
        reliability=reliability.blocks,
    )


def _card(
    snapshot: Snapshot,
    analysis: Analysis,
    finding: Finding,
    kind: str,
    rows: Rows,
    said: list[str],
) -> Card:
    named = f"{who(finding.producer)}{within(finding)}"
    last = Outline()
    if kind:
        print_last(last, snapshot, finding)
    return Card(
        title=f"{kind}: {named}" if kind else named,
        bad=bool(kind),
        place=next(n for n, each in enumerate(analysis.findings) if each is finding),
        rows=_pairs(rows),
        lanes=[_lane(finding, thread) for thread in finding.threads[:_THREADS]],
        missing=missing_stack(finding, said),
        unknowns=finding.unknowns[:_UNKNOWNS],
        last=last.blocks,
    )


def _lane(finding: Finding, thread: Thread) -> Lane:
    spans = thread.spans[:_SPANS]
    note = ""
    if thread is finding.struck:
        note = f"{safe(finding.fatal)} in this thread"
    elif thread.stack is not None and side_by_side(thread.spans):
        note = "takes turns at these; was executing what is beside them"
    shown = [split(span_parts(span, finding.reference_ns, thread=False)) for span in spans]
    if len(thread.spans) > len(spans):
        shown.append([(f"and {len(thread.spans) - len(spans)} more", "dim")])
    calls = stack_lines(thread.stack, _CALLS) if thread.stack is not None else []
    return Lane(thread_named(thread), note, shown, [split(line) for line in calls])


def _pairs(rows: Rows) -> Block:
    outline = Outline()
    outline.pairs(rows)
    return outline.blocks[0]
