"""The writer: a producer's calls, and the critical section that they share.

`Writer` is the python engine and the specification; the native engine is its twin. It runs in
producers. What happens to the slot is `batch.OpenBatch`.

Invariants:

- Whatever may run a program's code or fail (encoding, ``repr``, thread names) has happened
  before the critical section.
- ``writing`` is odd from before ``generation`` is loaded until after ``committed`` is stored.
- A record made while the same thread is inside another (signal handler, garbage collection)
  is counted lost, queued, and uncounted when the outer record has written it.
- An exception that a signal handler raises goes on to the caller; what was published stands.

The lock is the interpreter's own recursive lock, acquired inside the block that releases it.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from shmrec import events
from shmrec.batch import OpenBatch
from shmrec.events import BEGIN, COUNTER, END, INSTANT, Kind
from shmrec.layout import COUNT_SHIFT
from shmrec.threads import Speaker, native
from shmrec.values import bounded_arguments, error_name, name_text, packed_value
from shmrec.values import pack as _pack

__all__ = ["Span", "Writer"]

_local: Any = native("_local")
_RLock: Any = native("RLock")

_MADV_WIPEONFORK: Final = 18
_DEFERRED_LIMIT: Final = 64
_ONE_EVENT: Final = 1 << COUNT_SHIFT

_INSTANT: Final = INSTANT.prefix()
_INSTANT_ARGS: Final = INSTANT.prefix(arguments=True)
_BEGIN: Final = BEGIN.prefix()
_BEGIN_ARGS: Final = BEGIN.prefix(arguments=True)
_END: Final = END.prefix()
_END_ARGS: Final = END.prefix(arguments=True)
_COUNTER: Final = COUNTER.prefix()
_NO_ARGUMENTS: Final = b"\x80"
_ENCODING_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)


class Span:
    """The context manager that `span` returns: begins at entry, ends at exit.

    Its arguments, packed already, are those of the call that made it. An exception that passes
    through is noted as ``error`` in the end's arguments and goes on. One object is one span:
    entering it twice begins a second one.
    """

    __slots__ = ("_name", "_packed", "_writer", "id")

    def __init__(self, writer: Writer, name: str, packed: bytes) -> None:
        self._writer = writer
        self._name = name
        self._packed = packed
        self.id = 0

    def __enter__(self) -> Span:
        self.id = self._writer._begin(self._name, self._packed)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._writer.end(self.id)
        else:
            self._writer.end(self.id, error=error_name(kind))


class Nowhere:
    """The span of a writer that has no ring: nothing, for everybody the same."""

    __slots__ = ()
    id: Final = 0

    def __enter__(self) -> Nowhere:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_NOWHERE: Final = Nowhere()


class Writer(OpenBatch):
    """Records events into one ring; the python engine's hot path.

    `bind` gives it a ring, `unbind` takes the ring away. While it has none, or after a fork,
    every call asks `revive` for one; without `revive` calls do nothing. `words` and `view` may
    be anything that indexes like the segment's, which is how the tests step through it.
    """

    __slots__ = (
        "_acquire",
        "_busy",
        "_clock",
        "_deferred",
        "_guard_page",
        "_inherited",
        "_lock",
        "_next_span",
        "_release",
        "_threads",
        "revive",
    )

    def __init__(
        self,
        *,
        revive: Callable[[], bool] | None = None,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.revive = revive
        self._clock = clock
        self._guard_page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # The kernel clears the page in a forked child, whoever called fork; where it cannot,
        # os.register_at_fork does it for forks made through Python.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._guard_page.madvise(_MADV_WIPEONFORK)  # step: guard
        self._guard = memoryview(self._guard_page).cast("Q")
        self._next_span = 0
        self._inherited = 0
        self._renew()

    def _renew(self) -> None:
        """A lock of our own and nothing known: at the start, and in a forked child."""
        self._lock: Any = _RLock()
        self._acquire: Callable[[], bool] = self._lock.acquire
        self._release: Callable[[], None] = self._lock.release
        self._busy = False
        self._deferred: list[tuple[Any, ...]] = []
        self._threads: Any = _local()
        self._close_batch()

    def bind(
        self,
        view: Any,
        words: Any,
        *,
        entry: int,
        ring: int,
        slot_size: int,
        slots: int,
        fenced: bool = True,
    ) -> None:
        """Record into the ring at byte `ring` with its entry at byte `entry` from now on.

        The caller owns the entry (state CLAIMING) and has reserved the ring's pages. Where the
        process is not `fenced`, out of reach of the collector's fence, the native engine pays
        for one at each event; here the interpreter's own work stands between store and load.
        """
        with self._lock:
            # Who waits for the lock now must find it the same one afterwards.
            self._deferred.clear()
            self._close_batch()
            # Since a fork, perhaps, the same threads have other kernel ids.
            self._threads = _local()
            self._place_ring(view, words, entry, ring, slot_size, slots)
            self._guard[0] = 1

    def unbind(self) -> bool:
        """Seal the batch and let go of the ring; calls do nothing from now on.

        Returns whether the memory is no longer used.
        """
        with self._lock:
            if self._guard[0]:
                self._seal()
            self._guard[0] = 0
            self._generation = self._limit = -1
            if self._busy:
                # Called by a signal handler in the middle of a record of this very thread.
                return False
            self._take_ring_away()
            return True

    def rewinds(self, fd: int, start: int, /) -> None:
        """Have `fd`, where stacks are written when asked for, rewound to `start` whenever the
        collector has taken one; until the ring changes."""
        with self._lock:
            if self._guard[0]:
                self._stack_turn = self._words[self._w_stack_turn]
                self._stack_start = start
                self._stack_fd = fd

    def forget(self) -> None:
        """In a forked child: the ring is the parent's, and so are lock and open spans."""
        self._guard[0] = 0
        self._inherited = self._next_span
        self._renew()

    @property
    def bound(self) -> bool:
        """Whether calls reach a ring of this very process."""
        return bool(self._guard[0])

    # The calls that people make.

    def instant(self, name: str, /, **args: Any) -> None:
        """Record that something happened, with arguments of any kind."""
        if not self._guard[0] and not self._revived():
            return
        if type(name) is not str:
            name = self._text(name)
        if args:
            self._append(_INSTANT_ARGS, name, self._arguments(args))
        else:
            self._append(_INSTANT, name, b"")

    def begin(self, name: str, /, **args: Any) -> int:
        """Begin a span; the id returned ends it, from any thread. 0 where nothing records."""
        if not self._guard[0] and not self._revived():
            return 0
        if type(name) is not str:
            name = self._text(name)
        return self._begin(name, self._arguments(args) if args else b"")

    def _begin(self, name: str, packed: bytes) -> int:
        if not self._guard[0] and not self._revived():
            return 0
        if len(self._open) >= events.OPEN_LIMIT:
            with self._lock:
                # Not under a record that this one interrupts, which may be at them.
                if not self._busy:
                    self._forget_older()
        self._next_span = span = self._next_span + 1
        prefix = _BEGIN_ARGS if packed else _BEGIN
        self._append(prefix, name, _pack(span) + packed, 0, span, packed)
        return span

    def end(self, span: int, /, **args: Any) -> None:
        """End the span that `begin` gave; one that is not open is counted, not raised."""
        if type(span) is not int:
            self.lose("unmatched")
            return
        if span <= self._inherited:
            # Of a writer that recorded nothing, or begun by the parent before a fork.
            return
        if not self._guard[0] and not self._revived():
            return
        packed = self._arguments(args) if args else b""
        opened = self._open.get(span)
        if opened is not None:
            name, since = opened[0], opened[1]
        else:
            # Begun inside another record, its begin is still queued, and so will be its end.
            queued = [record for record in self._deferred if record[4] == span]
            if not queued:
                self.lose("unmatched")
                return
            name, since = queued[0][1], self._clock()
        prefix = _END_ARGS if args else _END
        self._append(prefix, name, _pack(span) + packed, since, -span)

    def span(self, name: str, /, **args: Any) -> Span | Nowhere:
        """A context manager that begins a span at entry and ends it at exit."""
        if not self._guard[0] and not self._revived():
            return _NOWHERE
        if type(name) is not str:
            name = self._text(name)
        return Span(self, name, self._arguments(args) if args else b"")

    def counter(self, name: str, value: Any, /) -> None:
        """Record a value at this time."""
        if not self._guard[0] and not self._revived():
            return
        try:
            number = type(value) is int or type(value) is float
            packed = _pack(value) if number else packed_value(value)
        except OverflowError:
            packed = packed_value(value)
        if type(name) is not str:
            name = self._text(name)
        self._append(_COUNTER, name, packed)

    def record(self, kind: Kind, name: str, args: dict[str, Any]) -> None:
        """Record an event of any kind whose fields are a name and arguments."""
        if not self._guard[0] and not self._revived():
            return
        if type(name) is not str:
            name = self._text(name)
        self._append(kind.prefix(bool(args)), name, self._arguments(args) if args else b"")

    # Outside the critical section.

    def _revived(self) -> bool:
        return self.revive is not None and self.revive()

    def _arguments(self, args: dict[str, Any]) -> bytes:
        # values.plain() in place: a call would cost as much as the checks.
        for value in args.values():
            kind = type(value)
            if kind is str:
                if len(value) > events.TEXT_LIMIT:
                    break
            elif kind is not int and kind is not float and kind is not bool and value is not None:
                break
        else:
            try:
                packed = _pack(args)
                if len(packed) <= events.ARGUMENTS_LIMIT:
                    return packed
            except _ENCODING_ERRORS:
                pass
        try:
            return bounded_arguments(args)
        except Exception:
            self.lose("unencodable")
            return _NO_ARGUMENTS

    def lose(self, cause: str, count: int = 1) -> None:
        """Count events that could not be recorded, by a cause from `layout.LOSSES`."""
        with self._lock:
            if self._guard[0]:
                self._lost(cause, count)

    def _text(self, name: object) -> str:
        """A name that is not a `str`, as one."""
        try:
            return name_text(name)
        except Exception:
            self.lose("unencodable")
            return "<a name whose repr raised>"

    # The critical section.

    def _append(
        self,
        prefix: bytes,
        name: str,
        tail: bytes,
        since: int = 0,
        span: int = 0,
        opened: bytes = b"",
    ) -> None:
        """Write one event: `prefix`, time, name, [time since `since`,] `tail`.

        A positive `span` is remembered as open, with `opened` for later preambles; a negative
        one is open no more.
        """
        try:
            thread = self._threads.current
        except AttributeError:
            thread = self._threads.current = Speaker()
        # Not `with`, which costs twice as much. Acquiring inside the block is as safe: a signal
        # handler that raises does so when the call has returned, which is in the block's range,
        # and the lock that an interrupted wait did not get is none that could be released.
        acquire = self._acquire
        release = self._release
        try:
            acquire()
            if self._busy:
                self._defer(prefix, name, tail, since, span, opened)
                return
            words = self._words
            w_writing = self._w_writing
            try:
                self._busy = True
                words[w_writing] = self._writing + 1  # step: writing-odd
                generation = words[self._w_generation]  # step: generation
                clock = self._clock
                now = clock()
                if generation != self._generation and not self._turn(generation, now):
                    return
                try:
                    known = self._names[name]
                except KeyError:
                    known = self._introduce(name, thread)
                if thread is not self._thread:
                    known = self._introduce(name, thread)
                if since:
                    tail = _pack(now - since) + tail
                data = prefix + _pack(now - self._last) + known + tail
                end = self._position + len(data)
                if end > self._limit:
                    if not self._turn(generation, now):
                        return
                    known = self._introduce(name, thread)
                    data = prefix + _pack(now - self._last) + known + tail
                    end = self._position + len(data)
                    if end > self._limit:
                        self._lost("oversized")
                        return
                self._view[self._position : end] = data  # step: payload
                self._committed = committed = self._committed + len(data) + _ONE_EVENT
                words[self._w_committed] = committed  # step: committed
                self._position = end
                self._last = now
                if span:
                    if span > 0:
                        self._open[span] = (name, now, thread, opened)
                    elif -span in self._open:
                        # No call: a signal handler that raised at its end would have the event
                        # counted as interrupted that has been published.
                        del self._open[-span]
            except BaseException as error:
                # A signal handler raised in here, or there was no memory. What was published
                # stands; the next event starts a batch of its own.
                self._recover()
                if not isinstance(error, MemoryError):
                    self._lost("interrupted")
                    raise
                self._lost("no_memory")
            finally:
                # Not so in a child that a signal handler forked: the words are the parent's.
                if self._busy:
                    self._writing = words[w_writing] = self._writing + 2  # step: writing-even
                    self._busy = False
            if self._deferred:
                self._drain()
        finally:
            try:
                release()
            except RuntimeError as error:
                if not error.args or not str(error.args[0]).startswith("cannot release"):
                    raise

    def _defer(self, *record: Any) -> None:
        """Queue a record made inside another; lost and counted if the outer never returns."""
        self._lost("reentrant")
        if len(self._deferred) < _DEFERRED_LIMIT:
            self._deferred.append(record)

    def _drain(self) -> None:
        while self._deferred:
            record = self._deferred.pop(0)
            self._append(*record)
            self._lost("reentrant", -1)
