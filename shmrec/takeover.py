"""How a collector comes by its segment: create, adopt, or recover and replace.

Runs in the collector's process before it serves, and in ``shmrec-dump recover``. Which it is
gets decided under the segment's lock, so that of two collectors one serves and the other says
so. What an earlier run left is never thrown away unread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shmrec import capture, folder, hidden, layout, naming, process, store
from shmrec import segment as segments
from shmrec.capture import Order
from shmrec.errors import (
    CollectorRunningError,
    CutShortError,
    LayoutMismatchError,
    NoSuchRecordingError,
    SegmentError,
    SnapshotWriteError,
)
from shmrec.layout import Geometry, SegmentState
from shmrec.ring import readers
from shmrec.segment import Segment
from shmrec.told import settle_told
from shmrec.triggers import STACKS, Trigger
from shmrec.wakeup import remove_wakeup

__all__ = ["Settings", "establish", "recover"]

_ATTEMPTS: Final = 20


@dataclass
class Settings:
    """What a collector was asked to do. `size` in bytes per producer, times in seconds.

    `linger`: end by itself that long after the last producer has gone; None: never.
    """

    name: str
    directory: Path = field(default_factory=store.default_directory)
    size: int = layout.DEFAULT_RING_SIZE
    period: float = 10.0
    producers: int = layout.DEFAULT_PRODUCERS
    path: str | None = None
    flushes: int = 2
    deadline: float = 1.0
    linger: float | None = None
    quota_count: int = store.DEFAULT_COUNT
    quota_bytes: int = store.DEFAULT_BYTES
    death_interval: float = 5.0
    triggers: tuple[Trigger, ...] = ()
    """Besides those that there always are."""
    stacks: str = STACKS[0]
    """One of `triggers.STACKS`."""
    log: Callable[[str], None] = lambda message: None


def establish(settings: Settings) -> Segment:
    """Create the recording's segment, or adopt the one of a collector that was killed.

    A segment that nobody lives in any more is recovered to a snapshot and replaced. Raises
    `CollectorRunningError`, `SpaceError`, `WrongOwnerError`, `SnapshotWriteError`.
    """
    naming.check_name(settings.name)
    geometry = Geometry.of(settings.size, settings.producers)
    exposed = folder.prepare(settings.directory)
    if exposed:
        settings.log(exposed)
    hidden.sweep(settings.directory)
    for _ in range(_ATTEMPTS):
        try:
            return segments.create(
                settings.name,
                geometry,
                path=settings.path,
                keep_size=settings.size,
                keep_period_ns=int(settings.period * 1e9),
                collected=True,
            )
        except FileExistsError:
            found = _take_existing(settings)
            if found is not None:
                return found
    raise SegmentError(f"recording {settings.name!r} keeps coming and going: try again")


def _take_existing(settings: Settings) -> Segment | None:
    """Adopt the existing segment, or clear it away and return None."""
    try:
        segment = segments.open_segment(settings.name, settings.path)
    except NoSuchRecordingError:
        return None
    except CutShortError as error:
        _replace_cut(settings, error)
        return None
    except LayoutMismatchError as error:
        _keep_raw(settings, error)
        return None
    try:
        with segment.locked():
            if not segment.linked():
                segment.close()
                return None
            running = segment.collector()
            if running is not None:
                raise CollectorRunningError(
                    f"recording {settings.name!r} already has a collector, pid {running}: stop it "
                    "first, or choose another name"
                )
            if segment.foreign_and_alive():
                raise CollectorRunningError(
                    f"recording {settings.name!r} is served in another pid namespace: stop it "
                    "there, or choose another name"
                )
            # Before anybody is told of: a death is told once, whenever its collector was killed.
            settle_told(segment, settings.directory)
            if segment.state != SegmentState.CLOSED and _inhabited(segment):
                segment.take_over()
                settings.log(f"adopted recording {settings.name!r}")
                return segment
            _replace_stale(segment, settings)
    except BaseException:
        segment.close()
        raise
    segment.close()
    return None


def _inhabited(segment: Segment) -> bool:
    """Whether a live process is attached."""
    if not segment.same_boot():
        return False
    for reader in readers(segment):
        entry = reader.entry()
        if entry.attached and process.alive(entry.pid, entry.start_ticks):
            return True
    return False


def _used(segment: Segment) -> bool:
    return any(reader.incarnation() for reader in readers(segment))


def _replace_stale(segment: Segment, settings: Settings) -> None:
    if _used(segment):
        path = recover(
            segment, settings.directory, reason="recovered before a new start", warn=settings.log
        )
        settings.log(f"recovered what an earlier run of {settings.name!r} left: {path}")
    remove_wakeup(segment)
    naming.remove(settings.name, settings.path)
    # Whoever waits for the lock to attach must not record where nobody will look.
    segment.set_word("state", SegmentState.CLOSED)


def _replace_cut(settings: Settings, error: CutShortError) -> None:
    """Keep what is left of a segment that was cut short; nobody can record in it any more."""
    with segments.open_segment(settings.name, settings.path, writable=False) as segment:
        running = segment.collector()
        if running is not None:
            raise CollectorRunningError(f"{error}; collector {running} is about to notice")
        kept = "nobody had recorded anything"
        if _used(segment):
            kept = f"kept as {recover(segment, settings.directory, reason='cut short')}"
        remove_wakeup(segment)
    settings.log(f"{error}: {kept}, and replaced")
    naming.remove(settings.name, settings.path)


def _keep_raw(settings: Settings, error: LayoutMismatchError) -> None:
    """Put a segment that this version cannot read aside, whole."""
    source = Path(settings.path or f"/dev/shm/{layout.NAME_PREFIX}{settings.name}")
    users = process.users_of(str(source))
    if users:
        raise CollectorRunningError(
            f"recording {settings.name!r} is in use by another version of shmrec, pid {users[0]}: "
            "stop it first, or choose another name"
        )
    with hidden.Unfinished(settings.directory) as unfinished:
        try:
            with open(source, "rb") as memory:
                while chunk := memory.read(1 << 20):
                    # Rings that nobody used are holes; keep them so.
                    if chunk.count(0) == len(chunk):
                        unfinished.file.seek(len(chunk), os.SEEK_CUR)
                    else:
                        unfinished.file.write(chunk)
            unfinished.file.truncate()
        except OSError as failed:
            raise SnapshotWriteError(
                f"recording {settings.name!r} cannot be read by this version, and no copy of it "
                f"be kept in {settings.directory}: {failed.strerror}; it is untouched"
            ) from failed
        path = unfinished.publish(store.raw_names(settings.name, time.time_ns()))
    if unfinished.doubt:
        settings.log(unfinished.doubt)
    settings.log(f"{error}; kept as {path} and replaced")
    naming.remove(settings.name, settings.path)


def recover(
    segment: Segment,
    directory: Path,
    *,
    reason: str = "recovered",
    warn: Callable[[str], None] = lambda message: None,
    stop: Callable[[], bool] = bool,
) -> Path:
    """Write a snapshot of memory that no collector serves, changing nothing in it.

    `warn` is told what somebody should know of one that was written all the same; `stop` is asked
    now and then whether to leave it, and then `CaptureStopped` is raised.
    """
    return capture.take_cold(
        segment,
        Order(
            directory=directory,
            reason=reason,
            trigger="recover",
            size=segment.word("keep_size"),
            period_ns=segment.word("keep_period_ns"),
            warn=warn,
            stop=stop,
        ),
    )
