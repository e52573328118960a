"""``shmrec-dump top``: what every process of a recording is doing, on the whole screen."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any, Final

import click

from shmrec import live
from shmrec.commands.jsonform import dumps, live_object, recording_object
from shmrec.commands.options import defaulted
from shmrec.commands.parameters import (
    Now,
    has_ended,
    json_option,
    open_lasting,
    open_next,
    open_recording,
    recording_arguments,
)
from shmrec.commands.requesting import Asked
from shmrec.commands.screen import Part, Screen
from shmrec.commands.topview import COLUMNS, SORTS, View, disbelieved, rows
from shmrec.observer import Observer, Sighting
from shmrec.segment import Segment

_REASON: Final = "requested from top"
_SAID_NS: Final = 30_000_000_000
"""How long what happened once is shown: to be read, and a path to be taken from the screen."""

_EPILOG: Final = f"""\b
Keys:
  q, Ctrl-C      leave
  s              have the collector take a snapshot; its path is shown
  /              show only processes that have the text: pid, label, state, open spans
  < >            order by the next column: {", ".join(SORTS)}
  r              the other way round
  up down enter  select a process, and show its threads
  a              show the threads of all
  d              show processes that left in order, too
  p              stand still
  ?              all keys

\b
Columns: events a second and processor time since the look before; what is resident; events that
were lost (not those overwritten by newer ones, as a full ring does); the last event; the oldest
request that is open, or the oldest span where there is none; what the same thread is inside of
besides, and how many more spans are open. Where there is no room, columns are left out.

\b
A ! before the pid: somebody wrote over its ring, so that not all of it is to be believed. What is
whole is shown, and a line says what is not.

\b
When the recording ends it says so, and goes on with the next one of that name. Exit status: 0 at
q, {128 + signal.SIGINT} at Ctrl-C, 2 where standard output or input is no terminal.

\b
Examples:
  shmrec-dump top web
  shmrec-dump top web --sort rss --interval 0.5
  shmrec-dump top web --once
  shmrec-dump top web --json | jq -r '.producers[] | [.pid, .rss, .rate] | @tsv'
"""


@click.command("top", epilog=_EPILOG, short_help="Watch what each process is doing.")
@recording_arguments
@defaulted("-d, --interval", click.FloatRange(0.1, 3600), 1.0, "Seconds between two looks.")
@defaulted("--sort", click.Choice(tuple(SORTS)), "oldest", "What comes first.")
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--filter", "needle", default="", metavar="TEXT", help="Only what has the text.")
@click.option("--threads", is_flag=True, help="With the threads of each process.")
@click.option("--all", "everything", is_flag=True, help="Processes that left in order, too.")
@click.option("--once", is_flag=True, help="Print it once, as text, after one interval.")
@json_option
def command(
    name: str | None,
    path: str | None,
    interval: float,
    sort: str,
    reverse: bool,
    needle: str,
    threads: bool,
    everything: bool,
    once: bool,
    as_json: bool,
) -> None:
    """Watch the processes of recording NAME: states, rates, what they are inside of, memory.

    Read from shared memory as it is: no process is asked, flushed or delayed.
    """
    view = View(sort, reverse, needle, everything, all_expanded=threads)
    if once or as_json:
        with open_recording(name, path) as segment:
            observer = Observer(segment)
            observer.look(time.monotonic_ns())
            time.sleep(interval)
            now = time.monotonic_ns()
            sightings = observer.look(now)
            recording = live.look(segment)
        if as_json:
            found = recording_object(recording)
            chosen = view.chosen(sightings)
            found["producers"] = [_object(each, now) for each in chosen]
            click.echo(dumps(found))
        else:
            _print(view, recording, sightings, now)
        return
    # Imported here: neither of the others needs it.
    from shmrec.commands import fullscreen

    lacking = fullscreen.missing()
    if lacking:
        raise click.UsageError(
            f"top needs a terminal, and {lacking}: --once prints one look as text, --json as JSON",
            click.get_current_context(),
        )
    segment = open_lasting(name, path)
    try:
        with fullscreen.Fullscreen() as screen:
            _Top(view, segment, interval, screen).run()
    except fullscreen.Left as left:
        # Whoever typed Ctrl-C knows; nobody else is there to be told.
        sys.exit(128 + left.number)


def _object(sighting: Sighting, now: int) -> dict[str, Any]:
    found = live_object(sighting, now)
    found["rate"] = sighting.rate
    found["cpu_percent"] = sighting.cpu
    found["rss"] = sighting.rss
    found["threads"] = sighting.threads
    return found


def _print(view: View, recording: live.Recording, sightings: list[Sighting], now: int) -> None:
    from shmrec.commands.topframe import summary

    screen = Screen()
    for line in summary(recording, sightings, recording.name):
        screen.line(*line)
    screen.line()
    table = [row.cells for row in rows(view, sightings, now)]
    if table:
        screen.table([column.heading for column in COLUMNS], table, indent=2)
    else:
        screen.line("No process.", indent=2)
    for doubt in disbelieved(view.chosen(sightings)):
        screen.line((doubt, "bad"))


class _Top:
    """The screen, look by look."""

    def __init__(self, view: View, segment: Segment, interval: float, screen: Any) -> None:
        self._view = view
        self._segment: Segment | None = segment
        self._of: Final = segment.name, segment.path
        self._run = segment.field("run_id")
        self._observer = Observer(segment)
        self._interval_ns: Final = int(interval * 1e9)
        self._screen = screen
        self._recording: live.Recording | None = None
        self._sightings: list[Sighting] = []
        self._asked: Asked | None = None
        self._message: Part = ""
        self._said_ns = 0
        self._seen: tuple[int, int] = (0, 0)

    def run(self) -> None:
        """Until somebody leaves."""
        from shmrec.commands.topframe import frame

        view, due = self._view, 0
        while not view.over:
            now = time.monotonic_ns()
            if now >= due and not view.paused:
                self._look()
                due = now + self._interval_ns
            self._answered()
            if self._asked is None and now - self._said_ns > _SAID_NS:
                self._message = ""
            width, height = self._screen.size
            lines, shown = frame(
                view,
                self._recording,
                self._sightings,
                name=self._of[0],
                now=self._seen,
                message=self._message,
                width=width,
                height=height,
            )
            self._screen.draw(lines, (width, height))
            left = due - time.monotonic_ns() if not view.paused else self._interval_ns
            for key in self._screen.pressed(left / 1e9):
                view.press(key, shown, max(1, height - 6))
            if view.snapshot:
                view.snapshot = False
                self._ask()

    def _look(self) -> None:
        """See how everybody is; of a recording that has ended, whether there is another."""
        if self._segment is None:
            segment = open_next(*self._of, self._run)
            if segment is None:
                self._seen = Now.read()
                return
            self._segment, self._run = segment, segment.field("run_id")
            self._observer = Observer(segment)
            self._say("the recording has begun anew", "good")
        if has_ended(self._segment):
            self._segment.close()
            self._segment = self._recording = None
            self._sightings = []
            return
        self._seen = Now.read()
        self._sightings = self._observer.look(self._seen[0])
        self._recording = live.look(self._segment)

    def _ask(self) -> None:
        if self._asked is None:
            self._message = "waiting for a snapshot"
            self._asked = Asked(*self._of, _REASON, self._screen.wake)

    def _answered(self) -> None:
        if self._asked is not None and self._asked.said:
            self._say(self._asked.said, "bad" if self._asked.failed else "good")
            self._asked = None

    def _say(self, text: str, style: str) -> None:
        self._message, self._said_ns = (text, style), time.monotonic_ns()
