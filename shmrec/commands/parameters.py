"""What the verbs take: a snapshot file, a recording, a moment, ``--dir``, ``--json``.

Runs in ``shmrec-dump``. What may be left out is looked for here, so that every verb looks in
the same places.
"""

from __future__ import annotations

import contextlib
import os
import re
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from shmrec import live, store
from shmrec.capture import CUT_SHORT
from shmrec.commands.progress import Tick
from shmrec.commands.terminal import warn
from shmrec.commands.wording import some
from shmrec.errors import NoSuchRecordingError, UnfinishedSegmentError
from shmrec.layout import SegmentState
from shmrec.naming import names
from shmrec.segment import Segment, open_segment
from shmrec.snapshot_file import Snapshot, read

__all__ = [
    "Moment",
    "Now",
    "complete_recording",
    "complete_snapshot",
    "directory_option",
    "file_argument",
    "has_ended",
    "json_option",
    "located",
    "open_lasting",
    "open_next",
    "open_recording",
    "open_snapshot",
    "recording_arguments",
    "to_moment",
]

_F = TypeVar("_F", bound=Callable[..., Any])

_SECOND: Final = 1_000_000_000
_DAY: Final = 86_400 * _SECOND
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}
_AMOUNT: Final = r"(\d+(?:\.\d*)?|\.\d+)\s*(ns|us|ms|s|m|h|d)?"
_AGO: Final = re.compile(rf"-?{_AMOUNT}(?:\s+ago)?\Z")
_AFTER: Final = re.compile(rf"\+{_AMOUNT}\Z")


def directory_option(function: _F) -> _F:
    """``--dir``; the verb gets `directory`."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path),
        default=store.default_directory,
        callback=lambda context, parameter, value: value.absolute(),
        show_default="$SHMREC_DIR, else shmrec in $XDG_STATE_HOME or ~/.local/state",
        help="The directory of snapshots.",
    )(function)


def json_option(function: _F) -> _F:
    """``--json``; the verb gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def file_argument(function: _F) -> _F:
    """``[FILE]``; the verb gets `file` for `open_snapshot`."""
    return click.argument(
        "file",
        required=False,
        type=click.Path(path_type=Path),
        shell_complete=complete_snapshot,
    )(function)


def open_snapshot(
    file: Path | None, directory: Path, tick: Tick | None = None, *, passes: int = 1
) -> Snapshot:
    """The snapshot in `file`, by default the newest in the directory.

    A plain name that is not here is that of a file in the directory. `tick` is told how far
    reading has come, of so many times through the file.
    """
    path = located(file, directory)
    if tick is None:
        return read(path)
    with contextlib.suppress(OSError):
        tick.expect(passes * path.stat().st_size, f"reading {path.name}")
    return read(path, tick)


def located(file: Path | None, directory: Path) -> Path:
    """Where the snapshot is that the argument names."""
    if file is None:
        return store.newest(directory)
    if file.name == str(file) and not os.path.lexists(file):
        there = directory / file
        return there if os.path.lexists(there) else file
    return file


def recording_arguments(function: _F) -> _F:
    """``[NAME]`` and ``--path FILE``; the verb gets `name` and `path` for `open_recording`."""
    option = click.option(
        "--path", type=click.Path(), help="A recording whose memory is this file, instead of NAME."
    )
    argument = click.argument("name", required=False, shell_complete=complete_recording)
    return argument(option(function))


