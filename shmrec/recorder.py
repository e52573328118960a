"""The producer's side: joining a recording, and the calls that record.

Runs in every process that records. A `Recorder` owns at most one ring. Its hot calls
(`instant`, `span`, `begin`, `end`, `counter`) are the engine's own bound methods, so that
nothing stands between the caller and the ring.

Invariants:

- Joining and recording never raise into the application unless it asked (``required=True``).
- A forked child never writes into its parent's ring: the engine notices, and `_rejoin` claims
  a ring for the child at its first event, on the inherited mapping and descriptor.
- A ring is claimed under the segment's lock: free ones first, then the longest-ended one, but
  never one whose process died and whose end the collector has not dealt with.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
import weakref
from _thread import RLock
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, overload

from shmrec import _engine, events, requests
from shmrec.claim import claim, set_label
from shmrec.errors import (
    AttachError,
    EngineError,
    LockedError,
    NoSuchRecordingError,
    ShmrecError,
    SuppressedError,
)
from shmrec.exceptions import called, describe, mark, marked
from shmrec.layout import ENTRY, EntryState, SegmentState, Verb
from shmrec.segment import LOCK_SECONDS, Segment, open_segment
from shmrec.tracing import traced_with
from shmrec.wakeup import open_wakeup, wake
from shmrec.words import Words, trigger_argument

__all__ = ["ENVIRONMENT", "Recorder", "attach", "default"]

NO_ENGINE: Final = "none"
"""The name of the engine that was asked for and cannot serve."""
ENVIRONMENT: Final = "SHMREC_RECORDING"
ENVIRONMENT_PATH: Final = "SHMREC_PATH"
SNAPSHOT_SECONDS: Final = 30.0
_REJOIN_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = 1.0

_P = ParamSpec("_P")
_R = TypeVar("_R")

_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
# Who has a ring keeps it until it detaches: whoever attaches to that recording again finds it,
# and a span in the middle of which the last name for its recorder goes is recorded whole.
_attached: set[Recorder] = set()


class Recorder:
    """A process's place in a recording.

    Obtained from `attach`. While it is not attached every call does nothing, at next to no
    cost. Calls may come from any thread, from signal handlers and from garbage collection.
    """

    instant: Callable[..., None]
    """``instant(name, **args)``: something happened."""
    begin: Callable[..., int]
    """``begin(name, **args) -> span id``: a span begins; any thread may end it."""
    end: Callable[..., None]
    """``end(span_id, **args)``: the span ends."""
    span: Callable[..., _engine.Scope]
    """``with span(name, **args):`` a span around a block."""
    counter: Callable[[str, Any], None]
    """``counter(name, value)``: a value at this time."""
    record: Callable[[events.Kind, str, dict[str, Any]], None]
    """``record(kind, name, args)``: an event of a kind that has these fields."""
    lose: Callable[[str], None]
    """``lose(cause)``: count an event that could not be recorded, by a cause of `layout.LOSSES`."""
    exceptions: bool
    """Whether it is told of exceptions that nobody handles."""

    def __init__(self) -> None:
        self._refused: EngineError | None = None
        try:
            self.engine, writer = _engine.choose()
        except EngineError as error:
            # Told to whoever attaches. Importing must not fail: the tools, `doctor` among them,
            # record nothing.
            self._refused = error
            self.engine, writer = NO_ENGINE, _engine.choose("python")[1]
        self._engine = writer()
        self._segment: Segment | None = None
        self._wakeup: Any = None
        self._label = ""
        self._index = -1
        self._pid = 0
        self._warned = False
        self._retry_at = 0.0
        self._rejoining = 0
        self._missed = 0
        self._late = 0
        self._busy: tuple[int, bytes] | None = None
        self._words = Words()
        self.exceptions = True
        self._lock: Any = RLock()
        self.instant = self._engine.instant
        self.begin = self._engine.begin
        self.end = self._engine.end
        self.span = self._engine.span
        self.counter = self._engine.counter
        self.record = self._engine.record
        self.lose = self._engine.lose
        _recorders.add(self)

    # What people call.

    @property
    def attached(self) -> bool:
        """Whether calls are recorded: attached, in this very process."""
        return self._engine.bound

    @property
    def joined(self) -> bool:
        """Whether calls are recorded or, in a child that forked since, will ask for a ring."""
        return self._engine.bound or self._engine.revive is not None

    @property
    def recording(self) -> str:
        """The recording's name, or "" before any attach."""
        segment = self._segment
        return segment.name if segment is not None else ""

    def exception(self, exc: BaseException, /, **args: Any) -> None:
        """Record an exception: its type, message, and where it was raised."""
        if not self.joined:
            return
        try:
            self._engine.record(events.EXCEPTION, called(type(exc)), {**describe(exc), **args})
        except Exception:
            self._engine.lose("unencodable")
        mark(exc, self._number)

    @overload
    def traced(self, function: Callable[_P, _R], /) -> Callable[_P, _R]: ...

    @overload
    def traced(
        self, function: None = None, /, *, name: str | None = None
    ) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]: ...

    def traced(
        self, function: Callable[_P, _R] | None = None, /, *, name: str | None = None
    ) -> Any:
        """Decorate a function so that each call is a span: plain, async, or a generator.

        The span's name is the function's qualified name unless `name` is given.
        """
        if function is None:
            return lambda function: traced_with(self.span, function, name)
        return traced_with(self.span, function, name)

    def snapshot(self, reason: str = "", *, timeout: float = SNAPSHOT_SECONDS) -> str | None:
        """Have the collector take a snapshot of all processes; its path, or None.

        While an exception is being handled, as in an ``except`` block, the exception is recorded
        unless it has been already, and the limits of the trigger "exception" apply, lest a loop
        of failures become a loop of snapshots: None, without a warning, if they forbid it.

        None, with one warning, if this recorder is not attached or the collector cannot;
        use `FlightRecorder.snapshot` for one that raises, and that is not limited.
        """
        error = sys.exception()
        verb, argument = Verb.SNAPSHOT, (0, 0)
        # Others are no failures: an end in order, a generator that is closed, a task cancelled.
        if isinstance(error, Exception):
            if not marked(error, self._number):
                self.exception(error)
            verb, argument = Verb.TRIGGER, trigger_argument("exception")
            reason = reason or f"handled {called(type(error))}"
        segment = self._segment
        if segment is None or not self.attached:
            return None
        try:
            return requests.ask(
                segment, self._wakeup, verb, reason=reason, argument=argument, timeout=timeout
            )
        except SuppressedError:
            return None
        except (ShmrecError, ValueError) as failure:
            # ValueError: another thread detached meanwhile, and the mapping is gone.
            self._warn(f"no snapshot: {failure}")
            return None

    def trigger(self, kind: str, reason: str) -> bool:
        """Send word of one of `layout.TRIGGERS` (`Words.send`); whether it was sent."""
        segment = self._segment
        if segment is None or not self.joined:
            return False
        # In a child that forked since, the ring is its parent's.
        ring = self._index if self.attached else -1
        return self._words.send(segment, self._wakeup, kind, reason, ring=ring)

    @property
    def _number(self) -> int:
        """No other recorder's, in this process or another."""
        return os.getpid() << 64 | id(self)

    def abandon(self) -> None:
        """Record nothing more, but do not leave: the end of this process will count as a death.

        For a host that ends a process in order although it is in trouble: what it was in the
        middle of is kept as it is. May be called by a signal handler.
        """
        with self._lock:
            if self._pid == os.getpid() and self._engine.bound:
                self._engine.revive = None
                self._engine.unbind()

    def detach(self) -> None:
        """Leave the recording in order; what was recorded stays until overwritten."""
        with self._lock:
            ours = self._pid == os.getpid() and self._engine.bound
            segment, index = self._segment, self._index
            self._segment, self._index = None, -1
            if segment is None:
                _attached.discard(self)
                return
            try:
                self._leave(segment, index, ours)
            except BaseException:
                # A signal handler raised. Half left, its end would be taken for a death.
                with contextlib.suppress(ValueError):  # it was closed already
                    self._leave(segment, index, ours)
                raise

    def _leave(self, segment: Segment, index: int, ours: bool) -> None:
        """Let go of the ring, and of the segment; twice is harmless."""
        _attached.discard(self)
        free = self._engine.unbind()
        # Who has abandoned it leaves its stacks; whose recording is over has nobody to.
        # Not before the engine has let go of the descriptor.
        if ours or segment.state == SegmentState.CLOSED:
            _stacks().disarm(segment)
        if ours:
            entry = segment.geometry.entry(index)
            segment.words[ENTRY.word("detached_ns", entry)] = time.monotonic_ns()
            segment.words[ENTRY.word("state", entry)] = EntryState.DETACHED  # step: detached
            wake(self._wakeup)
        self._engine.revive = None
        self._wakeup = None
        # Else a record of this thread, which a signal interrupted, still goes on there.
        if free:
            segment.close()

    # Joining.

    def over(self) -> bool:
        """Whether its recording has ended, or another one took its name."""
        # Another thread may be detaching it, and what closes is not asked.
        with self._lock:
            segment = self._segment
            return segment is not None and (
                segment.state == SegmentState.CLOSED or not segment.linked()
            )

    def join(self, segment: Segment, label: str, *, exceptions: bool = True) -> None:
        """Take a ring of `segment`, which this recorder then owns.

        With `exceptions` those that nobody handles are recorded from now on (`unhandled`).

        Raises `RingsTakenError`, `SpaceError`, `NoSuchRecordingError` if it was closed, or
        `EngineError` if the engine that was asked for cannot serve.
        """
        with self._lock:
            if self._refused is not None:
                raise self._refused
            _load()
            self.detach()
            self._label = label
            self._wakeup = open_wakeup(segment)
            self._segment = segment
            try:
                self._claim(segment)
                self._engine.revive = self._rejoin
                self._words.forget()
                _attached.add(self)
            except BaseException:
                # A signal handler raised: a ring that was taken meanwhile must not stay so.
                self.detach()
                raise
        self.exceptions = exceptions
        try:
            if exceptions:
                _unhandled().install(lambda: list(_attached))
            _unhandled().at_exit(_leave)
        except BaseException:
            self.detach()
            raise

    def relabel(self, label: str) -> None:
        """Change the label, or in a forked child join now under that label."""
        with self._lock:
            self._label = label
            if self._segment is None:
                return
            if self._engine.bound:
                set_label(self._segment, self._index, label)
            else:
                self._rejoin()

    def _rejoin(self) -> bool:
        """Called by the engine when it finds itself without a ring: after a fork."""
        with self._lock:
            segment = self._segment
            if self._engine.bound:
                return True
            if self._rejoining == os.getpid():
                # A signal handler records while this very thread is at it.
                self._missed += 1
                return False
            if segment is None or self._pid == os.getpid():
                # The recording was closed under us: no need to ask again.
                self._engine.revive = None
                return False
            # Where C code forked behind Python's back, nothing has been forgotten yet.
            self._engine.forget()
            _stacks().after_fork()
            if time.monotonic() < self._retry_at:
                self._late += 1
                return False
            self._missed = 0
            try:
                self._rejoining = os.getpid()
                self._claim(segment, timeout=_REJOIN_SECONDS)
            except LockedError:
                self._late += 1
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                return False
            except (ShmrecError, OSError) as error:
                self._give_up(f"this forked process is not recorded: {error}")
                return False
            finally:
                self._rejoining = 0
                # Also where a signal handler raised: else its end would be taken for a death.
                if self._engine.bound:
                    _unhandled().at_exit(_leave)
            self._engine.lose("reentrant", self._missed)
            self._engine.lose("late", self._late)
            self._late = 0
        return True

    def _give_up(self, message: str) -> None:
        self._pid = os.getpid()
        self._engine.revive = None
        self._warn(message)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            # A filter may make it an error, which must not come out of a recording call.
            with contextlib.suppress(Warning):
                warnings.warn(f"shmrec: {message}", RuntimeWarning, stacklevel=4)

    def _claim(self, segment: Segment, *, timeout: float = LOCK_SECONDS) -> None:
        held = [each._index for each in _recorders if each.recording == segment.name]
        held = [index for index in held if index >= 0 and index != self._index]
        before = self._pid
        try:
            # Before the ring is ours, lest an exception of a signal handler come in between.
            self._pid = os.getpid()
            self._index = claim(
                segment, self._engine, self.engine, self._label, held=held, timeout=timeout
            )
        except BaseException as error:
            self._pid = before
            if isinstance(error, ShmrecError):
                self._note_busy(segment, isinstance(error, LockedError))
            raise
        self._note_busy(segment, False)
        # The ring is ours already: who has no memory left for stacks is recorded without them.
        with contextlib.suppress(MemoryError):
            _stacks().arm(segment, self._index, self._engine)
        wake(self._wakeup)

    def _note_busy(self, segment: Segment, busy: bool) -> None:
        """Whether this process has no ring only because the lock was held; counted once."""
        here = (os.getpid(), segment.field("run_id"))
        if busy != (self._busy == here) and segment.count_busy(1 if busy else -1):
            self._busy = here if busy else None

    def after_fork(self) -> None:
        """In the child: forget the parent's ring; the next event claims another."""
        self._lock = RLock()
        self._words.forget()
        self._late = 0
        if self._segment is not None:
            self._engine.forget()


