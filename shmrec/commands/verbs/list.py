"""``shmrec-dump list``: what is being recorded, and which snapshots there are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import click

from shmrec import live, store
from shmrec.commands.jsonform import dumps, recording_object, stored_object
from shmrec.commands.parameters import directory_option, json_option
from shmrec.commands.screen import Part, Screen
from shmrec.commands.wording import age, moment, safe, size
from shmrec.heading import read_header

_REASON: Final = 3
"""The column."""
_REASON_LENGTH: Final = 100
_SHOWN: Final = 20
_LATE_NS: Final = 5_000_000_000
_STYLES: Final = {live.OPEN: "good", live.CLOSED: "dim"}

_EPILOG: Final = """\b
States of a recording:
  open        a collector or a process lives
  stale       neither does; `recover` reads it, `clean` removes it
  closed      ended in order, its memory left because it holds what could not be saved
  foreign     of another pid namespace (a container): nothing can be told of its processes
  unfinished  its creator died while making it; `clean` removes it
  unreadable  of another user or version, or damaged

\b
Snapshots that nobody asked for make an incident, until none comes for ten minutes. Its first
one is marked, and the quota removes all others before it.

\b
Examples:
  shmrec-dump list
  shmrec-dump list --json | jq '.snapshots[0].file'
"""


@click.command("list", epilog=_EPILOG)
@directory_option
@click.option("--all", "everything", is_flag=True, help=f"Not only the newest {_SHOWN} snapshots.")
@json_option
def command(directory: Path, everything: bool, as_json: bool) -> None:
    """List recordings in shared memory, and snapshots, the newest first."""
    recordings = live.recordings()
    stored = store.listing(directory)
    if as_json:
        found = {
            "recordings": [recording_object(each) for each in recordings],
            "directory": str(directory),
            "snapshots": [stored_object(each, _reason(each)) for each in stored],
        }
        click.echo(dumps(found))
        return
    screen = Screen()
    _recordings(screen, recordings)
    screen.line()
    _snapshots(screen, directory, stored if everything else stored[:_SHOWN])
    if len(stored) > _SHOWN and not everything:
        screen.line(f"and {len(stored) - _SHOWN} older ones: --all lists them", indent=2)


def _recordings(screen: Screen, recordings: list[live.Recording]) -> None:
    if not recordings:
        screen.line("No recordings in shared memory.")
        return
    screen.line(("Recordings", "strong"))
    rows: list[list[Part]] = []
    for each in recordings:
        collector: Part = f"pid {each.collector}" if each.collector else ("none", "bad")
        late = (each.heartbeat_age_ns or 0) > _LATE_NS
        heartbeat = f"{age(each.heartbeat_age_ns)} ago" if each.heartbeat_age_ns else ""
        rows.append(
            [
                (safe(each.name), "name"),
                (each.state, _STYLES.get(each.state, "warn")),
                collector if not each.problem else "",
                _producers(each),
                (heartbeat, "bad" if late else ""),
                str(each.generation) if each.generation else "",
            ]
        )
    headings = ("name", "state", "collector", "processes", "heartbeat>", "generation>")
    screen.table(headings, rows, indent=2)
    for each in recordings:
        if each.suppressed:
            counts = (f"{count:,} of {kind}" for kind, count in each.suppressed.items())
            screen.line(
                (f"{safe(each.name)}: snapshots not taken because of limits: ", "warn"),
                ", ".join(counts),
                indent=2,
            )
        if each.problem:
            screen.line((safe(each.problem), "warn"), indent=2)
        elif each.state == live.OPEN and each.collector is None:
            screen.line(
                (f"{safe(each.name)} has no collector: start it again with ", "warn"),
                f"`shmrec-collect {safe(each.name)}`",
                indent=2,
            )


def _producers(recording: live.Recording) -> str:
    counts = {
        "live": recording.live,
        "dead": recording.dead,
        "detached": recording.detached,
        "unknown": recording.unknown,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _snapshots(screen: Screen, directory: Path, stored: list[store.Stored]) -> None:
    if not stored:
        screen.line(f"No snapshots in {safe(directory)}.")
        return
    screen.line((f"Snapshots in {safe(directory)}", "strong"))
    now = time.time()
    rows: list[list[Part]] = []
    for each in stored:
        ago = max(0, int((now - each.taken) * 1e9))
        rows.append(
            [
                moment(int(each.taken) * 1_000_000_000).removesuffix(" UTC"),
                f"{age(ago)} ago",
                (safe(each.recording), "name"),
                (_said(each), "bad" if each.death else ""),
                ("first", "strong") if each.first else "",
                size(each.size),
                safe(each.path.name),
            ]
        )
    headings = ["when, UTC", "", "recording", "reason", "incident", "size>", "file|"]
    if not screen.fits(headings[:-1], [row[:-1] for row in rows], 2):
        # The file's name, which never goes, has it as well.
        del headings[_REASON]
        for row in rows:
            del row[_REASON]
    screen.table(headings, rows, indent=2)


def _reason(stored: store.Stored) -> str | None:
    """Why it was taken, in full, as the file says it."""
    header = read_header(stored.path)
    return header.reason or None if header is not None else None


def _said(stored: store.Stored) -> str:
    """The same for a table; of a file that does not say it, what its name has."""
    reason = _reason(stored)
    if reason is None:
        return safe(stored.reason).replace("-", " ")
    shown = safe(reason)
    return f"{shown[: _REASON_LENGTH - 1]}…" if len(shown) > _REASON_LENGTH else shown
