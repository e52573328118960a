"""How far a tool has come, where that takes over a second: a bar on a terminal, for people.

Runs in the command-line tools. On standard error, so that the output stays what it is, and only
where that is a terminal. What is done says so by calling a `Tick` now and then; there is no
thread. The bar goes before anything else is printed beside it, and at the end.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from shmrec.commands.wording import safe

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Tick", "progress"]

_AFTER: Final = 0.6
"""Seconds before it is shown: what is over by then needs no bar."""
_EVERY: Final = 0.1


class Tick:
    """Called with how much more is done; `expect` says of how much."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._total = 0
        self._done = 0
        self._due = time.monotonic() + _AFTER
        self._bar: Progress | None = None
        self._wanted = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def expect(self, total: int, what: str = "") -> None:
        """So much more there is to do; `what` is it, from now on."""
        self._total += total
        self._what = what or self._what

    def __call__(self, more: int = 0) -> None:
        """So much more has been done."""
        self._done += more
        if not self._wanted or time.monotonic() < self._due:
            return
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task(safe(self._what), total=None)
        total = self._total or None
        done = min(self._done, self._total) if total else 0
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, refresh=True)
        self._due = time.monotonic() + _EVERY

    def stop(self) -> None:
        """It is over, or something else is to be shown."""
        self._wanted = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def give_way(self) -> None:
        """Output follows: where it is on a terminal, the bar goes."""
        if sys.stdout.isatty():
            self.stop()


def _bar() -> Progress:
    # Imported here, because hardly anything takes so long.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    class Plain(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Left as it is: who is killed meanwhile would leave a terminal without."""
            return False

    colours: Any = None if os.environ.get("NO_COLOR") else "auto"
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        console=Plain(file=sys.stderr, color_system=colours, highlight=False, emoji=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def progress(what: str) -> Iterator[Tick]:
    """A tick for what takes long; where nothing is expected, only that it goes on is shown."""
    tick = Tick(what)
    try:
        yield tick
    finally:
        tick.stop()
