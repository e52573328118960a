"""``shmrec-dump diff``: what changed between two snapshots of one recording."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from shmrec import store
from shmrec.commands.analysisform import frame_objects
from shmrec.commands.difference import print_difference
from shmrec.commands.jsonform import dumps
from shmrec.commands.pager import paged, pager_option
from shmrec.commands.parameters import (
    complete_snapshot,
    directory_option,
    json_option,
    open_snapshot,
)
from shmrec.commands.progress import Tick, progress
from shmrec.commands.screen import Screen
from shmrec.commands.wording import wall
from shmrec.comparison import Change, Comparison, EndedSpans, SpanChange, compare
from shmrec.errors import NoSuchSnapshotError
from shmrec.manifest import Producer
from shmrec.snapshot_file import Snapshot

_MOST: Final = 2

_EPILOG: Final = """\b
Whichever is named first, the older one is what comes before. With one FILE, the other is the
newest other snapshot of its recording; without, they are the two newest of the recording that
the newest is of.

\b
Of one run of a recording, processes are the same by identity and spans by their number. Two
runs are compared by label.

\b
Examples:
  shmrec-dump diff
  shmrec-dump snapshot web && sleep 10 && shmrec-dump snapshot web && shmrec-dump diff
  shmrec-dump diff --json | jq '.producers[].spans[] | select(.change == "still")'
"""


@click.command("diff", epilog=_EPILOG)
@click.argument(
    "files",
    metavar="[FILE [FILE]]",
    nargs=-1,
    type=click.Path(path_type=Path),
    shell_complete=complete_snapshot,
)
@directory_option
@click.option("--all", "everything", is_flag=True, help="All rows of every table.")
@pager_option
@json_option
def command(
    files: tuple[Path, ...], directory: Path, everything: bool, no_pager: bool, as_json: bool
) -> None:
    """Say what changed between two snapshots of one recording.

    Who died, came and went; what is still going on that was going on before; how fast it was
    then and now; what was lost meanwhile.
    """
    if len(files) > _MOST:
        raise click.UsageError(f"give {_MOST} FILEs at most", click.get_current_context())
    with progress("reading") as tick:
        found = compare(*_two(files, directory, tick))
    if as_json:
        click.echo(dumps(_object(found)))
        return
    with paged(no_pager):
        print_difference(Screen(), found, everything=everything)


def _two(files: tuple[Path, ...], directory: Path, tick: Tick) -> tuple[Snapshot, Snapshot]:
    first = open_snapshot(files[0] if files else None, directory, tick, passes=2)
    if len(files) == _MOST:
        return first, open_snapshot(files[1], directory, tick, passes=2)
    recording = first.header.recording
    for stored in store.listing(directory):
        if stored.recording == recording and not _same_file(stored.path, first.path):
            other = open_snapshot(stored.path, directory, tick, passes=2)
            return _in_order(other, first)
    raise NoSuchSnapshotError(
        f"{directory} has no other snapshot of recording {recording!r} to compare {first.path} "
        f"with: take one with `shmrec-dump snapshot {recording}`, or name two files"
    )


def _in_order(one: Snapshot, other: Snapshot) -> tuple[Snapshot, Snapshot]:
    """The older first: nobody named them in another order."""
    later = one.header.taken_wall_ns > other.header.taken_wall_ns
    return (other, one) if later else (one, other)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _object(found: Comparison) -> dict[str, Any]:
    """The JSON. Of `producers`, `before` and `after` are null where a snapshot lacks one."""
    return {
        "recording": found.after.header.recording,
        "before": _snapshot(found.before),
        "after": _snapshot(found.after),
        "swapped": found.swapped,
        "same_run": found.same_run,
        "elapsed_ns": found.elapsed_ns,
        "producers": [_change(each) for each in found.changes],
        "names": [
            {"name": each.name, "before": _ended(each.before), "after": _ended(each.after)}
            for each in found.names
        ],
        "suppressed": found.suppressed,
    }


def _snapshot(snapshot: Snapshot) -> dict[str, Any]:
    header = snapshot.header
    return {
        "file": str(snapshot.path),
        "taken_at": wall(header.taken_wall_ns),
        "taken_ns": header.taken_mono_ns,
        "reason": header.reason,
        "run": header.run_id,
        "damage": snapshot.damage,
    }


def _change(change: Change) -> dict[str, Any]:
    facts = change.facts
    return {
        "change": change.what,
        "pid": change.producer.pid,
        "label": change.producer.label,
        "identity": change.producer.identity,
        "before": _side(change.before, change, 0, change.rate_before),
        "after": _side(change.after, change, 1, change.rate_after),
        "rate_between": change.rate_between,
        "busy": facts.busy,
        "lost": change.losses,
        "spans": [_span(each) for each in change.spans],
        "threads": [
            {
                "thread": each.thread or None,
                "ident": each.ident,
                "moved": each.moved,
                "frames": frame_objects(each.frames),
                "earlier_frames": frame_objects(each.earlier),
            }
            for each in change.threads
        ],
    }


def _side(
    producer: Producer | None, change: Change, place: int, rate: float | None
) -> dict[str, Any] | None:
    if producer is None:
        return None
    facts = change.facts
    cause = producer.cause
    return {
        "pid": producer.pid,
        "state": producer.state,
        "cause": vars(cause) if cause is not None else None,
        "recorded": producer.recorded,
        "rate": rate,
        "rss": facts.rss[place],
        "threads": facts.threads[place],
        "files": facts.files[place],
    }


def _span(change: SpanChange) -> dict[str, Any]:
    span = change.span
    return {
        "change": change.what,
        "name": span.name,
        "span": span.span,
        "thread": span.thread,
        "thread_name": span.thread_name,
        "start_ns": span.start_ns,
        "age_ns": change.age_ns,
        "earlier_age_ns": change.earlier_ns,
        "took_ns": change.took_ns,
        "args": span.args,
    }


def _ended(spans: EndedSpans) -> dict[str, int]:
    return {
        "count": spans.count,
        "median_ns": spans.median_ns,
        "most_ns": spans.most_ns,
        "total_ns": spans.total_ns,
    }
