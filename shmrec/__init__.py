"""shmrec: the flight recorder for multi-process Python.

::

    process --instant, span, counter--> its ring --\\
    process --------------------------> its ring ----> collector --two flushes--> snapshot file
    process (killed)                    its ring --/                                    |
                                                                     read(), shmrec-dump

Every process keeps its last seconds of events in shared memory, which outlives it. A separate
collector process takes a consistent snapshot of all of them when one dies, when asked, or
never. The functions here record with the process's default recorder; before `attach` they do
nothing.
"""

from shmrec import recorder as _recorder
from shmrec._version import __version__
from shmrec.errors import ShmrecError, SnapshotActiveError
from shmrec.events import Event, OpenSpan
from shmrec.flight import FlightRecorder
from shmrec.recorder import Recorder, attach
from shmrec.snapshot import Snapshot, read

__all__ = [
    "Event",
    "FlightRecorder",
    "OpenSpan",
    "Recorder",
    "ShmrecError",
    "Snapshot",
    "SnapshotActiveError",
    "__version__",
    "attach",
    "begin",
    "counter",
    "detach",
    "end",
    "engine",
    "exception",
    "instant",
    "read",
    "snapshot",
    "span",
    "traced",
]

engine = _recorder.default.engine
instant = _recorder.default.instant
span = _recorder.default.span
begin = _recorder.default.begin
end = _recorder.default.end
counter = _recorder.default.counter
exception = _recorder.default.exception
traced = _recorder.default.traced
snapshot = _recorder.default.snapshot
detach = _recorder.default.detach
