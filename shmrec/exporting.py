"""What an exporter is given, and what it is.

Runs in ``shmrec-dump export``. An exporter is a module of `shmrec.exports`; a new one touches
nothing else. It has

- ``HELP``: a line that says what for,
- ``SUFFIXES``: the ends of file names that mean it, the usual one first,
- ``BINARY``: whether a terminal is no place for it,
- ``export(source, out)``, which writes everything to a binary file, in bounded memory,
- and, if what it writes has a second part, ``COMPANION``, the end of that part's file name, and
  ``export_companion(source, out)``.

Its packages beside shmrec's own are imported inside of these, through `package`. Whatever was
recorded is hostile: an exporter escapes as its format demands, and keeps to its ranges of numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from shmrec.decoder import Event
from shmrec.errors import MissingPackageError
from shmrec.forensics import Analysis, analyse
from shmrec.slices import Slice
from shmrec.snapshot_file import Snapshot
from shmrec.stack_text import ThreadStack
from shmrec.tracks import Timeline

__all__ = ["Out", "Source", "package", "slice_name", "stack_texts"]

IN_FLIGHT: Final = " (in flight)"
_CALLS: Final = 128


class Out(Protocol):
    """A binary file, buffered."""

    def write(self, data: bytes, /) -> object: ...


class Source:
    """A snapshot on its way out. `advance` is told of events, a run at a time."""

    def __init__(
        self, snapshot: Snapshot, advance: Callable[[int], object] = lambda count: None
    ) -> None:
        self.snapshot: Final = snapshot
        self._advance = advance
        self._analysis: Analysis | None = None
        self._timeline: Timeline | None = None

    @property
    def analysis(self) -> Analysis:
        """What the analyser says of it, worked out once."""
        if self._analysis is None:
            self._analysis = analyse(self.snapshot)
        return self._analysis

    @property
    def timeline(self) -> Timeline:
        """Its tracks, worked out once."""
        if self._timeline is None:
            self._timeline = Timeline(self.snapshot, self.analysis, self._advance)
        return self._timeline

    def events(self) -> Iterator[Event]:
        """The events as they were recorded, facts as counters among them, in time order."""
        for run in self.snapshot.runs(facts=True):
            yield from run
            self._advance(len(run))


def package(name: str, extra: str) -> Any:
    """A module of a package that is not shmrec's own.

    Raises `MissingPackageError`, which names the extra that has it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"the format {extra} needs the package {name.partition('.')[0]}, which cannot be "
            f"imported ({error}): pip install 'shmrec[{extra}]'"
        ) from error


def slice_name(shown: Slice) -> str:
    """A slice's name; of one that never ended, with a word that says so."""
    return f"{shown.name}{IN_FLIGHT}" if shown.in_flight else shown.name


def stack_texts(stack: ThreadStack) -> list[str]:
    """The calls of a stack, newest first, one text each."""
    calls = [
        f"{frame.function}  {frame.file}:{frame.line if frame.line is not None else '?'}"
        for frame in stack.frames[:_CALLS]
    ]
    if stack.cut or len(stack.frames) > _CALLS:
        calls.append("…")
    return calls
