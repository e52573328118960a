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

from typing import TYPE_CHECKING, Any

from shmrec import interpreters as _interpreters
from shmrec._version import __version__
from shmrec.errors import InterpreterError as _InterpreterError
from shmrec.errors import ShmrecError, SnapshotActiveError

try:
    # First: msgpack, where it is refused, crashes whoever loads it later (Python 3.12).
    import posix_ipc as _posix_ipc  # noqa: F401

    from shmrec import recorder as _recorder
    from shmrec.recorder import Recorder, attach
except ImportError:
    # From Python 3.12 on posix_ipc loads in no interpreter that has a GIL of its own.
    if _interpreters.in_main():
        raise
    raise _InterpreterError(f"shmrec cannot be imported: {_interpreters.REFUSAL}") from None

if TYPE_CHECKING:
    from shmrec.decoder import Event, OpenSpan
    from shmrec.flight import FlightRecorder
    from shmrec.snapshot_file import Snapshot, read

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

# What a producer does not need is imported when it is asked for.
_LATER = {
    "Event": "decoder",
    "FlightRecorder": "flight",
    "OpenSpan": "decoder",
    "Snapshot": "snapshot_file",
    "read": "snapshot_file",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
