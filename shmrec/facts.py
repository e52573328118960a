"""What the kernel says of a producer's process: its facts, second by second.

Runs in the collector. A sample is one read of ``/proc/PID/stat``, and of the size of
``/proc/PID/fd`` where the kernel gives it (Linux 6.2); what costs more is read seldom. Nothing is
kept open between samples: that would save a third of a sample, and cost two descriptors for
each producer. Source of the format: proc(5).

Invariants: a row is only ever of the very process that started at `start_ticks`, and never of
a zombie, which has nothing left; the rows of a minute are kept, packed, whatever becomes of the
process.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from typing import Any, Final

from shmrec import process, syscalls
from shmrec.manifest import FACTS

__all__ = ["Facts"]

ROWS: Final = 60
RARELY: Final = 5
"""Ticks between two readings of what costs more than a sample."""

_ROW: Final = struct.Struct(f"<{len(FACTS) - 1}qc")
_FILES_A_TICK: Final = 200
"""Descriptors that a tick of listing pays for: one that has many is listed all the less often."""
_THREADS_LOOKED_AT: Final = 64
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_AT_MOST: Final = (1 << 63) - 1
_READ_BYTES: Final = 16 * 1024
_WORD_LIMIT: Final = 64


class Facts:
    """The facts of one process."""

    def __init__(self, pid: int, start_ticks: int) -> None:
        self._pid: Final = pid
        self._start: Final = start_ticks
        self._folder: Final = f"/proc/{pid}"
        self._rows: deque[bytes] = deque(maxlen=ROWS)
        self._newest = b""
        self._peak = 0
        self._tick = -1
        self.looked_closely = False
        """Whether the last sample was taken closely."""
        self._listed_at = 0

    @property
    def rows(self) -> list[list[Any]]:
        """Rows of `manifest.FACTS`, oldest first."""
        rows = list(self._rows)
        if self._newest:
            rows.append(self._newest)
        return [
            [*numbers, state.decode("ascii", "replace")]
            for *numbers, state in map(_ROW.unpack, rows)
        ]

    @property
    def peak_rss(self) -> int:
        """The most bytes it was ever seen or said to have resident; 0 if not known."""
        return self._peak

    def sample(self, now: int, *, closely: bool = False) -> bool:
        """The row of a tick; False if the process has ended.

        Or, `closely`, a row with all that can be read, which stands until the next: however
        many snapshots are taken, the minute is a minute.
        """
        seen = process.stat(self._pid)
        if seen is None or seen.state in "ZX" or seen.start_ticks != self._start:
            return False
        if not closely:
            self._tick += 1
        self.looked_closely = closely or self._tick % RARELY == 0
        rss = seen.resident_pages * _PAGE
        self._peak = max(self._peak, rss, self._high_water() if self.looked_closely else 0)
        row = now, rss, seen.processor_ticks * _TICK_NS, seen.threads, self._files()
        if all(-1 <= number <= _AT_MOST for number in row):
            packed = _ROW.pack(*row, seen.state.encode("ascii", "replace")[:1])
            self._newest = packed if closely else b""
            if not closely:
                self._rows.append(packed)
        return True

    def doing(self) -> dict[str, Any]:
        """What it is at, as `manifest.Producer.doing` has it."""
        found: dict[str, Any] = {}
        wchan = self._text("wchan")
        # The kernel says 0 where it is in no call, and to who may not know.
        if wchan and wchan != "0":
            found["wchan"] = wchan[:_WORD_LIMIT]
        syscall = syscalls.named(self._text("syscall"))
        if syscall:
            found["syscall"] = syscall
        seen = process.stat(self._pid)
        if not found or seen is None or seen.start_ticks != self._start:
            return {}
        return {**found, "time_ns": time.monotonic_ns(), **self._running(seen.threads)}

    def _running(self, threads: int) -> dict[str, Any]:
        """Which of its threads run; nothing where it has one, or very many, or none can be seen."""
        if not 1 < threads <= _THREADS_LOOKED_AT:
            return {}
        try:
            names = os.listdir(f"{self._folder}/task")[:_THREADS_LOOKED_AT]
        except OSError:
            return {}
        states = {int(name): process.stat(int(name)) for name in names}
        return {"running": [each for each, seen in states.items() if seen and seen.state == "R"]}

    def _files(self) -> int:
        """How many descriptors it has open; -1 where that was not read, or could not be."""
        try:
            size = os.stat(f"{self._folder}/fd").st_size
            if size:
                return size
            if not self.looked_closely or self._tick < self._listed_at:
                return -1
            count = len(os.listdir(f"{self._folder}/fd"))
            self._listed_at = self._tick + count // _FILES_A_TICK
            return count
        except OSError:
            return -1

    def _high_water(self) -> int:
        for line in self._text("status").splitlines():
            if line.startswith("VmHWM:"):
                words = line.split()
                if len(words) == 3 and words[1].isdecimal() and words[2] == "kB":
                    return min(int(words[1]) * 1024, _AT_MOST)
        return 0

    def _text(self, name: str) -> str:
        """A file of the process; empty where it cannot be read."""
        try:
            fd = os.open(f"{self._folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(fd, _READ_BYTES).decode("ascii", "replace").strip()
            finally:
                os.close(fd)
        except OSError:
            return ""
