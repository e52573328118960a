"""One process in a snapshot's report: why it ended or is suspected, and what it was inside of.

Runs in ``shmrec-dump info`` and ``report``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from shmrec.commands.insides import print_inside
from shmrec.commands.screen import Part, Rows, Surface
from shmrec.commands.timeline import event_parts
from shmrec.commands.wording import age, counted, moment, safe, span_named, who
from shmrec.findings import memory_said, stack_missing
from shmrec.forensics import Finding
from shmrec.snapshot_file import Snapshot
from shmrec.verdict import oldest_of

__all__ = [
    "death_rows",
    "missing_stack",
    "print_death",
    "print_last",
    "print_suspect",
    "suspect_rows",
    "within",
]

_LAST_EVENTS: Final = 8
_ARGUMENTS: Final = 300
_ARGUMENTS_IN_LINE: Final = 60
_EVIDENCE: Final = 8
_BRIEF: Final = 2
_UNKNOWNS: Final = 6


def print_death(
    screen: Surface, snapshot: Snapshot, finding: Finding, *, brief: bool = False
) -> None:
    """Who died, why, how that is known, and in the middle of what."""
    screen.heading((f"Died: {who(finding.producer)}{within(finding)}", "bad"))
    screen.pairs(death_rows(snapshot, finding, brief=brief), indent=2)
    assert finding.verdict is not None
    _inside(screen, finding, finding.verdict.evidence, brief)


def death_rows(snapshot: Snapshot, finding: Finding, *, brief: bool = False) -> Rows:
    """Why it died, how that is known, when, and what it had been doing."""
    producer, verdict = finding.producer, finding.verdict
    assert verdict is not None
    rows: list[tuple[str, Part]] = [("cause", (verdict.text, "strong"))]
    most = _BRIEF if brief else _EVIDENCE
    rows += [("evidence", text) for text in verdict.evidence[:most]]
    if len(verdict.evidence) > most:
        rows.append(("evidence", f"and {len(verdict.evidence) - most} more, with --json"))
    if producer.ended_ns:
        silence = finding.silence_ns
        quiet = f", {age(silence)} after its last event" if silence is not None else ""
        rows.append(("noticed", f"{moment(snapshot.wall_ns(producer.ended_ns))}{quiet}"))
    elif producer.newest_ns:
        heard = moment(snapshot.wall_ns(producer.newest_ns))
        rows.append(("last event", f"{heard}; when it ended is not known"))
    return [*rows, *_activity(finding, verdict.evidence, "its end")]


def print_suspect(screen: Surface, finding: Finding, reasons: Sequence[str]) -> None:
    """Who is suspected and why, what it is at, and in the middle of what."""
    screen.heading((f"Suspect: {who(finding.producer)}{within(finding)}", "bad"))
    screen.pairs(suspect_rows(finding, reasons), indent=2)
    _inside(screen, finding, [], False)


def suspect_rows(finding: Finding, reasons: Sequence[str]) -> Rows:
    """Why it is suspected, and what it had been doing."""
    rows: list[tuple[str, Part]] = [("because", (text, "strong")) for text in reasons[:_EVIDENCE]]
    if finding.waiting:
        rows.append(("it was", finding.waiting))
    if finding.silence_ns is not None:
        rows.append(("last event", f"{age(finding.silence_ns)} before the snapshot"))
    return [*rows, *_activity(finding, [], "the snapshot")]


def within(finding: Finding) -> str:
    """How far into which request it was; "" if into none."""
    requests = finding.requests
    if not requests:
        return ""
    span = requests[0]
    named = span_named(span.name, span.args, _ARGUMENTS_IN_LINE)
    return f", {age(finding.age_ns(span))} into `{named}`{oldest_of(requests)}"


def _activity(finding: Finding, said: Sequence[str], end: str) -> Rows:
    rows: list[tuple[str, Part]] = []
    memory = memory_said(finding.trend, finding.reference_ns, end)
    if memory and not any(memory in text for text in said):
        rows.append(("memory", memory))
    if finding.rate_before is not None and finding.rate_last is not None:
        last = f"{finding.rate_last:,.0f} in the last second before {end}"
        rows.append(("events", f"{finding.rate_before:,.1f} a second; {last}"))
    return rows


def _inside(screen: Surface, finding: Finding, said: Sequence[str], brief: bool) -> None:
    screen.line()
    print_inside(screen, finding, stacks=not brief)
    missing = missing_stack(finding, said)
    if missing and not brief:
        screen.line((f"({missing})", "dim"), indent=4)
    for text in finding.unknowns[:_UNKNOWNS]:
        screen.line((f"Mind: {text}", "warn"), indent=2)


def missing_stack(finding: Finding, said: Sequence[str]) -> str:
    """Why there is no stack, unless that was `said`."""
    missing = stack_missing(finding.producer)
    known = missing in said or any("no stack" in text for text in said)
    return "" if known else missing


def print_last(screen: Surface, snapshot: Snapshot, finding: Finding) -> None:
    """The newest events of a producer."""
    producer = finding.producer
    last = snapshot.last(producer, _LAST_EVENTS)
    if not last:
        return
    before = "its end was noticed" if producer.ended_ns else "the snapshot"
    events = counted(len(last), "event").removeprefix("1 ")
    screen.heading((f"Last {events} of {who(producer)}, in seconds before {before}:", "strong"))
    ages = [f"{(event.time_ns - finding.reference_ns) / 1e9:+.6f}" for event in last]
    wide = max(map(len, ages))
    for shown, event in zip(ages, last, strict=True):
        screen.line((f"{shown:>{wide}}  ", "dim"), *event_parts(event, _ARGUMENTS), indent=2)
    if producer.recorded > len(last):
        earlier = counted(producer.recorded - len(last), "event")
        # With the file's name: the newest snapshot may be another one by the time that it is read.
        command = f"shmrec-dump events {shlex.quote(safe(snapshot.path))} --pid {producer.pid}"
        # Unbroken, to be copied.
        screen.stream("  ", (f"{earlier} before these: `{command}`", "dim"))