def complete_recording(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The recordings that are there; nothing of them is opened."""
    return [CompletionItem(name) for name in names() if name.startswith(incomplete)]


def complete_snapshot(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The snapshots of the directory, the newest first; where none fits, any file that is here."""
    directory = context.params.get("directory") or store.default_directory()
    found = [
        stored.path.name
        for stored in store.listing(Path(directory))
        # A shell shows it on its terminal.
        if stored.path.name.startswith(incomplete) and stored.path.name.isprintable()
    ]
    return [CompletionItem(name) for name in found] or [CompletionItem(incomplete, type="file")]


@contextlib.contextmanager
def open_recording(
    name: str | None, path: str | None, *, writable: bool = False
) -> Iterator[Segment]:
    """The segment of the recording that the arguments name, by default of the only one.

    Whoever used it is told afterwards if a part of it was not there any more.
    """
    with open_lasting(name, path, writable=writable) as segment:
        yield segment
        if segment.cut:
            warn(
                f"recording {segment.name!r}: {CUT_SHORT}, {segment.left:,} of "
                f"{len(segment.view):,} bytes are left: what is missing was read as nothing"
            )


def open_lasting(name: str | None, path: str | None, *, writable: bool = False) -> Segment:
    """As `open_recording`, for who goes on with the next one of that name by itself."""
    if name is not None and path is not None:
        raise _wrong("give the NAME of a recording, or --path FILE, not both")
    if path is None:
        name = name if name is not None else _only_name()
        return open_segment(name, writable=writable)
    path = os.path.abspath(path)
    with open_segment(path, path, writable=False) as segment:
        called = segment.recorded_name
    return open_segment(called or path, path, writable=writable)


def has_ended(segment: Segment) -> bool:
    """Whether nothing more is recorded into it, its memory was cut, or its name leads elsewhere."""
    return segment.cut or segment.state == SegmentState.CLOSED or not segment.linked()


def open_next(name: str, path: str | None, run: bytes) -> Segment | None:
    """The recording of that name if it is another one than the `run` that ended, else None."""
    try:
        segment = open_segment(name, path, writable=False)
    except (NoSuchRecordingError, UnfinishedSegmentError):
        return None
    if segment.field("run_id") != run:
        return segment
    # Its memory was left; whoever starts the recording again replaces it.
    segment.close()
    return None


def _only_name() -> str:
    """The name of the one recording that can be read; `UsageError` names them if there are more."""
    unreadable = (live.UNREADABLE, live.UNFINISHED)
    found = [each for each in live.recordings() if each.state not in unreadable]
    if len(found) == 1:
        return found[0].name
    give = "give the NAME of a recording, or --path FILE"
    if not found:
        raise _wrong(f"{give}: there is none in shared memory that could be meant")
    there = some(f"{each.name} ({each.state})" for each in found)
    raise _wrong(f"{give}: there are {len(found)}: {there}")


def _wrong(text: str) -> click.UsageError:
    return click.UsageError(text, click.get_current_context(silent=True))


class Now(NamedTuple):
    """The two clocks at one moment; what a live recording's times are told by."""

    mono: int
    wall: int

    @classmethod
    def read(cls) -> Now:
        return cls(clock.monotonic_ns(), clock.time_ns())

    def wall_ns(self, time_ns: int) -> int:
        """CLOCK_MONOTONIC nanoseconds as nanoseconds since the epoch."""
        return self.wall + time_ns - self.mono


@dataclass(frozen=True)
class Moment:
    """A moment: so long before now, or by the wall clock; of a snapshot, now is when it was taken.

    `ago_ns`, or `wall_ns`, or `of_day_ns`, the last time before now when a clock showed it.
    """

    ago_ns: int | None = None
    wall_ns: int | None = None
    of_day_ns: int | None = None

    def mono_ns(self, snapshot: Snapshot, *, end: bool = False) -> int:
        """The moment before the snapshot was taken; see `at`."""
        header = snapshot.header
        return self.at(header.taken_mono_ns, header.taken_wall_ns, end=end)

    def at(self, now_mono_ns: int, now_wall_ns: int, *, end: bool = False) -> int:
        """CLOCK_MONOTONIC nanoseconds of the host that recorded, by what its clocks showed.

        A wall-clock moment stands for its whole microsecond, as the tools print no more;
        `end` asks for its last nanosecond.
        """
        if self.ago_ns is not None:
            return now_mono_ns - self.ago_ns
        wall_ns = self.wall_ns
        if wall_ns is None:
            assert self.of_day_ns is not None
            wall_ns = now_wall_ns // _DAY * _DAY + self.of_day_ns
            if wall_ns > now_wall_ns:
                wall_ns -= _DAY
        return now_mono_ns + wall_ns - now_wall_ns + (999 if end else 0)

    def ending(self, now_mono_ns: int, now_wall_ns: int, since_ns: int | None) -> int:
        """As `at`, of the end of what is still going on: a time of day may be yet to come.

        That is the last before now, or the next one where the last is before `since_ns`, or
        where, without it, the next one is nearer.
        """
        found = self.at(now_mono_ns, now_wall_ns, end=True)
        earliest = now_mono_ns - _DAY // 2 if since_ns is None else since_ns
        return found + _DAY * (self.of_day_ns is not None and found < earliest)


def to_moment(value: str) -> Moment:
    """Click's conversion of ``5``, ``-5``, ``250ms``, ``"5s ago"``, a time of day, or ISO 8601.

    ``+5`` is so long after now.
    """
    text = value.strip().lower().replace("µ", "u")
    for pattern, sign in ((_AGO, 1), (_AFTER, -1)):
        found = pattern.match(text)
        if found is not None:
            seconds = float(found[1]) * _UNITS[found[2] or "s"]
            return Moment(ago_ns=sign * round(seconds * _SECOND))
    try:
        if re.match(r"\d{4}-", text):
            when = datetime.fromisoformat(text.upper())
            when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
            since = when - datetime(1970, 1, 1, tzinfo=UTC)
            return Moment(wall_ns=since // timedelta(microseconds=1) * 1_000)
        return Moment(of_day_ns=_of_day_ns(time.fromisoformat(text.removesuffix("z"))))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{value!r} is no moment: write 5 or 250ms (before the snapshot), 12:30:05.25, or "
            "2026-01-31T12:30:05Z"
        ) from error


def _of_day_ns(of_day: time) -> int:
    seconds = of_day.hour * 3600 + of_day.minute * 60 + of_day.second
    return (seconds * 1_000_000 + of_day.microsecond) * 1_000
