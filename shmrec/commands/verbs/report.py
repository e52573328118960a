"""``shmrec-dump report``: a snapshot as one HTML file that opens in any browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from shmrec import hidden, store
from shmrec.commands.page.rendering import render
from shmrec.commands.parameters import directory_option, file_argument, open_snapshot
from shmrec.commands.progress import progress
from shmrec.commands.terminal import print_path
from shmrec.exporting import Source

_PASSES: Final = 2
"""How often one goes through the events: to see what they are, and to draw them."""
_EPILOG: Final = """\b
The page is complete in itself: it loads nothing, and can be mailed. Its first part is in words,
for where no script may run, such as a mail's preview; the timeline below it is drawn by a script.

\b
Examples:
  shmrec-dump report                                    of the newest snapshot, into this folder
  shmrec-dump report web-20260131T120000Z-death-of-worker-1.shmrec -o incident.html
  shmrec-dump report -o - | gzip > incident.html.gz

Needs jinja2: pip install 'shmrec[report]'. What was recorded is in the page; for showing it to
others see `shmrec-dump scrub`.
"""


@click.command("report", epilog=_EPILOG, short_help="Write an incident as one HTML file.")
@file_argument
@directory_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write this file, which must not exist yet (- for standard output); by default FILE's "
    "name with .html, here.",
)
def command(file: Path | None, directory: Path, output: Path | None) -> None:
    """Write what `info`, `stacks` and `events` tell, with a timeline, into one HTML file."""
    piped = output == Path("-")
    if output is not None and not piped:
        store.check_free(output)
    snapshot = open_snapshot(file, directory)
    if output is None:
        output = Path(snapshot.path.with_suffix(".html").name)
        store.check_free(output)
    events = sum(producer.events for producer in snapshot.producers)
    with progress("drawing") as tick:
        tick.expect(_PASSES * events)
        page = render(Source(snapshot, tick)).encode("utf-8", "replace")
    if piped:
        sys.stdout.buffer.write(page)
        return
    with hidden.Unfinished(output.parent.resolve(), "a report") as unfinished:
        unfinished.file.write(page)
        unfinished.publish(store.only_name(output))
    print_path(output)
