"""The directory of snapshots: where it is, what files are called, which ones may stay.

Runs in the collector and in tools. A file appears under its final name whole or not at all:
it is written unnamed (or under a hidden name where the file system has no ``O_TMPFILE``),
synced, and linked without ever replacing a file; then the directory is synced.

An incident is the snapshots of one recording that nobody asked for, with no gap of more than
`INCIDENT_SECONDS`. The name of its first one says so, and the quota takes the others before it.
"""

from __future__ import annotations

import calendar
import contextlib
import errno
import os
import re
import stat as stat_module
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from shmrec import process
from shmrec.durable import DurableFile
from shmrec.errors import NoSuchSnapshotError, SnapshotWriteError
from shmrec.layout import TRIGGERS

__all__ = [
    "Stored",
    "Unfinished",
    "default_directory",
    "enforce_quota",
    "last_of_incident",
    "listing",
    "newest",
]

SUFFIX: Final = ".shmrec"
RAW_SUFFIX: Final = ".segment"
HIDDEN_PREFIX: Final = ".shmrec-"
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
_TRANSFER: Final = re.compile(r"\.shmrec-[0-9a-f]{16}\.transfer\Z")
_PID_DIGITS: Final = 8
"""Of the name of a transfer, the hexadecimal digits that say who wrote it."""
_BLOCK: Final = 512
_NO_SYNC: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that have no such thing as syncing a directory."""
_ABANDONED_SECONDS: Final = 600.0
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


class Unfinished:
    """A snapshot being written; `publish` gives it its name, leaving without doing so none.

    `file` is open for writing, unbuffered. `what` is what messages call it, if it is no snapshot.
    Use as a context manager; raises `SnapshotWriteError`.
    `doubt` says afterwards what is to be said of a file that has its name all the same, or "".
    """

    def __init__(self, directory: Path, what: str = "") -> None:
        self._directory = directory
        self._what = what or "a snapshot"
        place = "the directory" if what else "the snapshot directory"
        self._hidden: Path | None = None
        self.doubt = ""
        try:
            self._folder = os.open(
                directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError as error:
            raise SnapshotWriteError(
                f"cannot open {place} {directory}: {error.strerror}"
            ) from error
        try:
            fd = self._create()
        except OSError as error:
            os.close(self._folder)
            raise SnapshotWriteError(
                f"cannot write in {place} {directory}: {error.strerror}"
            ) from error
        self.file: IO[bytes] = DurableFile(fd)

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            fd = os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._folder)  # step: temporary
            if os.path.exists(_own(fd)):
                return fd
            # Without /proc it could never be given a name.
            os.close(fd)
        except (OSError, AttributeError) as error:
            refused = getattr(error, "errno", errno.EOPNOTSUPP)
            if refused not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
        name = _partial_name()
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=self._folder)  # step: temporary
        self._hidden = self._directory / name
        return fd

    def publish(self, names: Iterator[str]) -> Path:
        """Sync, and link under the first of `names` that is free."""
        try:
            fd = self.file.fileno()
            os.fchmod(fd, 0o600)
            os.fsync(fd)  # step: sync
            for name in names:
                try:
                    self._link(fd, name)  # step: link
                except FileExistsError:
                    continue
                self._sync_name(name)
                return self._directory / name
        except OSError as error:
            raise SnapshotWriteError(
                f"cannot write {self._what} in {self._directory}: {error.strerror}; the older "
                "ones are untouched"
            ) from error
        raise SnapshotWriteError(f"every name for {self._what} in {self._directory} is taken")

    def _sync_name(self, name: str) -> None:
        # The file is whole, on disk, and has its name: to call that a failure would be to have it
        # written again, and told twice.
        try:
            os.fsync(self._folder)  # step: sync-directory
        except OSError as error:
            if error.errno in _NO_SYNC:
                return
            self.doubt = (
                f"{self._directory / name} is whole, but its directory could not be synced "
                f"({error.strerror}): copy it elsewhere, it may be gone if the machine loses power"
            )

    @property
    def readable(self) -> Path:
        """Where this process can read what has been written, before it has a name."""
        if self._hidden is not None:
            return self._hidden
        return Path(_own(self.file.fileno()))

    def replace(self, name: str, old: os.stat_result) -> None:
        """Sync, and take the place of the file of that name, which `old` is.

        Its owner and times are kept, for a snapshot's age is that of its file; not its mode.
        Raises OSError.
        """
        fd = self.file.fileno()
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(old.st_atime_ns, old.st_mtime_ns))
        os.fsync(fd)
        if self._hidden is None:
            hidden = _partial_name()
            self._link(fd, hidden)
            self._hidden = self._directory / hidden
        os.rename(self._hidden.name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._hidden = None
        self._sync_name(name)

    def _link(self, fd: int, name: str) -> None:
        if self._hidden is None:
            os.link(_own(fd), name, dst_dir_fd=self._folder, follow_symlinks=True)
        else:
            os.link(
                self._hidden.name,
                name,
                src_dir_fd=self._folder,
                dst_dir_fd=self._folder,
                follow_symlinks=False,
            )

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, *_: object) -> None:
        # Some file systems tell on closing what a full disk refused; that has been told.
        with contextlib.suppress(OSError):
            self.file.close()
        if self._hidden is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._hidden.name, dir_fd=self._folder)
        os.close(self._folder)


def _own(fd: int) -> str:
    """A name for what this process has open."""
    return f"/proc/self/fd/{fd}"


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


def _partial_name() -> str:
    """A name for a file that is not whole, or has not its name, yet; `sweep` knows its writer."""
    return f"{HIDDEN_PREFIX}{os.getpid()}-{time.monotonic_ns()}.partial"


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


def hidden_names() -> Iterator[str]:
    """Names for files that are handed over and removed at once; `sweep` knows their writer."""
    while True:
        yield f"{HIDDEN_PREFIX}{os.getpid():08x}{os.urandom(4).hex()}.transfer"


def take_transfer(path: Path, directory: Path | None = None) -> IO[bytes]:
    """Open a file that was handed over, and remove its name.

    The path came through shared memory: only what such a file looks like, in `directory` if
    that is known, is opened, let alone removed; `SnapshotWriteError` for anything else.
    """
    elsewhere = directory is not None and path.parent != directory.absolute()
    if _TRANSFER.match(path.name) is None or not path.is_absolute() or elsewhere:
        raise SnapshotWriteError(f"{str(path)[:200]!r} is not a snapshot that was handed over")
    # A pipe of that name must keep nobody waiting.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.fdopen(os.open(path, flags), "rb")
    found = os.fstat(file.fileno())
    if not stat_module.S_ISREG(found.st_mode) or (found.st_uid, found.st_nlink) != (
        os.geteuid(),
        1,
    ):
        file.close()
        raise SnapshotWriteError(f"{str(path)[:200]!r} is another's: not taken for a snapshot")
    os.unlink(path)
    return file


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


def sweep(directory: Path) -> None:
    """Remove hidden files that a killed collector or requester left behind."""
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(HIDDEN_PREFIX) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > _ABANDONED_SECONDS or not _writer_alive(entry.name):
                    os.unlink(entry.path)  # step: sweep


def _writer_alive(name: str) -> bool:
    """Whether a hidden file's writer may still be at it, as far as its name tells."""
    said = name.removeprefix(HIDDEN_PREFIX)
    if _TRANSFER.match(name) is not None:
        pid = str(int(said[:_PID_DIGITS], 16))
    else:
        pid = said.split("-")[0] if name.endswith(".partial") else ""
    return not (pid.isdigit() and not process.alive(int(pid), 0))
