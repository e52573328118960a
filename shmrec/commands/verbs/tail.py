"""``shmrec-dump tail``: the events of a recording as they are recorded, of all processes."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from typing import Final

import click

from shmrec import follow, process
from shmrec.commands.filters import MOMENTS, Wanted, filter_options
from shmrec.commands.parameters import (
    Moment,
    Now,
    has_ended,
    json_option,
    open_lasting,
    open_next,
    recording_arguments,
    to_moment,
)
from shmrec.commands.progress import progress
from shmrec.commands.tail_output import BEGUN, ENDED, Output
from shmrec.commands.terminal import warn
from shmrec.decoder import Event
from shmrec.errors import SegmentError
from shmrec.follow import DOUBTED, Follower, Note
from shmrec.segment import Segment

_LAST: Final = 10
_EVERY: Final = 0.1
"""Seconds between two looks into shared memory."""
_AGAIN: Final = 0.2
"""Seconds between two looks for the next recording of that name."""
_PATIENCE_NS: Final = 30_000_000_000
"""So long after --until it goes on reading what was recorded before, faster than it reads."""

_EPILOG: Final = f"""\\b
WHEN is one of
{MOMENTS.format(now="now")}
  +5, +5s                          that long after now
A time of day is for --until the next one, where the last is before --since, or farther from now.

\\b
The columns: time of day in UTC, label and pid, thread, event. An event is shown a quarter of a
second after it happened at most, so that all processes' events come in the order of time. Lines
that begin with -- are no events: a process joined, left or died, or so many of its events were
overwritten before they could be read; or somebody wrote over its ring, so that a batch cannot be
read, or its count of batches is not to be believed: then what is in whole batches is shown. With
--json these are objects whose kind is "joined", "left", "died", "gap" (with `lost`), "damage" or
"doubted" (with `text`), and "ended" or "begun" of the recording itself.

\\b
Where filters or --until are given, -n looks back through the newest {follow.LOOKED_BACK} batches
of each process, which is all of a ring of the default size.

\\b
When the recording ends it says so and waits for the next one of that name, whose events it shows
from their beginning; with --no-wait it ends there. With --until it ends when that time has passed.
Ctrl-C ends it, with status {128 + signal.SIGINT}, and so does a reader that goes away, with
{128 + signal.SIGPIPE}.

\\b
Nothing is written to the recording, and no process is asked for anything.

\\b
Examples:
  shmrec-dump tail web
  shmrec-dump tail web --kind exception --kind log
  shmrec-dump tail web --pid 4242 --since 5s
  shmrec-dump tail web --since 1m --until +30s --json > minute.jsonl
  shmrec-dump tail web -n 0 --json | jq -c 'select(.kind == "end" and .duration_ns > 1e9)'
"""


@click.command("tail", epilog=_EPILOG, short_help="Follow the events as they are recorded.")
@recording_arguments
@filter_options
@click.option(
    "-n",
    "--lines",
    "count",
    type=click.IntRange(0),
    help=f"Begin with the last so many of those; {_LAST}, unless --since is given.",
)
@click.option("--since", type=to_moment, metavar="WHEN", help="Begin with those from then on.")
@click.option("--until", type=to_moment, metavar="WHEN", help="End when that time has passed.")
@click.option("--no-wait", is_flag=True, help="End when the recording does.")
@json_option
def command(
    name: str | None,
    path: str | None,
    wanted: Wanted,
    count: int | None,
    since: Moment | None,
    until: Moment | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Follow the events of recording NAME, of all processes in time order, one a line.

    Read from shared memory as it is: no process is asked, flushed or delayed.
    """
    now = Now.read()
    since_ns = since.at(now.mono, now.wall) if since is not None else None
    if count is None and since is None:
        count = _LAST
    until_ns = until.ending(now.mono, now.wall, since_ns) if until is not None else None
    output = Output(wanted, since_ns, until_ns, as_json)
    try:
        segment = open_lasting(name, path)
        if segment.field("boot_id") != process.boot_id():
            raise SegmentError(
                f"recording {segment.name!r} is of another boot of the machine, nothing is "
                "recorded into it any more: `shmrec-dump recover` reads it"
            )
        follower = Follower(segment)
        _catch_up(follower, output, count)
        while True:
            if not _follow(segment, follower, output):
                return
            output.say(
                segment.name, ENDED, "has ended" + (": waiting for the next" * (not no_wait))
            )
            if no_wait:
                return
            following = _next(segment, output)
            if following is None:
                return
            segment = following
            follower = Follower(segment)
            follower.from_the_beginning()
            output.say(segment.name, BEGUN, "has begun anew")
    except KeyboardInterrupt:
        # Whoever types Ctrl-C has seen enough.
        sys.exit(128 + signal.SIGINT)


def _catch_up(follower: Follower, output: Output, count: int | None) -> None:
    """What was recorded already, as far as it is wanted."""
    if count == 0 and output.since_ns is None:
        follower.from_now()
        return
    whole = output.wanted.everything and output.since_ns is None and output.until_ns is None
    follower.back(count=count if whole else None, since_ns=output.since_ns)
    began = time.monotonic_ns()
    enough = began if output.until_ns is None else min(began, output.until_ns)
    last: deque[Event | Note] = deque(maxlen=count)
    doubts: dict[int, Note] = {}
    with progress("looking back") as tick:
        over = False
        while not over:
            found = output.chosen(follower.poll(time.monotonic_ns()))
            # Of what is recorded faster than it is read, all that was there is what counts.
            over = not follower.behind or follower.complete_ns >= enough
            if not follower.behind:
                found += output.chosen(follower.poll(time.monotonic_ns(), drain=True))
            for each in found:
                if isinstance(each, Event) or count is None:
                    last.append(each)
                elif each.kind == DOUBTED:
                    doubts[each.producer] = each
            if count is None and last:
                tick.give_way()
                output.print(last)
                last.clear()
            tick()
    output.print([*last, *doubts.values()])


def _follow(segment: Segment, follower: Follower, output: Output) -> bool:
    """Print what comes until the recording ends; False: the time for it has passed before."""
    while True:
        over = has_ended(segment)
        now = time.monotonic_ns()
        found = follower.poll(now)
        over = over and not follower.behind
        if over:
            found += follower.poll(time.monotonic_ns(), drain=True)
        output.print(output.chosen(found))
        if _passed(output.until_ns, now, follower):
            if follower.complete_ns < (output.until_ns or 0):
                warn("it is recorded faster than read: not all events until then were printed")
            return False
        if over:
            return True
        if not follower.behind:
            output.wait(_EVERY)


def _passed(until_ns: int | None, now: int, follower: Follower | None = None) -> bool:
    """Whether that time has passed, and all that was recorded by then has been printed."""
    if until_ns is None:
        return False
    complete = follower.complete_ns if follower is not None else now
    return complete >= until_ns or now >= until_ns + _PATIENCE_NS


def _next(ended: Segment, output: Output) -> Segment | None:
    """The next recording of that name, when it is there; None: the time for it has passed."""
    run = ended.field("run_id")
    ended.close()
    while True:
        segment = open_next(ended.name, ended.path, run)
        if segment is not None:
            return segment
        if _passed(output.until_ns, time.monotonic_ns()):
            return None
        output.wait(_AGAIN)
