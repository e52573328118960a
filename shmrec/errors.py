"""Every exception that shmrec raises, under one root.

Used by all processes. A message says what happened, to what, and what to do about it;
the command-line tools print it as one line and never as a traceback.
"""

from __future__ import annotations

__all__ = [
    "AlreadyStartedError",
    "AttachError",
    "CollectorError",
    "CollectorRunningError",
    "CutShortError",
    "DamagedFileError",
    "EngineError",
    "InterpreterError",
    "LayoutMismatchError",
    "LockedError",
    "MissingPackageError",
    "NoSuchProcessError",
    "NoSuchRecordingError",
    "NoSuchSnapshotError",
    "NotComparableError",
    "NotStartedError",
    "RecordingNameError",
    "RequestFailedError",
    "RingsTakenError",
    "SegmentError",
    "ShmrecError",
    "SnapshotActiveError",
    "SnapshotWriteError",
    "SpaceError",
    "SuppressedError",
    "TriggerError",
    "UnfinishedSegmentError",
    "WrongOwnerError",
]


class ShmrecError(Exception):
    """The root of every error that shmrec raises."""


class RecordingNameError(ShmrecError, ValueError):
    """A recording's name is empty, too long, or holds a character that it may not."""


class TriggerError(ShmrecError, ValueError):
    """A text describes no trigger; the message says why, with an example of one that does."""


class EngineError(ShmrecError):
    """The engine asked for through ``SHMREC_ENGINE`` cannot serve; the message says why."""


class SegmentError(ShmrecError):
    """A shared-memory segment cannot be created, opened or believed."""


class NoSuchRecordingError(SegmentError):
    """No segment with that name, or its recording has been closed."""


class LayoutMismatchError(SegmentError):
    """The segment was made by another version, machine or namespace, or is damaged."""


class CutShortError(LayoutMismatchError):
    """A process that has the segment open cut it short; what is left of it can be read."""


class UnfinishedSegmentError(LayoutMismatchError):
    """The segment's creator died before it was whole; nothing was ever recorded in it."""


class WrongOwnerError(SegmentError):
    """The segment belongs to another user, or others may open it."""


class LockedError(SegmentError):
    """Another process has held the segment's lock for too long."""


class SpaceError(SegmentError):
    """The shared-memory file system has no room for what was asked."""


class AttachError(ShmrecError):
    """A process cannot join a recording as a producer."""


class InterpreterError(AttachError, ImportError):
    """This is not the process's main interpreter: nothing can be recorded from here.

    Where the interpreter cannot load what shmrec needs, importing shmrec raises it.
    """


class RingsTakenError(AttachError):
    """Every ring of the recording belongs to a live process or holds unsaved evidence."""


class NoSuchProcessError(ShmrecError):
    """The process that was named is not in the recording."""


class CollectorError(ShmrecError):
    """The collector could not be started or does not answer."""


class CollectorRunningError(CollectorError):
    """A live collector serves the recording already."""


class RequestFailedError(CollectorError):
    """The collector took a request and could not fulfil it; the message is its answer."""


class SuppressedError(CollectorError):
    """A limit of the trigger forbade the snapshot; the collector counted it."""


class SnapshotActiveError(CollectorError):
    """As many snapshot requests as fit are under way: use the result of one of those.

    The counterpart of ``ErrSnapshotActive`` in Go's ``golang.org/x/exp/trace``.
    """


class AlreadyStartedError(ShmrecError):
    """``FlightRecorder.start`` on a recorder that is running."""


class NotStartedError(ShmrecError):
    """``stop``, ``write_to`` or ``snapshot`` on a recorder that is not running."""


class SnapshotWriteError(ShmrecError):
    """A snapshot could not be written; nothing stands under its final name."""


class DamagedFileError(ShmrecError):
    """A file is not a snapshot, or nothing in it can be read."""


class NoSuchSnapshotError(ShmrecError):
    """The snapshot that was asked for is not there."""


class NotComparableError(ShmrecError):
    """Two snapshots have nothing in common that could be compared."""


class MissingPackageError(ShmrecError):
    """A package is missing that only this needs; the message says which extra has it."""
