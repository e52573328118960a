"""The report of a snapshot, for somebody who was just woken up.

Runs in ``shmrec-dump info`` and, part by part, ``report``. Its first screen says what happened,
to whom, why and how that is known, and what it was in the middle of; then what the others were
doing. Behind come details, what was lost, and how far all this can be relied on. It says what
was recorded and how it is known, and guesses nothing.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from shmrec.commands.blame import print_death, print_last, print_suspect
from shmrec.commands.reliability import print_losses, print_reliability
from shmrec.commands.screen import Part, Rows, Surface
from shmrec.commands.timeline import inside_of, thread_of
from shmrec.commands.wording import MAIN_THREAD, age, cause, moment, safe, size, some, who
from shmrec.forensics import Analysis, Culprit, Finding
from shmrec.snapshot_file import Snapshot

__all__ = ["Cast", "cast", "headline", "print_also", "print_others", "print_report", "summary"]

_DETAILED: Final = 8
_WHOLE: Final = 2
_SUSPECTS: Final = 2
_ALSO: Final = 4
_GROUPS: Final = 4
_SPANS_IN_TABLE: Final = 3
_ARGUMENTS_IN_TABLE: Final = 100
_NAMED: Final = 4
_TELLING: Final = ("out of memory", "host timeout", "unhandled exception")
_ORDER: Final = {"dead": 1, "stalled": 2, "running": 3, "exited": 4, "detached": 5}
_HEADLINES: Final = {
    "request": ("Snapshot on request", "no reason given"),
    "recover": ("Read from memory that nobody served", "recovered"),
}
"""Of what did not fire by itself; the reasons of the others say what happened."""


@dataclass
class Cast:
    """Who a report is about: the dead, else suspects with their reasons; `also` stand out besides.

    Of the dead, `more` are told in a line each.
    """

    died: list[Finding]
    more: list[Finding]
    suspects: list[Culprit]
    also: list[Culprit]


def cast(analysis: Analysis) -> Cast:
    """Whom to tell of, in which order."""
    died = analysis.died
    suspects = [each for each in analysis.culprits if not analysis.findings[each.finding].untold]
    # Where the trigger names some, those that merely stand out come behind.
    named = [each for each in suspects if each.rank == "suspect"]
    shown = (named or suspects)[: 0 if died else _SUSPECTS]
    also = [each for each in suspects if each not in shown]
    return Cast(died[:_DETAILED], died[_DETAILED:], shown, also)


def print_report(screen: Surface, snapshot: Snapshot, analysis: Analysis) -> None:
    """Print the whole report."""
    _what_happened(screen, snapshot, analysis)
    told = cast(analysis)
    for number, finding in enumerate(told.died):
        print_death(screen, snapshot, finding, brief=number >= _WHOLE)
    for culprit in told.suspects:
        print_suspect(screen, analysis.findings[culprit.finding], culprit.reasons)
    print_others(screen, snapshot, analysis, told)
    print_also(screen, analysis, told)
    suspected = [analysis.findings[each.finding] for each in told.suspects]
    for finding in [*told.died[:_WHOLE], *suspected, *told.died[_WHOLE:]]:
        print_last(screen, snapshot, finding)
    print_losses(screen, snapshot)
    print_reliability(screen, snapshot, analysis.damage)


def headline(snapshot: Snapshot, analysis: Analysis) -> Part:
    """What happened, in a line."""
    header = snapshot.header
    reason = safe(header.reason)
    if header.trigger in _HEADLINES:
        said, unreasoned = _HEADLINES[header.trigger]
        return f"{said}: {reason or unreasoned}", "strong"
    said = reason or f"snapshot because of {safe(header.trigger) or 'something unknown'}"
    if len(analysis.died) == 1:
        said += _more_than_its_status(analysis.died[0])
    return f"{said[:1].upper()}{said[1:]}", "bad"


def summary(snapshot: Snapshot) -> Rows:
    """Where, when, at whose request, of how many processes."""
    header = snapshot.header
    ago = time.time_ns() - header.taken_wall_ns
    taken = moment(header.taken_wall_ns) + (f", {age(ago)} ago" if ago >= 0 else "")
    if 0 < header.triggered_ns <= header.taken_mono_ns:
        taken += f", {age(header.taken_mono_ns - header.triggered_ns)} after the trigger"
    if header.first:
        taken += ", the first of its incident"
    rows: list[tuple[str, Part]] = [
        ("recording", f"{safe(header.recording) or '?'} on {safe(header.host) or '?'}"),
        ("taken", taken),
    ]
    for request in header.requests:
        asked = request if isinstance(request, dict) else {}
        pid = asked.get("pid", "?")
        known = next((each for each in snapshot.producers if each.pid == pid), None)
        text = who(known) if known is not None else f"pid {safe(pid)}"
        # The headline has the reason of the first, behind who it is of.
        new = asked.get("reason") and not header.reason.endswith(str(asked["reason"]))
        if new:
            text += f": {safe(asked['reason'])}"
        if new or known is None or known.index not in header.suspects:
            rows.append(("asked for by", text))
    states = Counter(producer.state for producer in snapshot.producers)
    ordered = sorted(states.items(), key=lambda item: (_ORDER.get(item[0], 0), item[0]))
    told = ", ".join(f"{number} {safe(state)}" for state, number in ordered)
    rows.append(("processes", told or "none"))
    suppressed = [
        f"{number} by {safe(trigger)}"
        for trigger, number in header.suppressed.items()
        if type(number) is int and number > 0
    ]
    if suppressed:
        rows.append(("not taken", f"snapshots because of limits: {some(suppressed)}"))
    return rows


def _what_happened(screen: Surface, snapshot: Snapshot, analysis: Analysis) -> None:
    screen.line(headline(snapshot, analysis))
    screen.line()
    rows = summary(snapshot)
    screen.pairs(rows, indent=2)
    wide = max(len(name) for name, _ in rows)
    # Unbroken, to be copied.
    file = f"  {safe(snapshot.path)} ({size(snapshot.size)})"
    screen.stream("  ", (f"{'file':<{wide}}", "dim"), file)
    if snapshot.damage or analysis.damage:
        screen.line()
        screen.line(("This file is damaged: something is missing, see the end.", "bad"), indent=2)


def _more_than_its_status(finding: Finding) -> str:
    """Its verdict's kind, where the exit status in the reason does not say as much."""
    verdict = finding.verdict
    return f", {verdict.kind}" if verdict is not None and verdict.kind in _TELLING else ""


