"""The only place that maps what others share: create, open, lock.

Runs in every process. A segment is either POSIX shared memory named ``/shmrec.<recording>``
or a file given by path. Nothing in it is believed before its owner, mode (`access`), size and
geometry (`header`) have been checked.

The lock is a POSIX record lock (``lockf``) on the segment itself, not ``flock``: a child that
was forked after its parent gave up root cannot open the segment again, and on the inherited
descriptor ``flock`` would not exclude parent from child. The kernel releases either when the
holder dies. A record lock is lost when its process closes *any* descriptor of the file, so
closing and locking exclude each other within a process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import time
from _thread import RLock
from collections.abc import Iterator, Mapping
from typing import Final

from shmrec import cuts, fence, header, layout, process
from shmrec.access import open_checked
from shmrec.errors import (
    CutShortError,
    LockedError,
    SegmentError,
    SpaceError,
    UnfinishedSegmentError,
)
from shmrec.layout import CONTROL, TRIGGERS, Geometry, SegmentState
from shmrec.naming import DIRECTORY, check_name, remove, shm_path

__all__ = [
    "Segment",
    "create",
    "open_segment",
]

_READY_SECONDS: Final = 1.0
HEARTBEAT_NS: Final = 10_000_000_000
"""A collector that has not ticked for so long does not serve any more."""
PLAUSIBLE: Final = (1 << 62) - 1
"""A mask that leaves room to add to a word."""
LOCK_SECONDS: Final = 10.0
_LOCK_POLL_SECONDS: Final = 0.001
_COUNTING_SECONDS: Final = 0.02
_COPIED_AT_ONCE: Final = 1 << 20

# By process: what another thread of its parent's held, nobody in a child would ever release.
_closings: Final[dict[int, RLock]] = {}
os.register_at_fork(after_in_child=_closings.clear)


def _closing() -> RLock:
    """What closing and locking hold; this process's own, also where C code has forked it."""
    return _closings.setdefault(os.getpid(), RLock())


