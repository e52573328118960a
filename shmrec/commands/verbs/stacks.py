"""``shmrec-dump stacks``: what every thread was executing, beside what it was in the middle of."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import click

from shmrec.commands.analysisform import stack_objects
from shmrec.commands.insides import print_stack, span_parts, thread_named
from shmrec.commands.jsonform import dumps, span_objects
from shmrec.commands.pager import paged, pager_option
from shmrec.commands.parameters import directory_option, file_argument, json_option, open_snapshot
from shmrec.commands.progress import progress
from shmrec.commands.reliability import exit_if_damaged
from shmrec.commands.screen import Screen
from shmrec.commands.wording import age, safe, some, who
from shmrec.findings import stack_missing, threads_of
from shmrec.manifest import Producer, Stack
from shmrec.snapshot_file import Snapshot
from shmrec.stack_text import Dump, parse

_NAMED: Final = 4
_SOON: Final = 1_000_000
_EPILOG: Final = """\b
Calls are listed with the newest first; > marks those of the application. Beside them are the
open spans of the same thread, as they were at the end of its history.

\b
Examples:
  shmrec-dump stacks                          of all processes, in the newest snapshot
  shmrec-dump stacks --pid 4242
  shmrec-dump stacks --json | jq -r '.producers[].stacks[].text'

A stack is written by faulthandler: at a fatal signal, and when it is asked for, as triggers
do of those whom they are about, and `shmrec-dump snapshot --stacks` does of whom you name.
(current) is the thread that got the signal.

\b
Exit status: 1 also where the file is damaged, so that stacks may be missing. What can be read is
printed, and one line on standard error says so.
"""


@click.command("stacks", epilog=_EPILOG, short_help="Print what every thread was executing.")
@file_argument
@directory_option
@click.option("--pid", "pids", type=int, multiple=True, help="Of this process; may be repeated.")
@pager_option
@json_option
def command(
    file: Path | None, directory: Path, pids: tuple[int, ...], no_pager: bool, as_json: bool
) -> None:
    """Print the stacks in a snapshot, by process and thread, beside the threads' open spans."""
    with progress("reading") as tick:
        snapshot = open_snapshot(file, directory, tick)
    for pid in sorted(set(pids) - {each.pid for each in snapshot.producers}):
        click.echo(f"shmrec-dump: no process {pid} is in {safe(snapshot.path.name)}", err=True)
    wanted = [each for each in snapshot.producers if not pids or each.pid in pids]
    if as_json:
        found = [_object(snapshot, each) for each in wanted]
        about = {"file": str(snapshot.path), "damage": snapshot.damage}
        click.echo(dumps({**about, "producers": found}))
    else:
        with paged(no_pager):
            _print_all(snapshot, wanted)
    exit_if_damaged(snapshot, snapshot.damage, "stacks")


def _print_all(snapshot: Snapshot, wanted: list[Producer]) -> None:
    screen = Screen()
    started = False
    for producer in wanted:
        for stack in producer.stacks:
            if started:
                screen.line()
            started = True
            _print(screen, snapshot, producer, stack)
    _without(screen, wanted, started)


def _object(snapshot: Snapshot, producer: Producer) -> dict[str, Any]:
    return {
        "pid": producer.pid,
        "label": producer.label,
        "state": producer.state,
        "stacks": stack_objects(producer),
        "missing": stack_missing(producer),
        "open_spans": span_objects(producer.open_spans, snapshot.reference_ns(producer)),
    }


def _print(screen: Screen, snapshot: Snapshot, producer: Producer, stack: Stack) -> None:
    before = snapshot.header.taken_mono_ns - stack.taken_ns
    when = f", {age(before)} before the snapshot" if stack.taken_ns and before >= _SOON else ""
    why = "at a fatal signal" if stack.kind == "fatal" else "when asked"
    screen.line((f"{who(producer)}, {safe(producer.state)}: written {why}{when}", "strong"))
    found = parse(stack.text)
    reference = snapshot.reference_ns(producer)
    for number, dump in enumerate(found, 1):
        if len(found) > 1:
            screen.line(f"dump {number} of {len(found)}", indent=2)
        if dump.fatal:
            screen.line((safe(dump.fatal), "bad"), indent=2)
        _threads(screen, producer, stack, dump, reference, number == len(found))
    if not any(dump.threads for dump in found):
        screen.line(("it could not be read", "warn"), indent=2)
    if stack.cut or any(dump.cut for dump in found):
        screen.line(("cut off: threads or calls are missing", "warn"), indent=2)
    if stack.note:
        screen.line((safe(stack.note), "warn"), indent=2)
    for dump in found:
        for line in dump.odd:
            screen.line((f"not understood: {safe(line)}", "dim"), indent=2)


def _threads(
    screen: Screen, producer: Producer, stack: Stack, dump: Dump, reference_ns: int, newest: bool
) -> None:
    for thread in threads_of(producer, stack, dump):
        if thread.stack is None:
            continue
        current = " (current)" if thread.stack.current else ""
        screen.line((f"{thread_named(thread)}{current}", "strong"), indent=2)
        # What is open now says nothing of an older dump.
        for span in thread.spans if newest else ():
            screen.line(*span_parts(span, reference_ns, thread=False), indent=4)
        print_stack(screen, thread, indent=4)


def _without(screen: Screen, producers: list[Producer], started: bool) -> None:
    """Say of whom there is no stack, and why."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for producer in producers:
        missing = stack_missing(producer)
        if missing:
            reasons[missing].append(who(producer))
    if not started:
        screen.line("There are no stacks in this snapshot." if producers else "No process.")
    elif reasons:
        screen.line()
    for reason, names in reasons.items():
        screen.line(f"{reason}: {some(names, _NAMED)}", indent=0 if started else 2)
