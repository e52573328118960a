"""``shmrec-dump info``: the report of a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from shmrec.commands.jsonform import dumps, snapshot_object
from shmrec.commands.pager import paged, pager_option
from shmrec.commands.parameters import directory_option, file_argument, json_option, open_snapshot
from shmrec.commands.progress import progress
from shmrec.commands.report import print_report
from shmrec.commands.screen import Screen
from shmrec.forensics import analyse

_EPILOG: Final = """\b
Examples:
  shmrec-dump info                          the newest snapshot
  shmrec-dump info web-20260131T120000Z-death-of-worker-1.shmrec
  shmrec-dump info --json | jq '.producers[] | select(.state == "dead") | .open_spans'

Ages of open spans are measured to the moment when the process's end was noticed, or when
it detached, or else when the snapshot was taken.
"""


@click.command("info", epilog=_EPILOG, short_help="Report what happened, and to whom.")
@file_argument
@directory_option
@pager_option
@json_option
def command(file: Path | None, directory: Path, no_pager: bool, as_json: bool) -> None:
    """Say who died and why, what it was in the middle of, what the others did, what was lost."""
    with progress("reading") as tick:
        snapshot = open_snapshot(file, directory, tick, passes=2)
        analysis = analyse(snapshot)
    if as_json:
        click.echo(dumps(snapshot_object(snapshot, analysis)))
        return
    with paged(no_pager):
        print_report(Screen(), snapshot, analysis)
