"""`FlightRecorder`: a recording, its collector and this process in one object.

Runs in the process that owns a recording. The API is that of Go's
``golang.org/x/exp/trace.FlightRecorder`` (NewFlightRecorder, SetPeriod, SetSize, Start, Stop,
Enabled, WriteTo, ErrSnapshotActive), across processes: children that `shmrec.attach` are in
every snapshot.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from shmrec import hidden, layout, process, recorder, requests, store
from shmrec.errors import (
    AlreadyStartedError,
    CollectorError,
    NotStartedError,
)
from shmrec.layout import Stacks, Verb
from shmrec.naming import check_name
from shmrec.recorder import ENVIRONMENT, ENVIRONMENT_PATH, SNAPSHOT_SECONDS, Recorder
from shmrec.segment import Segment, open_segment
from shmrec.triggers import STACKS, check_texts
from shmrec.wakeup import open_wakeup

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["FlightRecorder"]

_CHUNK: Final = 1 << 20
_LINGER_SECONDS: Final = 2.0


class FlightRecorder:
    """Keeps the last seconds of this process and its children, to be written on demand.

    `size` is in bytes per producer and bounds both a ring and what a snapshot keeps of it;
    `period` in seconds bounds the age of what a snapshot keeps. Both are limits that a
    generation (about a second) may cross. `directory` is where snapshots go, by default the
    user's state directory. `path` puts the memory into a file instead of ``/dev/shm``. With
    `exceptions` false this process's hooks for unhandled exceptions stay as they are.
    `triggers` are texts such as ``"slow_span request* 5s"``, see `shmrec.triggers`; `stacks` says
    whose stacks are taken for a snapshot that nobody asked for: those of the "suspects", of
    "all", or of "none". Raises `ValueError` for what it does not understand.

    Methods may be called from any thread of the process that called `start`.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        size: int = layout.DEFAULT_RING_SIZE,
        period: float = 10.0,
        max_producers: int = layout.DEFAULT_PRODUCERS,
        path: str | os.PathLike[str] | None = None,
        exceptions: bool = True,
        triggers: Iterable[str] = (),
        stacks: str = STACKS[0],
    ) -> None:
        self.name: Final = check_name(name) if name is not None else _default_name()
        self._directory = Path(directory) if directory is not None else None
        self._path = os.path.abspath(path) if path is not None else None
        self._exceptions = exceptions
        self.set_size(size)
        self.set_period(period)
        layout.Geometry.of(size, max_producers)
        self._triggers = check_texts(triggers, stacks)
        self._stacks = stacks
        self._producers = max_producers
        # Recursive: a signal handler may stop what its own thread is using.
        self._lock = threading.RLock()
        self._collector = 0, 0
        self._segment: Segment | None = None
        self._wakeup: Any = None
        self._recorder: Recorder | None = None
        self._environment: dict[str, str | None] = {}
        self._pid = 0
        self._users: list[int] = []
        self._idle = threading.Condition(self._lock)

    def set_size(self, size: int) -> None:
        """Bytes per producer, from the next `start` on; a ring never has under four slots."""
        layout.Geometry.of(size, 1)
        self._size = size

    def set_period(self, period: float) -> None:
        """Seconds that a snapshot keeps, from the next `start` on."""
        if not 0 <= period < 1e9:
            raise ValueError(f"period must be from 0 to 1e9 seconds, not {period!r}")
        self._period = float(period)

    @property
    def enabled(self) -> bool:
        """Whether the recorder is running: started, in this process, and not stopped."""
        return self._segment is not None and self._pid == os.getpid()

    def start(self) -> None:
        """Create the recording, start its collector, attach this process.

        Exports ``SHMREC_RECORDING`` so that children know what to attach to. Raises
        `AlreadyStartedError` if running, `CollectorRunningError` if another process runs a
        recording of this name, `SpaceError` or another `ShmrecError` if it cannot be made.
        """
        try:
            from shmrec.launch import start_collector, stop_collector
        except (OSError, ImportError, MemoryError) as error:
            why = str(error) or "out of memory"
            raise CollectorError(f"cannot start a collector: {why}") from error
        with self._lock:
            if self.enabled:
                raise AlreadyStartedError(
                    f"flight recorder {self.name!r} is running: stop it before starting it again"
                )
            collector = start_collector(
                self.name,
                directory=self._directory,
                size=self._size,
                period=self._period,
                producers=self._producers,
                path=self._path,
                linger=_LINGER_SECONDS,
                triggers=self._triggers,
                stacks=self._stacks,
            )
            self._collector = collector, process.start_ticks(collector)
            try:
                segment = open_segment(self.name, self._path)
                self._recorder = self._attach()
            except BaseException:
                stop_collector(*self._collector)
                raise
            self._wakeup = open_wakeup(segment)
            self._segment, self._pid = segment, os.getpid()
            exported = {ENVIRONMENT: self.name, ENVIRONMENT_PATH: self._path}
            for variable, value in exported.items():
                self._environment[variable] = os.environ.get(variable)
                _set_environment(variable, value)

    def _attach(self) -> Recorder:
        joined = recorder.default if not recorder.default.recording else Recorder()
        segment = open_segment(self.name, self._path)
        try:
            label = Path(sys.argv[0] or "python").name
            joined.join(segment, label, exceptions=self._exceptions)
        except BaseException:
            segment.close()
            raise
        return joined

    @property
    def recorder(self) -> Recorder:
        """This process's recorder, to record with; raises `NotStartedError` if not running."""
        if self._recorder is None or not self.enabled:
            raise self._not_started("record with")
        return self._recorder

    def stop(self) -> None:
        """End the recording, once the snapshots under way are done.

        Raises `NotStartedError` if it is not running.
        """
        from shmrec.launch import stop_collector

        with self._lock:
            if not self.enabled:
                raise self._not_started("stop")
            segment, self._segment = self._segment, None
            while set(self._users) - {threading.get_ident()}:
                self._idle.wait()
            assert segment is not None
            if self._recorder is not None:
                self._recorder.detach()
            for variable, value in self._environment.items():
                _set_environment(variable, value)
            try:
                stop_collector(*self._collector)
            finally:
                self._wakeup = self._recorder = None
                segment.close()

    def write_to(self, file: SupportsWrite[bytes]) -> int:
        """Take a snapshot and write it to a binary file; the bytes written.

        Everything recorded before the call is in it. Raises `NotStartedError` if it is not
        running, `SnapshotActiveError` if as many snapshots as fit are under way, both with
        nothing written; what ``file.write`` raises is passed on.
        """
        with self._in_use("write") as segment:
            path = requests.ask(
                segment,
                self._wakeup,
                Verb.TRANSFER,
                reason="write_to",
                timeout=SNAPSHOT_SECONDS,
            )
            directory = self._directory or store.default_directory()
            with hidden.take_transfer(Path(path), directory) as source:
                return _copy(source, file)

    def snapshot(self, reason: str = "", *, stacks: bool | int = False) -> Path:
        """Take a snapshot into the directory; its path. Raises as `write_to` does.

        `stacks`: with the Python stacks of all processes (True), or of the one with that pid.
        Reading those of threads that run has crashed interpreters, though rarely.
        """
        wish = Stacks.ALL if stacks is True else Stacks.ONE if stacks else Stacks.NONE
        with self._in_use("snapshot") as segment:
            return Path(
                requests.ask(
                    segment,
                    self._wakeup,
                    Verb.SNAPSHOT,
                    reason=reason,
                    argument=(wish, int(stacks) if wish == Stacks.ONE else 0),
                    timeout=SNAPSHOT_SECONDS,
                )
            )

    @contextlib.contextmanager
    def _in_use(self, what: str) -> Any:
        with self._lock:
            if not self.enabled:
                raise self._not_started(what)
            self._users.append(threading.get_ident())
            segment = self._segment
        try:
            yield segment
        except ValueError as error:
            # The mapping has gone: a signal handler of this thread stopped the recorder.
            if self._segment is segment:
                raise
            raise self._not_started(what) from error
        finally:
            with self._lock:
                self._users.remove(threading.get_ident())
                self._idle.notify_all()

    def _not_started(self, what: str) -> NotStartedError:
        return NotStartedError(
            f"flight recorder {self.name!r} is not running, there is nothing to {what}: start it"
        )

    def __enter__(self) -> FlightRecorder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.stop()


def _copy(source: IO[bytes], file: SupportsWrite[bytes]) -> int:
    total = 0
    while chunk := source.read(_CHUNK):
        left = chunk
        while left:
            # An unbuffered file may take less than it is given.
            taken = file.write(left)
            count = taken if isinstance(taken, int) else len(left)
            if count <= 0 or (taken is None and isinstance(file, io.RawIOBase)):
                raise BlockingIOError(errno.EAGAIN, "the file takes no more", total)
            total += count
            left = left[count:]
    return total


def _default_name() -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(sys.argv[0] or "python").stem).strip("-._")
    return f"{stem[:32] or 'python'}-{os.getpid()}"


def _set_environment(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value