def print_others(screen: Surface, snapshot: Snapshot, analysis: Analysis, told: Cast) -> None:
    """What the others were doing, who waited for the same thing, and who had left."""
    shown = [analysis.findings[each.finding] for each in told.suspects]
    there = [each for each in analysis.findings if not each.ended]
    left = [each for each in analysis.findings if each.producer.state in ("exited", "detached")]
    before = [
        each for each in analysis.findings if each.producer.state == "dead" and not each.untold
    ]
    if told.more:
        screen.heading((f"{len(told.more)} more died:", "bad"))
        _inside_of(screen, told.more)
    if analysis.groups:
        screen.heading(("In common:", "strong"))
        for group in analysis.groups[:_GROUPS]:
            screen.line((safe(group.text), "warn"), indent=2)
        if len(analysis.groups) > _GROUPS:
            screen.line(f"and {len(analysis.groups) - _GROUPS} more such groups", indent=2)
    if there:
        screen.heading(
            ("The others at that moment:" if analysis.died else "At that moment:", "strong")
        )
        _inside_of(screen, there)
        if any(each.producer.stacks for each in there if each not in shown):
            # Unbroken, to be copied.
            command = f"shmrec-dump stacks {shlex.quote(safe(snapshot.path))}"
            screen.stream("  ", (f"Their stacks: `{command}`", "dim"))
    if before:
        screen.line()
        ends = (f"{who(each.producer)}, {cause(each.producer)[0]}" for each in before)
        screen.line(f"Died before, told by an earlier snapshot: {some(ends, _NAMED)}.")
    moment_ns = min((each.reference_ns for each in analysis.died), default=1 << 64)
    for since, when in ((False, "before"), (True, "after that")):
        names = [who(each.producer) for each in left if (each.reference_ns > moment_ns) is since]
        if names:
            screen.line()
            screen.line(f"Left in order {when}: {some(names, _NAMED)}.")


def print_also(screen: Surface, analysis: Analysis, told: Cast) -> None:
    """Those that stand out besides, in a line each."""
    culprits = told.also
    if not culprits:
        return
    screen.heading(("Conspicuous besides:", "strong"))
    for culprit in culprits[:_ALSO]:
        name = who(analysis.findings[culprit.finding].producer)
        screen.line(f"{name}: ", (culprit.reasons[0], "warn"), indent=2)
    if len(culprits) > _ALSO:
        screen.line(f"and {len(culprits) - _ALSO} more", indent=2)


def _inside_of(screen: Surface, findings: list[Finding]) -> None:
    rows: list[dict[str, Part]] = []
    for finding in findings:
        producer = finding.producer
        # The thread first that has been at it for longest, as above.
        spans = [span for thread in finding.threads for span in thread.spans]
        last = f"{age(finding.silence_ns)} before" if finding.silence_ns else "just then"
        if finding.silence_ns is None:
            last = "none"
        first: dict[str, Part] = {
            "pid>": str(producer.pid),
            "label": safe(producer.label),
            "state": (safe(producer.state), "" if producer.state == "running" else "bad"),
            "last event": last,
        }
        if not spans:
            rows.append({**first, "inside of": ("nothing", "dim")})
        for span in spans[:_SPANS_IN_TABLE]:
            inside = inside_of(span, _ARGUMENTS_IN_TABLE)
            inner: dict[str, Part] = {"inside of": (inside, "name"), "thread": thread_of(span)}
            rows.append({**first, **inner, "for>": age(finding.age_ns(span))})
            first = {}
        if len(spans) > _SPANS_IN_TABLE:
            rows.append({"inside of": f"and {len(spans) - _SPANS_IN_TABLE} more"})
    headings = ["pid>", "label", "state", "last event", "inside of", "for>", "thread"]
    # What says the same of everybody would only take room from the arguments.
    if all(finding.producer.state == "running" for finding in findings):
        headings.remove("state")
    if all(row.get("thread", MAIN_THREAD) == MAIN_THREAD for row in rows):
        headings.remove("thread")
    screen.table(headings, [[row.get(name, "") for name in headings] for row in rows], indent=2)
