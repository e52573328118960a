"""``shmrec-dump ps``: what every process of a recording is doing right now."""

from __future__ import annotations

import time
from itertools import groupby
from typing import Final

import click

from shmrec import live
from shmrec.commands.jsonform import dumps, live_object, recording_object
from shmrec.commands.parameters import json_option, open_recording, recording_arguments
from shmrec.commands.screen import Part, Screen
from shmrec.commands.timeline import inside_of, newest_first, thread_of
from shmrec.commands.wording import age, counted, safe, some

_ARGUMENTS: Final = 120
_SPANS: Final = 12
_STYLES: Final = {live.RUNNING: "good", live.STOPPED: "warn", live.DEAD: "bad"}

_EPILOG: Final = """\b
States of a process:
  running   it lives, though it may wait for something
  stopped   it was stopped by a signal or a debugger
  dead      it ended without detaching
  detached  it left in order
  joining   it is just attaching
  unknown   its pid is of another pid namespace

\b
Examples:
  shmrec-dump ps web
  watch -n1 shmrec-dump ps web
"""


@click.command("ps", epilog=_EPILOG, short_help="Show what each process is doing right now.")
@recording_arguments
@click.option("--all", "everything", is_flag=True, help="Detached processes too.")
@json_option
def command(name: str | None, path: str | None, everything: bool, as_json: bool) -> None:
    """Show each process of recording NAME, and what its threads are inside of, for how long.

    Read from shared memory as it is: no process is asked, flushed or delayed.
    """
    with open_recording(name, path) as segment:
        recording = live.look(segment)
        producers = live.producers(segment)
        now_ns = time.monotonic_ns()
    if as_json:
        found = recording_object(recording)
        found["producers"] = [live_object(each, now_ns) for each in producers]
        click.echo(dumps(found))
        return
    screen = Screen()
    collector = f"collector pid {recording.collector}" if recording.collector else "no collector"
    screen.line(
        (safe(recording.name), "strong"),
        f": {recording.state}, ",
        (collector, "" if recording.collector else "bad"),
        f", generation {recording.generation}",
    )
    screen.line()
    gone = [each for each in producers if each.state == live.DETACHED and not everything]
    shown = [each for each in producers if each not in gone]
    if not shown:
        screen.line("No processes.", indent=2)
    else:
        headings = ("pid>", "label", "state", "last event", "lost>", "thread", "inside of", "for>")
        screen.table(headings, [row for each in shown for row in _rows(each, now_ns)], indent=2)
    if gone:
        pids = some(str(each.entry.pid) for each in gone)
        screen.line()
        screen.line(f"{counted(len(gone), 'process')} left in order: pid {pids}", indent=2)
    for each in producers:
        for note in each.damage[:3]:
            screen.line((f"pid {each.entry.pid}: {safe(note)}", "warn"), indent=2)
    if recording.refused:
        screen.line((f"{counted(recording.refused, 'attach')} refused", "warn"), indent=2)


def _rows(producer: live.LiveProducer, now_ns: int) -> list[list[Part]]:
    entry = producer.entry
    reference = entry.ended_ns or entry.detached_ns or now_ns
    heard = f"{age(max(0, now_ns - producer.newest_ns))} ago" if producer.newest_ns else "no events"
    lost = sum(entry.losses.values())
    first: list[Part] = [
        str(entry.pid),
        safe(entry.label),
        (producer.state, _STYLES.get(producer.state, "dim")),
        heard,
        (f"{lost:,}", "warn" if lost else ""),
    ]
    if not producer.open_spans:
        return [[*first, "", ("nothing", "dim"), ""]]
    rows: list[list[Part]] = []
    spans = sorted(producer.open_spans, key=lambda span: span.thread)
    shown = 0
    for _, group in groupby(spans, key=lambda span: span.thread):
        for number, span in enumerate(newest_first(group)):
            if shown == _SPANS:
                rows.append([*first, "", f"and {len(spans) - shown} more", ""])
                return rows
            thread = "" if number else thread_of(span)
            inside = inside_of(span, _ARGUMENTS)
            lasted = age(max(0, reference - span.start_ns))
            rows.append([*first, (thread, "dim"), (inside, "name"), lasted])
            first = [""] * len(first)
            shown += 1
    return rows
