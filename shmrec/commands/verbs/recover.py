"""``shmrec-dump recover``: a snapshot of memory that nobody serves any more."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from shmrec import takeover
from shmrec.commands.parameters import directory_option, open_recording, recording_arguments
from shmrec.commands.progress import progress
from shmrec.commands.terminal import print_path
from shmrec.commands.wording import safe
from shmrec.errors import CollectorRunningError

_EPILOG: Final = """\b
Examples:
  shmrec-dump recover web
  shmrec-dump recover --path /mnt/memory/web
  shmrec-dump info "$(shmrec-dump recover web)"

The memory stays as it is: `shmrec-dump clean` removes it, and starting the recording
again replaces it.
"""


@click.command("recover", epilog=_EPILOG)
@recording_arguments
@directory_option
@click.option("--reason", default="recovered", show_default=True, help="Kept in the snapshot.")
@click.option(
    "--force",
    is_flag=True,
    help="Even while a collector lives, but does not answer: read the memory as it is.",
)
def command(name: str | None, path: str | None, directory: Path, reason: str, force: bool) -> None:
    """Write a snapshot of recording NAME without its collector, and print its path.

    For when everything was killed: what the processes recorded is still in memory. Nothing is
    flushed, and nothing in the memory is changed.
    """
    with open_recording(name, path) as segment:
        collector = segment.collector()
        if collector is not None and not force:
            which = segment.name if path is None else f"--path {path}"
            raise CollectorRunningError(
                f"recording {segment.name!r} has a live collector, pid {collector}: use "
                f"`shmrec-dump snapshot {which}`, which flushes first; if that does not answer, "
                "--force reads the memory as it is"
            )
        with progress(f"recovering {segment.name}") as tick:

            def stop() -> bool:
                """Asked before every batch, which is a sign of life."""
                tick()
                return False

            def warn(doubt: str) -> None:
                tick.stop()
                click.echo(safe(doubt), err=True)

            taken = takeover.recover(segment, directory, reason=reason, warn=warn, stop=stop)
    print_path(taken)
