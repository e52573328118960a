"""The recording of a gunicorn service, as the service's master keeps it.

Runs in the master: finds a name, starts or joins the recording, sees that its collector lives,
passes on what the master learns of its workers, and ends the recording with the service.

Invariants:

- The master is a producer as long as it runs, so that its own death is recorded too.
- The name is the same at every start of a service, so that the memory that a killed one left
  is recovered by the next; two services never share a name that neither was given.
- Word of a death may come inside a signal handler (gunicorn before 24 reaps there). The
  segment's lock is not safe against its own holder, so such word waits for whoever is busy.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from shmrec import layout, process, recorder, requests
from shmrec.errors import (
    CollectorError,
    CollectorRunningError,
    NoSuchRecordingError,
    ShmrecError,
    SnapshotActiveError,
    SuppressedError,
)
from shmrec.integrations.gunicorn_names import LABEL, choose, masters, others, parent, service_name
from shmrec.launch import start_collector, stop_collector
from shmrec.layout import SegmentState, Verb
from shmrec.naming import check_name
from shmrec.recorder import ENVIRONMENT, ENVIRONMENT_PATH, Recorder
from shmrec.segment import Segment, open_segment
from shmrec.wakeup import open_wakeup

__all__ = ["MasterRecording", "Settings"]

SOURCE: Final = "gunicorn's log"
"""How a worker's end is known, where the kernel does not tell it."""

_JOIN_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 30.0
_SNAPSHOT_SECONDS: Final = 2.0
_SNAPSHOT_INTERVAL: Final = 5.0
_WORDS: Final = 256
"""As many words as wait for room in the recording's requests."""
_ROOM_SECONDS: Final = 0.2
_ROOM_POLL_SECONDS: Final = 0.001
_ROOM_INTERVAL: Final = 2.0


@dataclass(frozen=True)
class Settings:
    """What the configuration asked for. `producers` None: enough for the workers there are."""

    recording: str | None = None
    directory: str | os.PathLike[str] | None = None
    size: int = layout.DEFAULT_RING_SIZE
    period: float = 10.0
    producers: int | None = None
    path: str | os.PathLike[str] | None = None
    linger: float = 5.0
    triggers: tuple[str, ...] = ()
    stacks: str = "suspects"


