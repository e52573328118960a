"""The directory of snapshots: where it is, what files are called, which ones may stay.

Runs in the collector and in tools. How a file comes to have its name is said in `hidden`, which
writes it; who writes into the directory finds that here as well.

An incident is the snapshots of one recording that nobody asked for, with no gap of more than
`INCIDENT_SECONDS`. The name of its first one says so, and the quota takes the others before it.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shmrec.errors import NoSuchSnapshotError, SnapshotWriteError
from shmrec.layout import TRIGGERS

__all__ = [
    "Stored",
    "default_directory",
    "enforce_quota",
    "last_of_incident",
    "listing",
    "newest",
]

SUFFIX: Final = ".shmrec"
RAW_SUFFIX: Final = ".segment"
DEATH: Final = "death"
"""What the reason of a death snapshot's file name starts with."""
FIRST: Final = "first"
"""What follows the reason in the name of an incident's first snapshot."""
INCIDENT_SECONDS: Final = 600.0
DEFAULT_COUNT: Final = 100
DEFAULT_BYTES: Final = 1 << 30
_REASON_LIMIT: Final = 48
_NAME: Final = re.compile(
    r"(?P<recording>.+)-(?P<time>\d{8}T\d{6}Z)-(?P<reason>[a-z0-9-]*)-(?P<n>\d+)"
    r"(?P<suffix>\.shmrec|\.segment)\Z"
)
_AUTOMATIC: Final = tuple(kind.replace("_", "-") for kind in TRIGGERS if kind != "request")
"""What the reasons of snapshots that nobody asked for start with."""
_BLOCK: Final = 512
_AHEAD_NS: Final = 600_000_000_000
"""The clock of a disk that is elsewhere may be so far ahead of ours."""


@dataclass(frozen=True)
class Stored:
    """A snapshot file by its name: `taken` in seconds since the epoch, `reason` a slug.

    `first`: of an incident.
    """

    path: Path
    recording: str
    taken: float
    reason: str
    size: int
    modified_ns: int
    first: bool = False

    @property
    def death(self) -> bool:
        """Whether it was taken because a producer died."""
        return self._starts_with(DEATH)

    @property
    def automatic(self) -> bool:
        """Whether nobody asked for it, as far as its name tells."""
        return self.first or any(map(self._starts_with, _AUTOMATIC))

    def order(self, latest_ns: int) -> tuple[bool, int, str]:
        """What to sort by, the oldest first, where none is newer than `latest_ns`.

        One that says it is was written before the clock was set back.
        """
        return self.modified_ns <= latest_ns, self.modified_ns, self.path.name

    def _starts_with(self, words: str) -> bool:
        return self.reason == words or self.reason.startswith(f"{words}-")


def default_directory() -> Path:
    """``$SHMREC_DIR``, else ``$XDG_STATE_HOME/shmrec``, else ``~/.local/state/shmrec``."""
    given = os.environ.get("SHMREC_DIR")
    if given:
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state and os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "shmrec"


def slug(reason: str) -> str:
    """The reason as a part of a file name: lower case letters, digits and hyphens.

    It never ends as the name of an incident's first snapshot does.
    """
    words = re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")
    words = words[:_REASON_LIMIT].strip("-")
    while words.endswith(f"-{FIRST}"):
        words = words.removesuffix(f"-{FIRST}")
    return words or "snapshot"


def file_names(recording: str, reason: str, wall_ns: int, *, first: bool = False) -> Iterator[str]:
    """``<recording>-<UTC time>-<reason>-<n>.shmrec`` for n = 1, 2, ...

    That of an incident's first snapshot has ``-first`` behind the reason.
    """
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall_ns // 1_000_000_000))
    mark = f"-{FIRST}" if first else ""
    n = 0
    while True:
        n += 1
        yield f"{recording}-{when}-{slug(reason)}{mark}-{n}{SUFFIX}"


def check_free(output: Path) -> None:
    """Raise `SnapshotWriteError` unless a new file can be called that."""
    if os.path.lexists(output):
        raise _taken(output)
    if not output.parent.is_dir():
        raise SnapshotWriteError(f"cannot write {output}: there is no directory {output.parent}")


