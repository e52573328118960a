"""Files that have no name of their own yet, or never get one: written, handed over, left behind.

Runs in the collector, which writes snapshots and sweeps; in whoever has one handed over; in tools,
which write snapshots, exports and reports.

Invariant: a file appears under its final name whole or not at all. It is written unnamed (or under
a hidden name where the file system has no ``O_TMPFILE``), synced, and linked without ever
replacing a file; then the directory is synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat as stat_module
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from shmrec import process
from shmrec.durable import DurableFile
from shmrec.errors import SnapshotWriteError

__all__ = ["HIDDEN_PREFIX", "Unfinished", "sweep", "take_transfer", "transfer_names"]

HIDDEN_PREFIX: Final = ".shmrec-"
_TRANSFER: Final = re.compile(r"\.shmrec-[0-9a-f]{16}\.transfer\Z")
_PID_DIGITS: Final = 8
"""Of the name of a transfer, the hexadecimal digits that say who wrote it."""
_NO_SYNC: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that have no such thing as syncing a directory."""
_ABANDONED_SECONDS: Final = 600.0


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


def _partial_name() -> str:
    """A name for a file that is not whole, or has not its name, yet; `sweep` knows its writer."""
    return f"{HIDDEN_PREFIX}{os.getpid()}-{time.monotonic_ns()}.partial"


def transfer_names() -> Iterator[str]:
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