class OwnWords:
    """What this process, as the collector, last wrote where nobody else may write.

    `generation` is 0 before the first. `began` is the time of each generation's beginning, of as
    many as the control block remembers.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.began: dict[int, int] = {}


class Segment:
    """An open segment: its bytes, its words, its geometry.

    `view` is the whole mapping as bytes, `words` the same as 8-byte native words. A forked
    child inherits both. `writable` is False for readers that only look.
    """

    def __init__(
        self, name: str, path: str | None, fd: int, writable: bool, remnant: int = 0
    ) -> None:
        """With `remnant` a copy of what is left of a segment that once had so many bytes."""
        size = remnant or os.fstat(fd).st_size
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.name: Final = name
        self.path: Final = path
        self.fd: int = fd
        self._holders: dict[str, int] = {}
        self.writable: Final = writable
        self._map = _copied(fd, size) if remnant else mmap.mmap(fd, size, mmap.MAP_SHARED, access)
        self.view = memoryview(self._map)
        self._watch = cuts.NOWHERE if remnant else cuts.watch(self.view, fd)
        self.words: memoryview[int] = self.view[: size - size % layout.WORD].cast("Q")
        self.geometry = Geometry()
        self.own = OwnWords()

    @property
    def cut(self) -> bool:
        """Whether somebody has cut the memory short. What is gone reads as zeros, if it does."""
        return cuts.was_cut(self._watch) or self.left < len(self.view)

    @property
    def left(self) -> int:
        """How many of its bytes are there."""
        return min(os.fstat(self.fd).st_size, len(self.view))

    def word(self, name: str) -> int:
        """The control block's word of that name."""
        return self.words[CONTROL.word(name)]

    def set_word(self, name: str, value: int) -> None:
        """Store one of the control block's words; only its writing side may."""
        self.words[CONTROL.word(name)] = value

    def bump(self, name: str) -> None:
        """Add one to a counter, whatever somebody may have scribbled there."""
        self.set_word(name, (self.word(name) & PLAUSIBLE) + 1)

    def suppressed(self) -> dict[str, int]:
        """Snapshots not taken because of limits, by each of TRIGGERS."""
        first = CONTROL.word("suppressed")
        counts = self.words[first : first + len(TRIGGERS)]
        return {kind: count & PLAUSIBLE for kind, count in zip(TRIGGERS, counts, strict=True)}

    def set_suppressed(self, counts: Mapping[str, int]) -> None:
        """Set them; only the collector may."""
        first = CONTROL.word("suppressed")
        for place, kind in enumerate(TRIGGERS, first):
            self.words[place] = counts[kind]

    def field(self, name: str) -> bytes:
        """The bytes of one of the control block's fields."""
        return bytes(self.view[CONTROL.bytes_at(name)])

    def set_field(self, name: str, raw: bytes) -> None:
        """Store one of the control block's fields, NUL padded."""
        where = CONTROL.bytes_at(name)
        self.view[where] = raw.ljust(where.stop - where.start, b"\0")

    @property
    def recorded_name(self) -> str:
        """The recording's name as the segment itself says it."""
        return _text(self.field("name"))

    @property
    def state(self) -> int:
        """A `SegmentState`."""
        return self.word("state")

    def collector(self) -> int | None:
        """The pid of the live collector, or None."""
        if not self.same_boot():
            return None
        pid = self.word("collector_pid")
        return pid if process.alive(pid, self.word("collector_start")) else None

    def foreign_and_alive(self) -> bool:
        """Whether a collector that we cannot see, in another pid namespace, still serves it."""
        silence = time.monotonic_ns() - self.word("heartbeat_ns")
        return (
            self.state == SegmentState.OPEN
            and self.field("boot_id") == process.boot_id()
            and not self.same_boot()
            and silence < HEARTBEAT_NS
        )

    def take_over(self) -> None:
        """Make this process the recording's collector; under the lock."""
        self.set_word("collector_start", process.start_ticks(os.getpid()))  # step: adopt
        self.set_word("collector_pid", os.getpid())  # step: adopt
        self.set_word("heartbeat_ns", time.monotonic_ns())  # step: adopt
        self.set_word("state", SegmentState.OPEN)  # step: adopt

    def same_boot(self) -> bool:
        """Whether pids in the segment mean anything here: same boot, same pid namespace."""
        return (
            self.field("boot_id") == process.boot_id()
            and self.word("pid_namespace") == process.pid_namespace()
        )

    def locked(self, timeout: float = LOCK_SECONDS) -> contextlib.AbstractContextManager[None]:
        """Hold the segment's lock: for attaching, request slots, and taking over.

        `timeout` in seconds: a process that was stopped while it held the lock must not stop
        the others. Raises `LockedError` when it is over.
        """
        return self._holding("lock", timeout)

    def count_busy(self, change: int) -> bool:
        """Count a process that found the lock held and goes on without a ring, or no longer does.

        Under a lock that nobody waits under, so that who has been refused the other gets this;
        whether it was counted, for a process that is stopped here keeps it from the others.
        """
        try:
            with self._holding("busy_lock", _COUNTING_SECONDS):
                counted = (self.word("refused_busy") & PLAUSIBLE) + change
                self.set_word("refused_busy", max(0, counted))
                return True
        except LockedError:
            return False

    def refused(self) -> int:
        """Processes that are not recorded, for want of a ring, of memory, or of the lock."""
        words = ("refused_full", "refused_space", "refused_busy")
        return sum(self.word(name) & PLAUSIBLE for name in words)

    @contextlib.contextmanager
    def _holding(self, field: str, timeout: float) -> Iterator[None]:
        deadline = time.monotonic() + timeout
        while True:
            # Not while it waits: other threads lock and close segments of their own.
            with _closing():
                # A signal handler may come here while this very thread holds the lock.
                nested = self._holders.get(field) == os.getpid()
                try:
                    # Acquired in here, for a signal handler may raise as the call returns;
                    # releasing what was not acquired is harmless.
                    if nested or self._acquired(field):
                        self._holders[field] = os.getpid()
                        yield
                        return
                finally:
                    if not nested:
                        self._holders[field] = 0
                        self._lock(field, fcntl.LOCK_UN)
            if time.monotonic() > deadline:
                raise LockedError(
                    f"recording {self.name!r} has been locked by another process for "
                    f"{timeout:g} s: is one of its processes stopped?"
                )
            time.sleep(_LOCK_POLL_SECONDS)

    def _acquired(self, field: str) -> bool:
        """Lock it if no other process has; whether it is locked."""
        try:
            self._lock(field, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        return True

    def _lock(self, field: str, command: int) -> None:
        where = CONTROL.bytes_at(field)
        fcntl.lockf(self.fd, command, where.stop - where.start, where.start)

    def reserve(self, offset: int, size: int) -> None:
        """Give the range real pages now; raises `SpaceError` instead of a later SIGBUS."""
        try:
            os.posix_fallocate(self.fd, offset, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
                raise SpaceError(
                    f"no room for {size} bytes of recording {self.name!r} in "
                    f"{self.path or DIRECTORY}: enlarge it (a container's default is 64 MB), or "
                    "record with smaller or fewer rings"
                ) from error
            raise SegmentError(
                f"cannot reserve memory for recording {self.name!r}: {error}"
            ) from error

    def linked(self) -> bool:
        """Whether the name still leads to this very segment."""
        try:
            there = os.stat(self.path or shm_path(self.name), follow_symlinks=False)
        except OSError:
            return False
        here = os.fstat(self.fd)
        return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)

    def close(self) -> None:
        """Unmap and close; twice is harmless. Views handed out must be released before."""
        with _closing():
            if self.fd < 0:
                return
            cuts.unwatch(self._watch)
            self.words.release()
            self.view.release()
            self._map.close()
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _copied(fd: int, size: int) -> mmap.mmap:
    """Memory of our own with what the file has; zeros behind."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, size, flags)
    with memoryview(memory) as view:
        at = 0
        while at < size and (got := os.preadv(fd, [view[at : at + _COPIED_AT_ONCE]], at)):
            at += got
    return memory


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def create(
    name: str,
    geometry: Geometry,
    *,
    path: str | None = None,
    keep_size: int,
    keep_period_ns: int,
    collected: bool = False,
) -> Segment:
    """A new segment, sparse but for its tables; `FileExistsError` if the name is taken.

    With `collected` this process is its collector from the first moment on, so that no other
    collector can mistake it for an abandoned one. Raises `SpaceError` if even the tables do
    not fit.
    """
    check_name(name)
    fd = open_checked(name, path, writable=True, create=True)
    try:
        # umask may have taken bits away; a reader insists on exactly the owner's.
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, geometry.segment_size)
        segment = Segment(name, path, fd, writable=True)
    except OSError as error:
        os.close(fd)
        remove(name, path)
        raise SpaceError(f"no room for recording {name!r}: {error}") from error
    try:
        with segment.locked():
            segment.reserve(0, geometry.rings_offset)
            segment.geometry = geometry
            for field, value in header.words(geometry, keep_size, keep_period_ns).items():
                segment.set_word(field, value)
            for field, raw in header.texts(name).items():
                segment.set_field(field, raw)
            if collected:
                segment.take_over()
            fence.release()
            segment.set_word("magic", layout.SEGMENT_MAGIC)  # step: made
    except BaseException:
        segment.close()
        remove(name, path)
        raise
    return segment


def open_segment(name: str, path: str | None = None, *, writable: bool = True) -> Segment:
    """An existing segment, its header checked against its size and this version's layout.

    One that was cut short is only there to be read: ``Segment.cut`` says so. Raises
    `NoSuchRecordingError`, `WrongOwnerError`, `LayoutMismatchError`.
    """
    if path is None:
        check_name(name)
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        fd = open_checked(name, path, writable, create=False)
        try:
            whole = os.fstat(fd).st_size >= CONTROL.size
            # Read, not looked at: until its creator has reserved them its pages are holes, and to
            # touch one where there is no memory left ends a process with SIGBUS.
            whole = whole and any(os.pread(fd, layout.WORD, CONTROL["magic"]))
            segment = Segment(name, path, fd, writable) if whole else None
        except OSError as error:
            os.close(fd)
            raise SegmentError(f"cannot map recording {name!r}: {error.strerror}") from error
        except ValueError:
            # Nothing to map: its creator is at it, or died between open and ftruncate.
            segment = None
        if segment is not None and segment.word("magic"):
            break
        if segment is not None:
            segment.close()
        else:
            os.close(fd)
        if time.monotonic() > deadline:
            raise UnfinishedSegmentError(
                f"recording {name!r} was never finished being created, or was cut short by a "
                "process that has it open: remove it with `shmrec-dump clean`"
            )
        time.sleep(0.01)
    try:
        fence.acquire()
        segment.geometry = header.checked_geometry(name, segment.word, len(segment.view))
    except CutShortError:
        if writable:
            segment.close()
            raise
        return _remnant(segment)
    except BaseException:
        segment.close()
        raise
    return segment


def _remnant(cut: Segment) -> Segment:
    """What is left of a segment that was cut short, to be read like a whole one."""
    size = cut.word("segment_size")
    try:
        with cut:
            fd = os.dup(cut.fd)
        try:
            found = Segment(cut.name, cut.path, fd, writable=False, remnant=size)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise SegmentError(f"cannot map recording {cut.name!r}: {error.strerror}") from error
    try:
        # Of the copy, which nobody can change any more.
        found.geometry = header.checked_geometry(found.name, found.word, size)
    except BaseException:
        found.close()
        raise
    return found
