"""What producers say they have recorded, kept where their death cannot take it away.

A book is a small file that a producer maps: for each of its threads how many calls it has begun
and how many have returned, stored right before and right after each call. The kernel keeps the
pages whatever happens to the process. `Book` is the producer's side, `Shelf` the side of the trial.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from shmrec import process

__all__ = ["LEAVING", "THREADS", "Book", "Key", "Read", "Sample", "Shelf"]

THREADS: Final = 250
_HEAD: Final = 4
_BYTES: Final = 4096
_SUFFIX: Final = ".book"
_DEPTH, _LEAVES = 0, 1
LEAVING: Final = 1
_SAMPLES: Final = 3000


class Key(NamedTuple):
    """A process, which its pid alone does not tell for ever."""

    pid: int
    start_ticks: int


class Book:
    """This process's book. Thread k's calls are row k."""

    def __init__(self, folder: Path, depth: int) -> None:
        key = Key(os.getpid(), process.start_ticks(os.getpid()))
        hidden = folder / f".{key.pid}-{key.start_ticks}"
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, _BYTES)
        self._map = mmap.mmap(fd, _BYTES)
        os.close(fd)
        self.words = memoryview(self._map).cast("Q")
        self.words[_DEPTH] = depth
        hidden.rename(folder / f"{key.pid}-{key.start_ticks}{_SUFFIX}")

    @staticmethod
    def row(thread: int) -> tuple[int, int]:
        """Where a thread's two words are: begun, returned."""
        return _HEAD + 2 * thread, _HEAD + 2 * thread + 1

    def leave(self) -> None:
        """Say that the process is about to leave in order, before it does."""
        self.words[_LEAVES] = LEAVING


class Read(NamedTuple):
    """A book's contents at one moment: calls begun and returned, by thread."""

    begun: list[int]
    returned: list[int]
    depth: int
    leaves: bool


def _used(row: list[int]) -> list[int]:
    """Without the threads that there never were; a thread that was has begun a call at least."""
    used = len(row)
    while used and not row[used - 1]:
        used -= 1
    return row[:used]


class _Open:
    """A book whose process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._map = mmap.mmap(fd, _BYTES, prot=mmap.PROT_READ)
        os.close(fd)
        self._words = memoryview(self._map).cast("Q")

    def read(self) -> Read:
        """Returned calls first: at no moment have more returned than begun."""
        returned = _used(self._words[_HEAD + 1 :: 2].tolist())
        begun = _used(self._words[_HEAD::2].tolist())
        return Read(begun, returned, self._words[_DEPTH], self._words[_LEAVES] == LEAVING)

    def close(self) -> None:
        self._words.release()
        self._map.close()
        self.path.unlink()


@dataclass
class Sample:
    """What had returned at a time, and who had a ring then, by the segment's entries."""

    wall_ns: int = 0
    returned: dict[Key, list[int]] = field(default_factory=dict)
    run: str = ""
    owners: dict[Key, int] = field(default_factory=dict)


class Shelf:
    """All books of a trial, those of processes that have gone included; and samples of them.

    Its methods may be called from any thread.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Key, _Open] = {}
        self._closed: dict[Key, Read] = {}
        self._samples: list[Sample] = []
        self._lock = threading.RLock()

    def look(self) -> None:
        """Find new books, and close those of processes that have gone."""
        with self._lock:
            for path in self._folder.glob(f"*{_SUFFIX}"):
                key = Key(*map(int, path.stem.split("-")))
                if key not in self._open:
                    self._open[key] = _Open(path)
            for key, book in list(self._open.items()):
                if not process.alive(*key):
                    self._closed[key] = book.read()
                    del self._open[key]
                    book.close()

    def read(self, key: Key) -> Read | None:
        """A book as it is now; None if there is none."""
        with self._lock:
            if key not in self._open and key not in self._closed:
                self.look()
            book = self._open.get(key)
            return book.read() if book is not None else self._closed.get(key)

    def living(self) -> list[Key]:
        """The processes that have a book and had not gone at the last look."""
        with self._lock:
            return list(self._open)

    def all(self) -> list[Read]:
        """Every book that there ever was, as it is now."""
        with self._lock:
            return [*self._closed.values(), *(book.read() for book in self._open.values())]

    def sample(self, run: str, owners: dict[Key, int]) -> None:
        """Note what has returned by now, in the recording with that id."""
        with self._lock:
            self.look()
            # Others have nothing in any ring.
            keys = self._open.keys() | owners.keys()
            books = {key: read for key in keys if (read := self.read(key)) is not None}
            returned = {key: read.returned for key, read in books.items()}
            self._samples.append(Sample(time.time_ns(), returned, run, owners))
            del self._samples[:-_SAMPLES]

    def before(self, wall_ns: int) -> Sample:
        """The newest sample taken before that time: all in it had returned by then."""
        with self._lock:
            at = bisect_right(self._samples, wall_ns, key=lambda sample: sample.wall_ns)
            return self._samples[at - 1] if at else Sample()
