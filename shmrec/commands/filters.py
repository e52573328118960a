"""Which events are wanted: the options and tests that `events` and `tail` share.

Runs in ``shmrec-dump``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, wraps
from typing import Any, Final, TypeVar

import click

from shmrec.decoder import Event
from shmrec.events import KINDS

__all__ = ["MOMENTS", "Wanted", "filter_options"]

_F = TypeVar("_F", bound=Callable[..., Any])

MOMENTS: Final = """\
  5, -5, 5s, 250ms, 2m, "5s ago"   that long before {now} (ns us ms s m h d)
  12:30:05.25                      a time of day, UTC, as printed in the first column
  2026-01-31T12:30:05.25Z          ISO 8601; UTC unless it says otherwise"""
"""What a WHEN may be, for a verb's help."""


@dataclass(frozen=True)
class Wanted:
    """What the options say."""

    pids: tuple[int, ...] = ()
    thread: str | None = None
    kinds: tuple[str, ...] = ()
    name: str | None = None

    @property
    def everything(self) -> bool:
        """Whether there is nothing that is not wanted."""
        return self == Wanted()

    def matching(
        self, *, since_ns: int | None = None, until_ns: int | None = None
    ) -> Callable[[list[Event]], list[Event]]:
        """What takes those out of a list of events that are wanted, and in that time."""
        tests: list[Callable[[Event], bool]] = []
        if self.pids:
            pids = frozenset(self.pids)
            tests.append(lambda event: event.pid in pids)
        if self.thread is not None:
            thread = self.thread
            tests.append(lambda event: thread in (str(event.thread), event.thread_name))
        if self.kinds:
            tests.append(lambda event: event.kind in self.kinds)
        if self.name is not None:
            pattern = self.name
            # Names are few and come again and again.
            matches = lru_cache(lambda text: fnmatchcase(text, pattern))
            tests.append(lambda event: matches(event.name))
        if since_ns is not None:
            first = since_ns
            tests.append(lambda event: event.time_ns >= first)
        if until_ns is not None:
            last = until_ns
            tests.append(lambda event: event.time_ns <= last)

        def match(run: list[Event]) -> list[Event]:
            for test in tests:
                run = list(filter(test, run))
            return run

        return match


def filter_options(function: _F) -> _F:
    """``--pid``, ``--thread``, ``--kind``, ``--name``; the verb gets `wanted`."""

    @wraps(function)
    def collected(
        *args: Any,
        pids: tuple[int, ...],
        thread: str | None,
        kinds: tuple[str, ...],
        only_name: str | None,
        **others: Any,
    ) -> Any:
        return function(*args, wanted=Wanted(pids, thread, kinds, only_name), **others)

    options = (
        click.option(
            "--pid", "pids", type=int, multiple=True, help="Of this process; may be repeated."
        ),
        click.option("--thread", help="Of this thread, by its id or its name."),
        click.option(
            "--kind",
            "kinds",
            type=click.Choice([kind.name for kind in KINDS if kind.counted]),
            multiple=True,
            help="Of this kind; may be repeated.",
        ),
        click.option(
            "--name",
            "only_name",
            metavar="PATTERN",
            help="With a name that matches this shell pattern.",
        ),
    )
    found: Any = collected
    for option in reversed(options):
        found = option(found)
    result: _F = found
    return result
