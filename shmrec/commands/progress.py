"""How far something is, on standard error, once it has taken a second.

Runs in ``shmrec-dump``. Only on a terminal: what is piped gets nothing.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Steps"]

PATIENCE: Final = 1.0
"""Seconds after which it is shown."""


class Steps:
    """So many steps to go. `advance` is cheap, and may be called with more than there are."""

    def __init__(self, text: str, total: int) -> None:
        self._text = text
        self._total = max(total, 1)
        self._done = 0
        self._show_at = time.monotonic() + PATIENCE
        self._progress: Progress | None = None
        self._terminal = sys.stderr.isatty()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if not self._terminal:
            return
        if self._progress is None:
            if time.monotonic() < self._show_at:
                return
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr, markup=False),
                transient=True,
            )
            self._progress.add_task(self._text, total=self._total)
            self._progress.start()
        task = self._progress.task_ids[0]
        self._progress.update(task, completed=min(self._done, self._total))

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