class MasterRecording:
    """The recording that this master and its workers are in, if any."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.recorder: Recorder | None = None
        self.name = ""
        self._path: str | None = None
        self._segment: Segment | None = None
        self._wakeup: Any = None
        self._pid = 0
        self._ours = False
        self._collector = 0, 0
        self._producers = layout.DEFAULT_PRODUCERS
        self._retry_at = 0.0
        self._snapshot_at = float("-inf")
        self._word: deque[tuple[int, tuple[int, int]]] = deque(maxlen=_WORDS)
        self._room_at = float("-inf")
        self._busy = False

    @property
    def kept(self) -> bool:
        """Whether this very process is the master of a recording."""
        return self._segment is not None and self._pid == os.getpid()

    def start(self, service: str, workers: int) -> None:
        """Start the recording of `service`, or join the one that runs; once is enough.

        Raises `ShmrecError` or `OSError` or `ValueError`, and then there is none.
        """
        if self.kept:
            return
        known = self.settings.recording or os.environ.get(ENVIRONMENT) or ""
        path = self.settings.path
        if path is None and not self.settings.recording:
            path = os.environ.get(ENVIRONMENT_PATH) or None
        self._path = os.path.abspath(path) if path is not None else None
        # Twice as many as two masters have during USR2: a ring is evidence for a while.
        needed = max(layout.DEFAULT_PRODUCERS, 4 * (workers + 1))
        self._producers = self.settings.producers or min(needed, layout.MAXIMUM_PRODUCERS)
        with self._alone():
            self._join(check_name(known) if known else "", service_name(service))

    def _join(self, known: str, base: str) -> None:
        began = time.monotonic()
        while True:
            name = known or choose(base)
            try:
                self._start_collector(name)
                self._ours = True
            except CollectorRunningError:
                inherited = parent() in masters(name)
                # A name that was given may be that of a collector with an owner of its own.
                self._ours = inherited or not known
                if not known and not inherited and time.monotonic() < began + _SETTLE_SECONDS:
                    # A namesake that has not joined yet, or a collector about to end.
                    time.sleep(_PAUSE_SECONDS)
                    continue
            try:
                self._attach(name)
                return
            except NoSuchRecordingError:
                # Its collector was just ending it.
                if time.monotonic() > began + _JOIN_SECONDS:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _start_collector(self, name: str) -> None:
        pid = start_collector(
            name,
            directory=self.settings.directory,
            size=self.settings.size,
            period=self.settings.period,
            producers=self._producers,
            path=self._path,
            linger=self.settings.linger,
            triggers=self.settings.triggers,
            stacks=self.settings.stacks,
        )
        self._collector = pid, process.start_ticks(pid)

    def _attach(self, name: str) -> None:
        exported = {ENVIRONMENT: name, ENVIRONMENT_PATH: self._path}
        before = {variable: os.environ.get(variable) for variable in exported}
        _export(exported)
        try:
            joined = recorder.attach(label=LABEL, required=True)
            # A mapping of its own: the application may detach the recorder's.
            segment = open_segment(name, self._path)
        except BaseException:
            _export(before)
            raise
        self.recorder, self.name, self._pid = joined, name, os.getpid()
        self._segment, self._wakeup = segment, open_wakeup(segment)

    def keep(self) -> None:
        """Start the collector again if it was killed; it adopts the recording.

        Raises as `start` does, but tries only every half minute. If the recording was ended in
        order, leaves it and raises `CollectorError`; `start` starts another.
        """
        segment = self._segment
        if segment is None or not self.kept:
            return
        self._pass_on()
        if segment.collector() is not None:
            return
        if segment.state == SegmentState.CLOSED:
            self._leave()
            raise CollectorError(f"recording {self.name!r} was ended: reload to start it again")
        if not self._ours or time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        with self._alone():
            with contextlib.suppress(CollectorRunningError):
                self._start_collector(self.name)
            if segment.collector() is None:
                # The memory that we share has no name any more: share the new one.
                self._leave()
                self._attach(self.name)
        self._retry_at = 0.0

    def tell(self, pid: int, status: int) -> None:
        """Pass on how a worker ended; at any moment, signal handlers included."""
        if self.kept:
            self._word.append((Verb.ENDED, (pid, status)))
            self._pass_on()

    def _pass_on(self) -> None:
        """Send the word that waits, until there is no room for more."""
        while self._word and not self._busy and self._segment is not None:
            self._busy = True
            try:
                verb, word = self._word.popleft()
                if not self._send(self._segment, verb, word):
                    # Those that came meanwhile are newer.
                    if len(self._word) < _WORDS:
                        self._word.appendleft((verb, word))
                    return
            finally:
                self._busy = False

    def _send(self, segment: Segment, verb: int, word: tuple[int, int]) -> bool:
        """Whether it was sent. Where many die at once, the collector makes room in no time; but
        one that is busy holds nobody up for long, nor often."""
        deadline = time.monotonic() + _ROOM_SECONDS
        while not requests.tell(segment, self._wakeup, verb, reason=SOURCE, argument=word):
            now = time.monotonic()
            if now > deadline or now < self._room_at:
                if now > deadline:
                    self._room_at = now + _ROOM_INTERVAL
                return False
            time.sleep(_ROOM_POLL_SECONDS)
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep word of deaths until the end of the block."""
        outer, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = outer
            self._pass_on()

    def timed_out(self, pid: int, seconds: float) -> None:
        """Pass on that a worker did not answer for so long, and wait for a snapshot, but not long.

        Not often either: workers that are in trouble together are in one snapshot, and of the
        others the collector is told all the same. Raises `CollectorError`.
        """
        word = pid, int(seconds * 1000)
        now = time.monotonic()
        if self._segment is None or not self.kept:
            return
        if self._busy or now < self._snapshot_at + _SNAPSHOT_INTERVAL:
            self._word.append((Verb.TIMEOUT, word))
            self._pass_on()
            return
        self._snapshot_at = now
        with self._alone(), contextlib.suppress(SuppressedError):
            try:
                requests.ask(
                    self._segment,
                    self._wakeup,
                    Verb.TIMEOUT,
                    argument=word,
                    timeout=_SNAPSHOT_SECONDS,
                )
            except SnapshotActiveError:
                self._word.append((Verb.TIMEOUT, word))

    def stop(self) -> None:
        """Leave in order; end the recording if it is ours and nobody else is in it."""
        if not self.kept:
            return
        # A killed collector's memory is put in order by the next one only.
        with contextlib.suppress(ShmrecError, OSError):
            self.keep()
        segment, self._segment = self._segment, None
        if segment is None:
            return
        if self.recorder is not None:
            self.recorder.detach()
        with contextlib.closing(segment):
            if self._ours and not others(segment):
                # One that we joined ends by itself, when nobody is left.
                stop_collector(*self._collector, timeout=_STOP_SECONDS)

    def _leave(self) -> None:
        segment, self._segment = self._segment, None
        if self.recorder is not None:
            self.recorder.detach()
        if segment is not None:
            segment.close()


def _export(variables: dict[str, str | None]) -> None:
    for variable, value in variables.items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
