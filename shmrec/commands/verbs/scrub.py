"""``shmrec-dump scrub``: a snapshot without what is nobody else's business."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import click

from shmrec.commands.progress import progress
from shmrec.commands.screen import Screen
from shmrec.commands.wording import counted, safe
from shmrec.redaction import DEFAULT_PATTERNS, Rules
from shmrec.scrubbing import Scrubbed, scrub

_EPILOG: Final = f"""\b
Without --arg these patterns serve:
  {", ".join(DEFAULT_PATTERNS[:7])},
  {", ".join(DEFAULT_PATTERNS[7:])}
With it only those that are given do. `value` is what a counter's value is called, `reason` also
the snapshot's reason. Patterns are of a shell; upper and lower case are the same. They apply to
the keys of maps inside of arguments as well.

\b
A text becomes "[scrubbed]", a number 0, and so on: the snapshot stays readable, with the same
events. Kept are names, unless --names says otherwise; stacks, unless --stacks does (they have no
values, but files and functions); times, pids, counts, the host's name, what the kernel said of
the processes, and the file's name. Batches that are damaged are left out.

\b
The file is replaced as a whole or not at all. Copies of it, and what a disk still holds of the
old one, stay as they are.

\b
Examples:
  shmrec-dump scrub web-20260131T120000Z-requested-1.shmrec
  shmrec-dump scrub web-20260131T120000Z-requested-1.shmrec -o /tmp/to-show.shmrec
  shmrec-dump scrub FILE --arg '*' --names 'query *' --stacks
"""


@click.command("scrub", epilog=_EPILOG, short_help="Remove values from a snapshot.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--arg",
    "args",
    multiple=True,
    metavar="PATTERN",
    help="Remove the values of arguments with such names; may be repeated.",
)
@click.option(
    "--names",
    multiple=True,
    metavar="PATTERN",
    help="Replace such names, of events, spans, threads, loggers, processes; may be repeated.",
)
@click.option("--stacks", is_flag=True, help="Remove all stacks.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write this file, which must not exist yet, and leave FILE as it is.",
)
def command(
    file: Path,
    args: tuple[str, ...],
    names: tuple[str, ...],
    stacks: bool,
    output: Path | None,
) -> None:
    """Remove argument values from the snapshot FILE, by the arguments' names.

    For showing a snapshot to others: what users sent is mostly in paths, messages and arguments.
    """
    rules = Rules(args or DEFAULT_PATTERNS, names, stacks)
    with progress("scrubbing") as tick:
        with contextlib.suppress(OSError):
            # It is read once for its frames and once for its events, and so is the new one.
            tick.expect(4 * file.stat().st_size)
        done = scrub(file, rules, output, tick)
    _print(Screen(), done, rules)


def _print(screen: Screen, done: Scrubbed, rules: Rules) -> None:
    screen.line(("scrubbed", "good"), f": {safe(done.path)}")
    screen.line(_said("value", done.removed.total(), dict(done.removed)), indent=2)
    if rules.names:
        screen.line(_said("name", done.renamed.total(), dict(done.renamed)), indent=2)
    if done.stacks:
        screen.line(f"{counted(done.stacks, 'stack')} removed", indent=2)
    if done.left_out:
        screen.line((f"{counted(done.left_out, 'batch')} left out:", "warn"), indent=2)
    for note in done.notes:
        screen.line((safe(note), "warn"), indent=4)
    kept = ["labels and names"] if not rules.names else []
    kept += [counted(done.stacks_kept, "stack")] if done.stacks_kept else []
    kept += ["times, counts, pids, the host's name"]
    screen.line(f"kept: {', '.join(kept)}", indent=2)
    if done.reason:
        screen.line(
            ("the file's name may still hold a part of its reason: rename it", "warn"), indent=2
        )
    if done.links > 0:
        screen.line(
            (f"{counted(done.links, 'other name')} of the file as it was: not scrubbed", "warn"),
            indent=2,
        )


def _said(what: str, total: int, by_pattern: dict[str, int]) -> str:
    if not total:
        return f"no {what} matched"
    each = ", ".join(f"{safe(pattern)} {count:,}" for pattern, count in by_pattern.items())
    return f"{counted(total, what)} removed: {each}"
