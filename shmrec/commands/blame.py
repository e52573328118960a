"""One process in a snapshot's report: why it ended or is suspected, and what it was inside of.

Runs in ``shmrec-dump info``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from shmrec.commands.insides import print_inside
from shmrec.commands.screen import Part, Screen
from shmrec.commands.timeline import event_parts
from shmrec.commands.wording import age, counted, moment, safe, span_named, who
from shmrec.findings import memory_said, stack_missing
from shmrec.forensics import Finding
from shmrec.snapshot_file import Snapshot
from shmrec.verdict import oldest_of

__all__ = ["print_death", "print_last", "print_rows", "print_suspect"]

_LAST_EVENTS: Final = 8
_ARGUMENTS: Final = 300
_ARGUMENTS_IN_LINE: Final = 60
_EVIDENCE: Final = 8
_BRIEF: Final = 2
_UNKNOWNS: Final = 6

Rows = list[tuple[str, Part]]


def print_rows(screen: Screen, rows: Rows, *, indent: int) -> None:
    """Names and values side by side; a name that repeats is shown once."""
    wide = max((len(name) for name, _ in rows), default=0)
    before = ""
    for name, value in rows:
        shown = name if name != before or name == "asked for by" else ""
        screen.line((f"{shown:<{wide}}", "dim"), "  ", value, indent=indent, hang=wide + 2)
        before = name


def print_death(
    screen: Screen, snapshot: Snapshot, finding: Finding, *, brief: bool = False
) -> None:
    """Who died, why, how that is known, and in the middle of what."""
    producer, verdict = finding.producer, finding.verdict
    assert verdict is not None
    screen.line()
    screen.line((f"Died: {who(producer)}{_within(finding)}", "bad"))
    rows: Rows = [("cause", (verdict.text, "strong"))]
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
    rows += _activity(finding, verdict.evidence, "its end")
    print_rows(screen, rows, indent=2)
    _inside(screen, finding, verdict.evidence, brief)


def print_suspect(screen: Screen, finding: Finding, reasons: Sequence[str]) -> None:
    """Who is suspected and why, what it is at, and in the middle of what."""
    screen.line()
    screen.line((f"Suspect: {who(finding.producer)}{_within(finding)}", "bad"))
    rows: Rows = [("because", (text, "strong")) for text in reasons[:_EVIDENCE]]
    if finding.waiting:
        rows.append(("it was", finding.waiting))
    if finding.silence_ns is not None:
        rows.append(("last event", f"{age(finding.silence_ns)} before the snapshot"))
    rows += _activity(finding, [], "the snapshot")
    print_rows(screen, rows, indent=2)
    _inside(screen, finding, [], False)


def _within(finding: Finding) -> str:
    requests = finding.requests
    if not requests:
        return ""
    span = requests[0]
    named = span_named(span.name, span.args, _ARGUMENTS_IN_LINE)
    return f", {age(finding.age_ns(span))} into `{named}`{oldest_of(requests)}"


def _activity(finding: Finding, said: Sequence[str], end: str) -> Rows:
    rows: Rows = []
    memory = memory_said(finding.trend, finding.reference_ns, end)
    if memory and not any(memory in text for text in said):
        rows.append(("memory", memory))
    if finding.rate_before is not None and finding.rate_last is not None:
        last = f"{finding.rate_last:,.0f} in the last second before {end}"
        rows.append(("events", f"{finding.rate_before:,.1f} a second; {last}"))
    return rows


def _inside(screen: Screen, finding: Finding, said: Sequence[str], brief: bool) -> None:
    screen.line()
    print_inside(screen, finding, stacks=not brief)
    missing = stack_missing(finding.producer)
    if missing and not brief and missing not in said and not any("no stack" in t for t in said):
        screen.line((f"({missing})", "dim"), indent=4)
    for text in finding.unknowns[:_UNKNOWNS]:
        screen.line((f"Mind: {text}", "warn"), indent=2)


def print_last(screen: Screen, snapshot: Snapshot, finding: Finding) -> None:
    """The newest events of a producer."""
    producer = finding.producer
    last = snapshot.last(producer, _LAST_EVENTS)
    if not last:
        return
    screen.line()
    before = "its end was noticed" if producer.ended_ns else "the snapshot"
    events = counted(len(last), "event").removeprefix("1 ")
    screen.line(
        (f"Last {events} of {who(producer)}, in seconds before {before}:", "strong"), indent=0
    )
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
