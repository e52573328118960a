"""What `tail` prints: events and what is said between them, as lines or as JSON.

Runs in ``shmrec-dump tail``. What it is given is printed at once: who reads a pipe waits for it.
"""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

import click

from shmrec.commands.filters import Wanted
from shmrec.commands.jsonform import dumps, event_object, note_object
from shmrec.commands.parameters import Now
from shmrec.commands.screen import Screen
from shmrec.commands.timeline import event_line, note_line, process_named
from shmrec.commands.wording import safe, wall
from shmrec.decoder import Event
from shmrec.follow import DOUBTED, Note

__all__ = ["BEGUN", "ENDED", "Output"]

ENDED: Final = "ended"
BEGUN: Final = "begun"


class Output:
    """Standard output: lines or JSON of what is wanted."""

    def __init__(
        self, wanted: Wanted, since_ns: int | None, until_ns: int | None, as_json: bool
    ) -> None:
        self.wanted: Final = wanted
        self.since_ns: Final = since_ns
        self.until_ns: Final = until_ns
        self._matching = wanted.matching(since_ns=since_ns, until_ns=until_ns)
        self._json = as_json
        self._screen = Screen()
        self._wide = 0
        self._lost = 0
        self._reader = select.poll()
        self._watched = False
        with contextlib.suppress(OSError, ValueError):
            # Of a pipe one learns like this that nobody reads any more, also while nothing comes.
            self._reader.register(sys.stdout.fileno(), 0)
            self._watched = True

    def chosen(self, found: list[Event | Note]) -> list[Event | Note]:
        """Those that are wanted; notes only of the processes, and of the time."""
        events = [each for each in found if isinstance(each, Event)]
        kept = set(map(id, self._matching(events)))
        return [each for each in found if id(each) in kept or self._said(each)]

    def _said(self, each: Event | Note) -> bool:
        return (
            isinstance(each, Note)
            and (not self.wanted.pids or each.pid in self.wanted.pids)
            and (self.since_ns is None or each.time_ns >= self.since_ns)
            # Of what is shown, whenever it was found.
            and (self.until_ns is None or each.time_ns <= self.until_ns or each.kind == DOUBTED)
        )

    def print(self, found: Iterable[Event | Note]) -> None:
        """Print, and have it read at once."""
        clock = Now.read()
        for each in found:
            self._wide = max(self._wide, len(process_named(each.pid, each.label)))
            if isinstance(each, Note):
                self._lost += each.lost
                if self._json:
                    self._object(note_object(clock, each, self._lost))
                else:
                    line = note_line(clock.wall_ns(each.time_ns), each, self._wide, self._lost)
                    self._screen.stream(*line)
            elif self._json:
                self._object(event_object(clock, each))
            else:
                line = event_line(clock.wall_ns(each.time_ns), each, self._wide)
                self._screen.stream(*line)
        sys.stdout.flush()

    def say(self, recording: str, kind: str, text: str) -> None:
        """Something about the recording as a whole."""
        if self._json:
            now = Now.read()
            found = {"time_ns": now.mono, "wall": wall(now.wall), "kind": kind}
            self._object(found | {"recording": recording})
            sys.stdout.flush()
        click.echo(f"shmrec-dump: recording {safe(recording)} {text}", err=True)

    @staticmethod
    def _object(found: dict[str, Any]) -> None:
        sys.stdout.write(f"{dumps(found)}\n")

    def wait(self, seconds: float) -> None:
        """Wait; raises `BrokenPipeError` as soon as there is nobody to read what would come."""
        if not self._watched:
            time.sleep(seconds)
            return
        for _, happened in self._reader.poll(seconds * 1000):
            if happened & (select.POLLERR | select.POLLHUP):
                raise BrokenPipeError
