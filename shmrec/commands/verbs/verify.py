"""``shmrec-dump verify``: whether a snapshot is whole, and what can be read if it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from shmrec.commands.jsonform import dumps
from shmrec.commands.parameters import directory_option, file_argument, json_option, open_snapshot
from shmrec.commands.progress import progress
from shmrec.commands.screen import Screen
from shmrec.commands.wording import counted, safe, size
from shmrec.errors import DamagedFileError

_EPILOG: Final = """\b
Exit status: 0 if the file is intact, 1 if it is damaged or cannot be read.

\b
Examples:
  shmrec-dump verify web-20260131T120000Z-requested-1.shmrec
  shmrec-dump verify && shmrec-dump info
"""


@click.command("verify", epilog=_EPILOG)
@file_argument
@directory_option
@json_option
def command(file: Path | None, directory: Path, as_json: bool) -> None:
    """Check a snapshot: every frame, every checksum, every event.

    Says what is missing and what can be read. `info` and `events` show all that can be.
    """
    found: dict[str, Any] = {"file": str(file), "intact": False}
    try:
        with progress("reading") as tick:
            snapshot = open_snapshot(file, directory, tick, passes=2)
            damage = snapshot.verify()
        held = {
            "recording": snapshot.header.recording,
            "producers": len(snapshot.producers),
            "batches": snapshot.batches,
            "events": sum(producer.events for producer in snapshot.producers),
        }
        found |= {"file": str(snapshot.path), "intact": not damage, "size": snapshot.size}
        found |= {"damage": damage, "readable": held, "complete": snapshot.complete}
    except DamagedFileError as error:
        found |= {"damage": [str(error)], "readable": None, "complete": False}
    if as_json:
        click.echo(dumps(found))
    else:
        _print(found)
    if not found["intact"]:
        sys.exit(1)


def _print(found: dict[str, Any]) -> None:
    screen = Screen()
    name = safe(found["file"])
    held = found["readable"]
    if held is not None:
        counts = ", ".join(
            (
                counted(held["events"], "event"),
                counted(held["producers"], "process"),
                counted(held["batches"], "batch"),
                size(found["size"]),
            )
        )
    if found["intact"]:
        screen.line(("intact", "good"), f": {name}: {counts}")
        return
    screen.line(("damaged", "bad"), f": {name}")
    for note in found["damage"]:
        screen.line(safe(note), indent=2)
    if held is None:
        screen.line("Nothing can be read.")
    else:
        of = f" of recording {safe(held['recording'])}" if held["recording"] else ""
        screen.line(f"Can be read{of}: {counts}.")
