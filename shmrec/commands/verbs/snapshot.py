"""``shmrec-dump snapshot``: have the collector take one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

import click

from shmrec import hidden, live, store
from shmrec.commands.parameters import open_recording, recording_arguments
from shmrec.commands.progress import progress
from shmrec.commands.requesting import ask_for_snapshot, checked_path
from shmrec.commands.terminal import print_path
from shmrec.commands.wording import safe
from shmrec.errors import NoSuchProcessError
from shmrec.layout import REASON_BYTES, Stacks, Verb
from shmrec.segment import Segment

_EPILOG: Final = """\b
Examples:
  shmrec-dump snapshot web --reason "slow since noon"
  shmrec-dump snapshot web -o /tmp/web.shmrec
  shmrec-dump info "$(shmrec-dump snapshot web)"
  ssh host shmrec-dump snapshot web -o - > web.shmrec
  shmrec-dump snapshot web --stacks=4123 --reason "pid 4123 spins"

Stacks are written by the processes themselves, by faulthandler at a real-time signal, also where
one holds the GIL. Reading the stacks of a thread that runs has crashed interpreters (CPython
issues 116008 and 131580), though rarely: name the process under suspicion rather than all.
"""


@click.command("snapshot", epilog=_EPILOG)
@recording_arguments
@click.option("--reason", default="requested", show_default=True, help="Why; kept in the snapshot.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write it to this file, which must not exist yet (- for standard output), and not "
    "into the collector's directory.",
)
@click.option(
    "--stacks",
    is_flag=False,
    flag_value="all",
    metavar="[=PID]",
    callback=lambda context, parameter, value: _to_wish(value),
    help="With the Python stacks of process PID, or of all of them.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the collector.",
)
def command(
    name: str | None,
    path: str | None,
    reason: str,
    output: Path | None,
    stacks: tuple[int, int],
    timeout: float,
) -> None:
    """Take a snapshot of all processes of recording NAME, and print its path."""
    if len(reason.encode("utf-8", "replace")) > REASON_BYTES:
        raise click.UsageError(f"--reason may have {REASON_BYTES} bytes at most")
    piped = output == Path("-")
    if piped and sys.stdout.isatty():
        raise click.UsageError("a snapshot is no text: send standard output to a file")
    if output is not None and not piped:
        store.check_free(output)
    with open_recording(name, path, writable=True) as segment:
        _check_asked(segment, stacks)
        verb = Verb.SNAPSHOT if output is None else Verb.TRANSFER
        with progress("waiting for the collector") as tick:
            taken = ask_for_snapshot(
                segment, verb=verb, reason=reason, stacks=stacks, timeout=timeout, tick=tick
            )
    if output is None:
        print_path(checked_path(taken))
        return
    with hidden.take_transfer(Path(taken)) as source:
        if piped:
            shutil.copyfileobj(source, sys.stdout.buffer)
            return
        # Resolved, because a directory behind a link is a fine place for a file.
        folder = output.parent.resolve()
        with hidden.Unfinished(folder) as unfinished:
            shutil.copyfileobj(source, unfinished.file)
            unfinished.publish(store.only_name(output))
        if unfinished.doubt:
            click.echo(safe(unfinished.doubt), err=True)
    print_path(output)


def _to_wish(value: str | None) -> tuple[int, int]:
    """Of whom stacks are wanted, as a request says it."""
    if value is None:
        return Stacks.NONE, 0
    if value == "all":
        return Stacks.ALL, 0
    if not value.isdecimal() or not 0 < int(value) < 1 << 31:
        raise click.BadParameter(
            f"{value!r} is no process: write --stacks=PID, or --stacks for all"
        )
    return Stacks.ONE, int(value)


def _check_asked(segment: Segment, stacks: tuple[int, int]) -> None:
    """Whoever names a process means one that is there."""
    wish, pid = stacks
    if wish == Stacks.ONE and pid not in [each.entry.pid for each in live.producers(segment)]:
        raise NoSuchProcessError(
            f"no process {pid} in recording {segment.name!r}: `shmrec-dump ps {segment.name}` "
            "shows who is there"
        )