def only_name(output: Path) -> Iterator[str]:
    """A name that somebody chose, for `Unfinished.publish`: there is no other."""
    yield output.name
    raise _taken(output)


def _taken(output: Path) -> SnapshotWriteError:
    return SnapshotWriteError(f"{output} exists: name another file, none is ever replaced")


def is_name(name: str) -> bool:
    """Whether a snapshot may be called that."""
    return _NAME.match(name) is not None and name.endswith(SUFFIX)


def raw_names(recording: str, wall_ns: int) -> Iterator[str]:
    """Names for a segment kept as it was because it could not be read."""
    for name in file_names(recording, "unreadable", wall_ns):
        yield name.removesuffix(SUFFIX) + RAW_SUFFIX


def listing(directory: Path, *, raw: bool = False) -> list[Stored]:
    """The snapshots in the directory, newest first; empty if there is none.

    With `raw`, also the segments that were kept because they could not be read.
    """
    found = []
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return []
    for entry in entries:
        matched = _NAME.match(entry.name)
        if matched is None or not entry.is_file(follow_symlinks=False):
            continue
        if matched["suffix"] != SUFFIX and not raw:
            continue
        try:
            seen = entry.stat(follow_symlinks=False)
            taken = time.strptime(matched["time"], "%Y%m%dT%H%M%SZ")
        except (OSError, ValueError):
            continue
        reason = matched["reason"]
        found.append(
            Stored(
                Path(entry.path),
                matched["recording"],
                float(calendar.timegm(taken)),
                reason.removesuffix(f"-{FIRST}"),
                min(seen.st_size, seen.st_blocks * _BLOCK) if raw else seen.st_size,
                seen.st_mtime_ns,
                reason.endswith(f"-{FIRST}"),
            )
        )
    latest = time.time_ns() + _AHEAD_NS
    found.sort(key=lambda stored: stored.order(latest), reverse=True)
    return found


def newest(directory: Path) -> Path:
    """The newest snapshot; `NoSuchSnapshotError` if there is none."""
    found = listing(directory)
    if not found:
        raise NoSuchSnapshotError(
            f"no snapshot in {directory}: take one with `shmrec-dump snapshot NAME`, or name a "
            "file or another directory (SHMREC_DIR)"
        )
    return found[0].path


def last_of_incident(directory: Path, recording: str) -> float | None:
    """When the recording's newest snapshot that nobody asked for was taken, by the names.

    In seconds since the epoch; None if there is none.
    """
    taken = [
        stored.taken
        for stored in listing(directory)
        if stored.recording == recording and stored.automatic
    ]
    return max(taken, default=None)


def enforce_quota(
    directory: Path,
    *,
    count: int,
    size: int,
    latest: Path | None = None,
    remove: Callable[[Path], None] = Path.unlink,
) -> list[Path]:
    """Remove the oldest snapshots beyond `count` files or `size` bytes; say which.

    `latest` has just been written: whatever the clocks say, none is newer. The first snapshots of
    incidents go when nothing else is left. The newest snapshot, the newest death snapshot, and the
    first one of the newest incident always stay.
    """
    found = listing(directory, raw=True)
    written = [stored.modified_ns for stored in found if stored.path == latest]
    newest_ns = written[0] if written else time.time_ns() + _AHEAD_NS
    found.sort(key=lambda stored: stored.order(newest_ns), reverse=True)
    protected = {stored.path for stored in found[:1]}
    protected |= {stored.path for stored in [s for s in found if s.death][:1]}
    protected |= {stored.path for stored in [s for s in found if s.first][:1]}
    number, total = len(found), sum(stored.size for stored in found)
    removed = []
    for stored in sorted(found, key=lambda each: (each.first, *each.order(newest_ns))):
        if number <= count and total <= size:
            break
        if stored.path in protected:
            continue
        with contextlib.suppress(OSError):
            remove(stored.path)  # step: remove
            removed.append(stored.path)
            number -= 1
            total -= stored.size
    return removed
