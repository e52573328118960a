"""``shmrec-dump export``: a snapshot in a format that other tools open."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, Final

import click

from shmrec import hidden, store
from shmrec.commands import formats
from shmrec.commands.formats import Format
from shmrec.commands.parameters import directory_option, file_argument, open_snapshot
from shmrec.commands.progress import progress
from shmrec.commands.terminal import print_path
from shmrec.commands.wording import safe
from shmrec.exporting import Out, Source

_PASSES: Final = 2
"""How often an exporter goes through the events: to see what they are, and to show them."""
_BUFFER: Final = 1 << 20

_EPILOG: Final = f"""\b
The formats, with the end of a file's name that means each:
{formats.described()}

\b
Without -o, or with `-o -`, the output is written to standard output. A file is written whole or
not at all, and none that exists is ever replaced.

\b
Examples:
  shmrec-dump export -o incident.pftrace
  shmrec-dump export web-20260131T120000Z-requested-1.shmrec -o web.speedscope.json
  shmrec-dump export --format text | less
  shmrec-dump export --format jsonl | jq -c 'select(.kind == "exception") | [.name, .args]'
  shmrec-dump export --format otlp -o - | gzip > incident.otlp.jsonl.gz
"""


@click.command("export", epilog=_EPILOG, short_help="Write a snapshot for other tools to open.")
@file_argument
@directory_option
@click.option(
    "--format",
    "-f",
    "name",
    type=click.Choice(formats.names()),
    help="The format; by default what the end of the output file's name means.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write this file, which must not exist yet (- for standard output).",
)
def command(file: Path | None, directory: Path, name: str | None, output: Path | None) -> None:
    """Write a snapshot in a format that other tools open.

    Perfetto, Chrome's and Firefox's profilers, speedscope, OpenTelemetry, Parquet, lines of JSON
    or of text; all processes, or what the format has room for of them.
    """
    piped = output is None or output == Path("-")
    wanted = _format(name, None if piped else output)
    if piped and wanted.binary and sys.stdout.isatty():
        raise click.UsageError(
            f"{wanted.name} is no text: name a file with -o, or send standard output to one"
        )
    companion = wanted.companion_of(output) if output and not piped and wanted.companion else None
    for each in (None if piped else output, companion):
        if each is not None:
            store.check_free(each)
    snapshot = open_snapshot(file, directory)
    events = sum(producer.events for producer in snapshot.producers)
    with progress(f"exporting {wanted.name}") as tick:
        tick.expect(_PASSES * events)
        source = Source(snapshot, tick)
        if piped:
            _write(sys.stdout.buffer, lambda out: wanted.export(source, out))
        else:
            assert output is not None
            _publish(wanted, source, output, companion)
    if not piped:
        assert output is not None
        print_path(output)


def _format(name: str | None, output: Path | None) -> Format:
    if name is not None:
        return formats.format_named(name)
    if output is None:
        raise click.UsageError(f"say which format: --format {'|'.join(formats.names())}")
    found = formats.by_suffix(output)
    if found is None:
        raise click.UsageError(
            f"the name {output.name} does not tell the format: add --format "
            f"{'|'.join(formats.names())}"
        )
    return found


def _publish(wanted: Format, source: Source, output: Path, companion: Path | None) -> None:
    """Write the file, and the one beside it, which gets its name first."""
    # Resolved, because a directory behind a link is a fine place for a file.
    folder = output.parent.resolve()
    with ExitStack() as files:
        main = files.enter_context(hidden.Unfinished(folder, "an export"))
        _write(main.file, lambda out: wanted.export(source, out))
        if companion is None:
            main.publish(store.only_name(output))
            _tell(main)
            return
        other = files.enter_context(hidden.Unfinished(folder, "an export"))
        _write(other.file, lambda out: wanted.export_companion(source, out))
        beside = other.publish(store.only_name(companion))
        try:
            main.publish(store.only_name(output))
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _tell(other)
        _tell(main)


def _tell(written: hidden.Unfinished) -> None:
    if written.doubt:
        click.echo(f"shmrec-dump: {safe(written.doubt)}", err=True)


def _write(file: IO[bytes] | BinaryIO, export: Callable[[Out], None]) -> None:
    """In large pieces: exporters write many small ones."""
    buffer = bytearray()

    class _Buffered:
        def write(self, data: bytes, /) -> int:
            buffer.extend(data)
            if len(buffer) >= _BUFFER:
                file.write(bytes(buffer))
                buffer.clear()
            return len(data)

    export(_Buffered())
    file.write(bytes(buffer))
