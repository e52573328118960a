"""``shmrec-dump events``: the events of a snapshot, of all processes in time order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

import click

from shmrec.commands.filters import MOMENTS, Wanted, filter_options
from shmrec.commands.jsonform import dumps, event_object
from shmrec.commands.pager import paged, pager_option
from shmrec.commands.parameters import (
    Moment,
    directory_option,
    file_argument,
    json_option,
    open_snapshot,
    to_moment,
)
from shmrec.commands.progress import progress
from shmrec.commands.reliability import exit_if_damaged
from shmrec.commands.screen import Screen
from shmrec.commands.timeline import event_line, process_named
from shmrec.commands.wording import safe
from shmrec.decoder import Event
from shmrec.snapshot_file import Snapshot

_EPILOG: Final = f"""\b
WHEN is one of
{MOMENTS.format(now="the snapshot was taken")}

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
@filter_options
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
@pager_option
@json_option
def command(
    file: Path | None,
    directory: Path,
    wanted: Wanted,
    since: Moment | None,
    until: Moment | None,
    facts: bool,
    tail: int | None,
    only_count: bool,
    no_pager: bool,
    as_json: bool,
) -> None:
    """Print the events of a snapshot, of all processes in time order, one a line."""
    with progress("reading") as tick:
        snapshot = open_snapshot(file, directory, tick, passes=2)
        damage = list(snapshot.damage)
        indexes = _indexes(snapshot, wanted.pids)
        matching = replace(wanted, pids=()).matching(
            since_ns=since.mono_ns(snapshot) if since is not None else None,
            until_ns=until.mono_ns(snapshot, end=True) if until is not None else None,
        )
        if only_count:
            # For a count the order is all the same, and dear.
            runs = snapshot.runs(producers=indexes, ordered=False, facts=facts, told=damage.append)
            count = sum(len(matching(run)) for run in runs)
            count = count if tail is None else min(count, tail)
            tick.stop()
            click.echo(dumps({"events": count}) if as_json else count)
            exit_if_damaged(snapshot, damage, "events")
            return
        runs = snapshot.runs(producers=indexes, facts=facts, told=damage.append)
        found: Iterable[Event] = chain.from_iterable(map(matching, runs))
        if tail is not None:
            found = deque(found, maxlen=tail)
        tick.give_way()
        with paged(no_pager or as_json):
            if as_json:
                for event in found:
                    sys.stdout.write(f"{dumps(event_object(snapshot, event))}\n")
            else:
                _print(snapshot, found)
    exit_if_damaged(snapshot, damage, "events")


def _indexes(snapshot: Snapshot, pids: tuple[int, ...]) -> set[int] | None:
    """The producers that are wanted; None for all."""
    if not pids:
        return None
    for pid in set(pids) - {each.pid for each in snapshot.producers}:
        click.echo(f"shmrec-dump: no process {pid} is in {safe(snapshot.path.name)}", err=True)
    found = {each.index for each in snapshot.producers if each.pid in pids}
    if not found:
        sys.exit(1)
    return found


def _print(snapshot: Snapshot, events: Iterable[Event]) -> None:
    screen = Screen()
    taken = snapshot.header.taken_mono_ns
    wide = max((len(process_named(p.pid, p.label)) for p in snapshot.producers), default=0)
    for event in events:
        before = f" {(event.time_ns - taken) / 1e9:+12.6f}  "
        screen.stream(*event_line(snapshot.wall_ns(event.time_ns), event, wide, before))
