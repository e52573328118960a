"""The report of a snapshot, for somebody who was just woken up.

Runs in ``shmrec-dump info``. In order: what happened, to whom, what it was in the middle of
and for how long; then what the others were doing; then what was lost, and how far all this
can be relied on. It says what was recorded and how it is known, and guesses nothing.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from typing import Final

from shmrec.commands.reliability import print_losses, print_reliability
from shmrec.commands.screen import Part, Screen
from shmrec.commands.timeline import event_parts, newest_first, thread_of
from shmrec.commands.wording import age, arguments, cause, counted, moment, safe, size, some, who
from shmrec.decoder import OpenSpan
from shmrec.layout import TRIGGERS
from shmrec.manifest import Producer
from shmrec.snapshot_file import Snapshot

__all__ = ["print_report"]

_DETAILED: Final = 8
_LAST_EVENTS: Final = 8
_SPANS_DETAILED: Final = 20
_SPANS_IN_TABLE: Final = 3
_ARGUMENTS: Final = 300
_ARGUMENTS_IN_TABLE: Final = 100
_NAMED: Final = 4
_MAIN: Final = "MainThread"
_ORDER: Final = {"dead": 1, "stalled": 2, "running": 3, "exited": 4, "detached": 5}


def print_report(screen: Screen, snapshot: Snapshot) -> None:
    """Print the whole report."""
    _what_happened(screen, snapshot)
    dead = [each for each in snapshot.producers if each.state == "dead" and not each.reported]
    for producer in dead[:_DETAILED]:
        _death(screen, snapshot, producer)
    _others(screen, snapshot, dead[_DETAILED:])
    print_losses(screen, snapshot)
    print_reliability(screen, snapshot)


def _what_happened(screen: Screen, snapshot: Snapshot) -> None:
    header = snapshot.header
    reason = safe(header.reason)
    if header.trigger in TRIGGERS and header.trigger != "request":
        screen.line((f"{reason[:1].upper()}{reason[1:]}", "bad"))
    elif header.trigger == "recover":
        screen.line((f"Read from memory that nobody served: {reason or 'recovered'}", "strong"))
    else:
        screen.line((f"Snapshot on request: {reason or 'no reason given'}", "strong"))
    screen.line()
    ago = time.time_ns() - header.taken_wall_ns
    rows: list[tuple[Part, Part]] = [
        (("recording", "dim"), f"{safe(header.recording) or '?'} on {safe(header.host) or '?'}"),
        (
            ("taken", "dim"),
            moment(header.taken_wall_ns) + (f", {age(ago)} ago" if ago >= 0 else ""),
        ),
    ]
    for request in header.requests:
        asked = request if isinstance(request, dict) else {}
        text = f"pid {safe(asked.get('pid', '?'))}"
        if asked.get("reason") and asked["reason"] != header.reason:
            text += f": {safe(asked['reason'])}"
        rows.append((("asked for by", "dim"), text))
    states = Counter(producer.state for producer in snapshot.producers)
    ordered = sorted(states.items(), key=lambda item: (_ORDER.get(item[0], 0), item[0]))
    told = ", ".join(f"{number} {safe(state)}" for state, number in ordered)
    rows.append((("processes", "dim"), told or "none"))
    rows.append((("file", "dim"), f"{safe(snapshot.path)} ({size(snapshot.size)})"))
    _facts(screen, rows, indent=2)
    if snapshot.damage:
        screen.line()
        screen.line(("This file is damaged: something is missing, see the end.", "bad"), indent=2)


def _facts(screen: Screen, rows: list[tuple[Part, Part]], *, indent: int) -> None:
    wide = max(len(name if isinstance(name, str) else name[0]) for name, _ in rows)
    for name, value in rows:
        text, style = (name, "") if isinstance(name, str) else name
        screen.line((f"{text:<{wide}}", style), "  ", value, indent=indent, hang=wide + 2)


def _death(screen: Screen, snapshot: Snapshot, producer: Producer) -> None:
    reference = snapshot.reference_ns(producer)
    why, known = cause(producer)
    screen.line()
    screen.line((f"Died: {who(producer)}", "bad"))
    rows: list[tuple[Part, Part]] = [(("cause", "dim"), (why, "strong"))]
    rows.append((("known from", "dim"), known))
    if producer.ended_ns:
        rows.append(
            (("noticed", "dim"), moment(snapshot.wall_ns(producer.ended_ns)) + _quiet(producer))
        )
    elif producer.newest_ns:
        heard = moment(snapshot.wall_ns(producer.newest_ns))
        rows.append((("last event", "dim"), f"{heard}; when it ended is not known"))
    _facts(screen, rows, indent=2)
    screen.line()
    if not producer.open_spans:
        screen.line("It was not inside of any span.", indent=2)
    else:
        several = len(producer.open_spans) > 1
        order = ", the newest first" if several else ""
        screen.line((f"It was in the middle of{order}:", "strong"), indent=2)
        _spans(screen, producer.open_spans, reference)
    last = snapshot.last(producer, _LAST_EVENTS)
    if not last:
        return
    screen.line()
    before = "its end was noticed" if producer.ended_ns else "the snapshot"
    events = counted(len(last), "event").removeprefix("1 ")
    screen.line((f"Its last {events}, in seconds before {before}:", "strong"), indent=2)
    ages = [f"{(event.time_ns - reference) / 1e9:+.6f}" for event in last]
    wide = max(map(len, ages))
    for shown, event in zip(ages, last, strict=True):
        screen.line((f"{shown:>{wide}}  ", "dim"), *event_parts(event, _ARGUMENTS), indent=4)
    if producer.recorded > len(last):
        before = counted(producer.recorded - len(last), "event")
        # With the file's name: the newest snapshot may be another one by the time that it is read.
        command = f"shmrec-dump events {shlex.quote(safe(snapshot.path))} --pid {producer.pid}"
        screen.line((f"{before} before these: `{command}`", "dim"), indent=4)


def _quiet(producer: Producer) -> str:
    if not producer.newest_ns:
        return ""
    return f", {age(producer.ended_ns - producer.newest_ns)} after its last event"


def _spans(screen: Screen, spans: list[OpenSpan], reference_ns: int) -> None:
    shown = newest_first(spans)[:_SPANS_DETAILED]
    wide = max(len(safe(span.name)) for span in shown)
    lasted = [age(reference_ns - span.start_ns) for span in shown]
    longest = max(map(len, lasted))
    for span, length in zip(shown, lasted, strict=True):
        screen.line(
            (f"{safe(span.name):<{wide}}", "name"),
            "  for ",
            (f"{length:<{longest}}", "bad"),
            f"  {arguments(span.args, _ARGUMENTS)}" if span.args else "",
            (f"  in {thread_of(span)}", "dim"),
            indent=4,
        )
    if len(spans) > len(shown):
        screen.line(f"and {len(spans) - len(shown)} more", indent=4)


def _others(screen: Screen, snapshot: Snapshot, more_dead: list[Producer]) -> None:
    gone = ("dead", "exited", "detached")
    there = [each for each in snapshot.producers if each.state not in gone]
    left = [each for each in snapshot.producers if each.state in gone[1:]]
    told = [each for each in snapshot.producers if each.state == "dead" and each.reported]
    if more_dead:
        screen.line()
        screen.line((f"{len(more_dead)} more died:", "bad"))
        _inside_of(screen, snapshot, more_dead)
    if there:
        screen.line()
        dead = len(there) < len(snapshot.producers) - len(left) - len(told)
        screen.line(("The others at that moment:" if dead else "At that moment:", "strong"))
        _inside_of(screen, snapshot, there)
    if told:
        screen.line()
        ends = (f"{who(each)}, {each.cause.text if each.cause else 'unknown'}" for each in told)
        screen.line(f"Died before, told by an earlier snapshot: {safe(some(ends, _NAMED))}.")
    if left:
        screen.line()
        names = some(map(who, left), _NAMED)
        screen.line(f"Left in order before: {names}.")


def _inside_of(screen: Screen, snapshot: Snapshot, producers: list[Producer]) -> None:
    rows: list[dict[str, Part]] = []
    for producer in producers:
        reference = snapshot.reference_ns(producer)
        spans = newest_first(producer.open_spans)
        last = f"{age(reference - producer.newest_ns)} before" if producer.newest_ns else "none"
        first: dict[str, Part] = {
            "pid>": str(producer.pid),
            "label": safe(producer.label),
            "state": (safe(producer.state), "" if producer.state == "running" else "bad"),
            "last event": last,
        }
        if not spans:
            rows.append({**first, "inside of": ("nothing", "dim")})
        for span in spans[:_SPANS_IN_TABLE]:
            inside = f"{safe(span.name)}  {arguments(span.args, _ARGUMENTS_IN_TABLE)}".rstrip()
            inner: dict[str, Part] = {"inside of": (inside, "name"), "thread": thread_of(span)}
            rows.append({**first, **inner, "for>": age(reference - span.start_ns)})
            first = {}
        if len(spans) > _SPANS_IN_TABLE:
            rows.append({"inside of": f"and {len(spans) - _SPANS_IN_TABLE} more"})
    headings = ["pid>", "label", "state", "last event", "inside of", "for>", "thread"]
    # What says the same of everybody would only take room from the arguments.
    if all(producer.state == "running" for producer in producers):
        headings.remove("state")
    if all(row.get("thread", _MAIN) == _MAIN for row in rows):
        headings.remove("thread")
    screen.table(headings, [[row.get(name, "") for name in headings] for row in rows], indent=2)