def _leave(failed: bool) -> None:
    """This process ends: detach whoever is attached, unless its end is to count as a death."""
    for recorder in list(_attached):
        if recorder._pid == os.getpid() and not (failed and recorder.exceptions):
            recorder.detach()


def _load() -> None:
    """Have loaded all that is loaded late, before a ring depends on it."""
    try:
        _stacks()
        _unhandled()
    except (OSError, ImportError) as error:
        raise AttachError(f"a part of shmrec cannot be loaded: {error}") from error


def _stacks() -> Any:
    # Whoever only imports shmrec should not pay for what attaching needs.
    from shmrec import stacks

    return stacks


def _unhandled() -> Any:
    from shmrec import unhandled

    return unhandled


def _after_fork() -> None:
    if "shmrec.stacks" in sys.modules:
        _stacks().after_fork()
    for recorder in list(_recorders):
        recorder.after_fork()
    if "shmrec.unhandled" in sys.modules:
        _unhandled().watch_child()


os.register_at_fork(after_in_child=_after_fork)

default: Final = Recorder()
"""The process's default recorder: what the module-level functions record with."""


def attach(
    name: str | None = None,
    *,
    label: str = "",
    required: bool = False,
    exceptions: bool = True,
) -> Recorder:
    """Join a recording as a producer; returns the process's recorder for it.

    `name` defaults to ``SHMREC_RECORDING``, which recordings export to their children. The
    first recording that a process joins serves the module-level functions too. Attaching
    again to the same recording returns the same recorder, under the new label if one is given.

    Exceptions that nobody handles are recorded, and cause a snapshot, unless `exceptions` is
    false: `sys.excepthook` and `threading.excepthook` are chained to what they were.

    If the process cannot join (no such recording, all rings taken, no memory, wrong owner,
    another layout): with `required` raises that `ShmrecError`; otherwise warns once, and the
    recorder returned records nothing. Raises `EngineError`, required or not, if ``SHMREC_ENGINE``
    asks for an engine that cannot serve.
    """
    exported = os.environ.get(ENVIRONMENT, "")
    wanted = exported if name is None else name
    path = (os.environ.get(ENVIRONMENT_PATH) or None) if wanted == exported else None
    for known in list(_recorders):
        if known._segment is not None and known.over():
            known.detach()
        if known._segment is not None and known.recording == wanted:
            known.exceptions = known.exceptions and exceptions
            if label or not known.attached:
                known.relabel(label or known._label)
            if known.attached:
                return known
    recorder = default if default._segment is None else Recorder()
    try:
        if recorder._refused is not None:
            raise recorder._refused
        if not wanted:
            raise NoSuchRecordingError(
                f"no recording was named: pass its name, or set {ENVIRONMENT}"
            )
        segment = open_segment(wanted, path)
        try:
            recorder.join(segment, label, exceptions=exceptions)
        except BaseException:
            segment.close()
            raise
    except (ShmrecError, OSError, MemoryError) as error:
        # An engine is asked for by somebody who means it.
        if required or isinstance(error, EngineError):
            raise
        why = "out of memory" if isinstance(error, MemoryError) else error
        warnings.warn(f"shmrec: not recording: {why}", RuntimeWarning, stacklevel=2)
    return recorder
