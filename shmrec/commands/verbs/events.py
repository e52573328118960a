"""``shmrec-dump events``: the events of a snapshot, of all processes in time order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Final

import click

from shmrec.commands.jsonform import dumps, event_object
from shmrec.commands.parameters import (
    Moment,
    directory_option,
    file_argument,
    json_option,
    open_snapshot,
    to_moment,
)
from shmrec.commands.screen import Screen
from shmrec.commands.timeline import event_parts
from shmrec.commands.wording import clock, safe
from shmrec.decoder import Event
from shmrec.events import KINDS
from shmrec.snapshot_file import Snapshot

_EPILOG: Final = """\b
WHEN is one of
  5, -5, 5s, 250ms, 2m, "5s ago"   that long before the snapshot was taken (ns us ms s m h d)
  12:30:05.25                      a time of day, UTC, as printed in the first column
  2026-01-31T12:30:05.25Z          ISO 8601; UTC unless it says otherwise

\b
The columns: time of day in UTC, seconds before the snapshot, label and pid, thread, event.

\b
Exit status: 1 also where the file is damaged, so that events may be missing. What can be read is
printed, and one line on standard error says so.

\b
Examples:
  shmrec-dump events --tail 20
  shmrec-dump events --pid 4242 --since 2
  shmrec-dump events --kind exception --name 'ValueError*'
  shmrec-dump events --facts --pid 4242 --name process.rss
  shmrec-dump events --count --kind end --name request --since 10
  shmrec-dump events --json | jq -c 'select(.duration_ns > 1e9) | [.name, .args]'
"""


@click.command("events", epilog=_EPILOG)
@file_argument
@directory_option
@click.option("--pid", "pids", type=int, multiple=True, help="Of this process; may be repeated.")
@click.option("--thread", help="Of this thread, by its id or its name.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.name for kind in KINDS if kind.counted]),
    multiple=True,
    help="Of this kind; may be repeated.",
)
@click.option("--name", help="With a name that matches this shell pattern.")
@click.option("--since", type=to_moment, metavar="WHEN", help="From then on.")
@click.option("--until", type=to_moment, metavar="WHEN", help="Up to then.")
@click.option(
    "--facts",
    is_flag=True,
    help="With counters of each process's memory, processor time, threads and open files: "
    "process.rss in bytes, process.cpu in percent, process.threads, process.open_files.",
)
@click.option("--tail", type=click.IntRange(0), help="Only the last so many of those.")
@click.option("--count", "only_count", is_flag=True, help="Print only how many there are.")
@json_option
def command(
    file: Path | None,
    directory: Path,
    pids: tuple[int, ...],
    thread: str | None,
    kinds: tuple[str, ...],
    name: str | None,
    since: Moment | None,
    until: Moment | None,
    facts: bool,
    tail: int | None,
    only_count: bool,
    as_json: bool,
) -> None:
    """Print the events of a snapshot, of all processes in time order, one a line."""
    snapshot = open_snapshot(file, directory)
    damage = list(snapshot.damage)
    indexes = None
    if pids:
        indexes = {each.index for each in snapshot.producers if each.pid in pids}
        for pid in set(pids) - {each.pid for each in snapshot.producers}:
            click.echo(f"shmrec-dump: no process {pid} is in {safe(snapshot.path.name)}", err=True)
        if not indexes:
            sys.exit(1)
    tests: list[Callable[[Event], bool]] = []
    if thread is not None:
        tests.append(lambda event: thread in (str(event.thread), event.thread_name))
    if kinds:
        tests.append(lambda event: event.kind in kinds)
    if name is not None:
        # Names are few and come again and again.
        matches = lru_cache(lambda text: fnmatchcase(text, name))
        tests.append(lambda event: matches(event.name))
    if since is not None:
        first = since.mono_ns(snapshot)
        tests.append(lambda event: event.time_ns >= first)
    if until is not None:
        last = until.mono_ns(snapshot, end=True)
        tests.append(lambda event: event.time_ns <= last)
    if only_count:
        # For a count the order is all the same, and dear.
        runs = snapshot.runs(producers=indexes, ordered=False, facts=facts, told=damage.append)
        count = sum(map(len, _matching(runs, tests)))
        count = count if tail is None else min(count, tail)
        click.echo(dumps({"events": count}) if as_json else count)
        _end(snapshot, damage)
        return
    runs = snapshot.runs(producers=indexes, facts=facts, told=damage.append)
    found: Iterable[Event] = chain.from_iterable(_matching(runs, tests))
    if tail is not None:
        found = deque(found, maxlen=tail)
    if as_json:
        for event in found:
            sys.stdout.write(f"{dumps(event_object(snapshot, event))}\n")
    else:
        _print(snapshot, found)
    _end(snapshot, damage)


def _end(snapshot: Snapshot, damage: list[str]) -> None:
    """Nothing, or one line that says what is damaged, and the status that goes with it."""
    if not damage:
        return
    more = f", and {len(damage) - 1} more: see `shmrec-dump verify`" if damage[1:] else ""
    name = safe(snapshot.path.name)
    # Behind the events, where a person sees it. They are on their way before it is.
    sys.stdout.flush()
    click.echo(
        f"shmrec-dump: {name} is damaged, events may be missing: {safe(damage[0])}{more}", err=True
    )
    sys.exit(1)


def _matching(
    runs: Iterator[list[Event]], tests: list[Callable[[Event], bool]]
) -> Iterator[list[Event]]:
    for run in runs:
        for test in tests:
            run = list(filter(test, run))
        yield run


def _print(snapshot: Snapshot, events: Iterable[Event]) -> None:
    screen = Screen()
    taken = snapshot.header.taken_mono_ns
    names = {each.index: f"{safe(each.label)}[{each.pid}]" for each in snapshot.producers}
    wide = max(map(len, names.values()), default=0)
    for event in events:
        screen.stream(
            (clock(snapshot.wall_ns(event.time_ns)), "dim"),
            f" {(event.time_ns - taken) / 1e9:+12.6f}  ",
            f"{names[event.producer]:<{wide}}  ",
            (f"{safe(event.thread_name) or event.thread:<12}  ", "dim"),
            *event_parts(event),
        )
