"""Events that can be missed: numbered without a hole, and acknowledged when the call returned.

Runs in the processes of a trial. Whoever reads the acknowledgements afterwards knows which numbers
must be in a snapshot, whatever became of the process. Imports next to nothing, so that a process
of a trial is as light as any that is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERED = "numbered"
"""The instants: they have a number, `n`, and their thread's own, `t`."""


class Account:
    """Records numbered instants, and writes down each that has been recorded.

    A forked child counts from 0 again, as another process. `instant` is what records.
    """

    def __init__(self, path: str, instant: Callable[..., Any]) -> None:
        self._path = path
        self._instant = instant
        self._pid = 0
        self._fd = -1
        self._next: dict[int, int] = {}

    def record(self, count: int = 1, thread: int = 0) -> None:
        """Record so many more, as the thread of that number."""
        pid = os.getpid()
        if pid != self._pid:
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            self._pid, self._next = pid, {}
        for _ in range(count):
            number = self._next.get(thread, 0)
            self._next[thread] = number + 1
            self._instant(NUMBERED, n=number, t=thread)
            # One write, appended whole, however many processes write there.
            os.write(self._fd, b"%d %d %d\n" % (pid, thread, number))


def acknowledged(path: Path) -> dict[tuple[int, int], int]:
    """The last number by process and thread."""
    found: dict[tuple[int, int], int] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            pid, thread, number = map(int, line.split())
            found[pid, thread] = number
    return found
