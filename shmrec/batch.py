"""The writer that fills batches with events: the python engine, and the specification.

`Writer` runs in producers; the native engine is its twin. Its other half, the decoder of what
it writes, is the neighbour `decoder`; the read side of the ring is `ring`.

Invariants:

- Whatever may run a program's code or fail (encoding, ``repr``, thread names) has happened
  before the critical section.
- ``writing`` is odd from before ``generation`` is loaded until after ``committed`` is stored.
- ``opening`` names a batch before its slot is touched; the slot's ``number`` is 0 while its
  other words are being set.
- ``committed`` grows only when all bytes below it are in place, and one store publishes the
  bytes and the count of events together.
- ``closed_generation`` is set before the first event of a newer generation is committed.
- A record made while the same thread is inside another (signal handler, garbage collection)
  is counted lost, queued, and uncounted when the outer record has written it.

The lock is the interpreter's own recursive lock, acquired inside the block that releases it.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

import msgpack

from shmrec import events, layout
from shmrec.events import BEGIN, COUNTER, END, INSTANT, NAME, OPEN, THREAD, Kind
from shmrec.layout import CONTROL, COUNT_SHIFT, ENTRY, LOSSES, SLOT, SegmentState, SlotFlag
from shmrec.values import TEXT_LIMIT, bounded, bounded_text, one_bounded

__all__ = ["Span", "Writer"]

_original: Any = __import__("_thread")
if "gevent.monkey" in sys.modules:  # pragma: no cover - depends on the host's import order
    _saved = sys.modules["gevent.monkey"].saved.get("_thread", {})
    _local = _saved.get("_local", _original._local)
    _get_native_id = _saved.get("get_native_id", _original.get_native_id)
else:
    _local = _original._local
    _get_native_id = _original.get_native_id
_RLock: Any = _original.RLock

_MADV_WIPEONFORK: Final = 18
_DEFERRED_LIMIT: Final = 64

_NUMBER, _GENERATION, _START, _COMMITTED, _FIRST, _FLAGS = (
    SLOT.word(name) for name in ("number", "generation", "start_ns", "committed", "first", "flags")
)
_ONE_EVENT: Final = 1 << COUNT_SHIFT
_SCRATCH: Final = 1
_LOSS: Final = {cause: index for index, cause in enumerate(LOSSES)}

_INSTANT: Final = INSTANT.prefix()
_INSTANT_ARGS: Final = INSTANT.prefix(arguments=True)
_BEGIN: Final = BEGIN.prefix()
_BEGIN_ARGS: Final = BEGIN.prefix(arguments=True)
_END: Final = END.prefix()
_END_ARGS: Final = END.prefix(arguments=True)
_COUNTER: Final = COUNTER.prefix()
_NO_ARGUMENTS: Final = b"\x80"

# Arrays are packed only from exact builtin types: no default, no user code, no surprise.
_pack: Callable[[Any], bytes] = msgpack.Packer(strict_types=True).pack
_ENCODING_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)


class _Thread:
    """A thread as the writer knows it: its kernel id and its name, both packed."""

    __slots__ = ("id", "name")

    def __init__(self) -> None:
        threading = sys.modules.get("threading")
        name = ""
        if threading is not None:
            # current_thread() would register a dummy for a thread it does not know.
            known = threading._active.get(threading.get_ident())
            name = known.name if known is not None else ""
        self.id = _get_native_id()
        self.name = bounded_text(name if isinstance(name, str) else "", events.NAME_LIMIT)


class Span:
    """The context manager that `span` returns: begins at entry, ends at exit.

    An exception that passes through is noted as ``error`` in the end's arguments and goes on.
    One object is one span: entering it twice begins a second one.
    """

    __slots__ = ("_args", "_name", "_writer", "id")

    def __init__(self, writer: Writer, name: str, args: dict[str, Any]) -> None:
        self._writer = writer
        self._name = name
        self._args = args
        self.id = 0

    def __enter__(self) -> Span:
        self.id = self._writer.begin(self._name, **self._args)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._writer.end(self.id)
        else:
            self._writer.end(self.id, error=bounded_text(str(kind.__name__), events.NAME_LIMIT))


class Writer:
    """Records events into one ring; the python engine's hot path.

    `bind` gives it a ring, `unbind` takes the ring away. While it has none, or after a fork,
    every call asks `revive` for one; without `revive` calls do nothing. `words` and `view` may
    be anything that indexes like the segment's, which is how the tests step through it.
    """

    # Slots, because so many attributes in a dict would cost a lookup each.
    __slots__ = (
        "_acquire",
        "_base",
        "_busy",
        "_clock",
        "_committed",
        "_deferred",
        "_events",
        "_generation",
        "_guard",
        "_guard_page",
        "_inherited",
        "_last",
        "_limit",
        "_lock",
        "_names",
        "_next_span",
        "_number",
        "_open",
        "_position",
        "_release",
        "_ring",
        "_rotation",
        "_slot_size",
        "_slots",
        "_thread",
        "_threads",
        "_view",
        "_w_closed",
        "_w_committed",
        "_w_generation",
        "_w_losses",
        "_w_opening",
        "_w_state",
        "_w_writing",
        "_words",
        "_writing",
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
            self._guard_page.madvise(_MADV_WIPEONFORK)
        self._guard = memoryview(self._guard_page).cast("Q")
        self._next_span = 0
        self._inherited = 0
        self._reset()

    def _reset(self) -> None:
        self._lock: Any = _RLock()
        self._acquire: Callable[[], bool] = self._lock.acquire
        self._release: Callable[[], None] = self._lock.release
        self._busy = False
        self._deferred: list[tuple[Any, ...]] = []
        self._threads: Any = _local()
        self._open: dict[int, tuple[str, int, _Thread, bytes]] = {}
        self._names: dict[str, bytes] = {}
        self._thread: _Thread | None = None
        self._generation = -1
        self._base = 0
        self._position = 0
        self._limit = -1
        self._events = 0
        self._committed = 0
        self._last = 0
        self._rotation = 0

    def bind(
        self,
        view: Any,
        words: Any,
        *,
        entry: int,
        ring: int,
        slot_size: int,
        slots: int,
    ) -> None:
        """Record into the ring at byte `ring` with its entry at byte `entry` from now on.

        The caller owns the entry (state CLAIMING) and has reserved the ring's pages.
        """
        self._reset()
        self._view = view
        self._words = words
        self._ring = ring
        self._slots = slots
        self._slot_size = slot_size
        self._w_generation = CONTROL.word("generation")
        self._w_state = CONTROL.word("state")
        self._w_writing = ENTRY.word("writing", entry)
        self._w_opening = ENTRY.word("opening", entry)
        self._w_closed = ENTRY.word("closed_generation", entry)
        self._w_losses = ENTRY.word("losses", entry)
        self._number = words[self._w_opening]
        self._writing = words[self._w_writing] & ~1
        self._guard[0] = 1

    def unbind(self) -> bool:
        """Seal the batch and let go of the ring; calls do nothing from now on.

        Returns whether the memory is no longer used.
        """
        with self._lock:
            if self._guard[0] and self._base:
                self._words[self._base + _FLAGS] |= SlotFlag.SEALED
            self._guard[0] = 0
            self._generation = self._limit = -1
            if self._busy:
                # Called by a signal handler in the middle of a record of this very thread.
                return False
            # Whoever waits for the lock will find memory to read that is nobody's.
            self._words = memoryview(bytearray(_SCRATCH * layout.WORD)).cast("Q")
            self._w_writing = self._w_generation = 0
            return True

    def forget(self) -> None:
        """In a forked child: the ring is the parent's, and so are lock and open spans."""
        self._guard[0] = 0
        self._inherited = self._next_span
        self._reset()

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
        packed = self._arguments(args) if args else b""
        self._next_span = span = self._next_span + 1
        prefix = _BEGIN_ARGS if args else _BEGIN
        self._append(prefix, name, _pack(span) + packed, 0, span, packed)
        return span

    def end(self, span: int, /, **args: Any) -> None:
        """End the span that `begin` gave; one that is not open is counted, not raised."""
        if type(span) is int and span <= self._inherited:
            # Of a writer that recorded nothing, or begun by the parent before a fork.
            return
        if not self._guard[0] and not self._revived():
            return
        packed = self._arguments(args) if args else b""
        try:
            opened = self._open.get(span)
        except TypeError:
            opened = None
        if opened is None:
            self.lose("unmatched")
            return
        prefix = _END_ARGS if args else _END
        self._append(prefix, opened[0], _pack(span) + packed, opened[1], -span)

    def span(self, name: str, /, **args: Any) -> Span:
        """A context manager that begins a span at entry and ends it at exit."""
        return Span(self, name, args)

    def counter(self, name: str, value: Any, /) -> None:
        """Record a value at this time."""
        if not self._guard[0] and not self._revived():
            return
        try:
            number = type(value) is int or type(value) is float
            packed = _pack(value if number else one_bounded(value))
        except OverflowError:
            packed = _pack(one_bounded(value))
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
                if len(value) > TEXT_LIMIT:
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
            return bounded(args, events.ARGUMENTS_LIMIT, _pack)
        except Exception:
            self.lose("unencodable")
            return _NO_ARGUMENTS

    def lose(self, cause: str, count: int = 1) -> None:
        """Count events that could not be recorded, by a cause from `layout.LOSSES`."""
        with self._lock:
            if self._guard[0]:
                index = self._w_losses + _LOSS[cause]
                self._words[index] = max(0, self._words[index] + count)

    def _text(self, name: object) -> str:
        """A name that is not a `str`, as one."""
        try:
            if isinstance(name, str):
                return str.__str__(name)
            return bounded_text(repr(name), events.NAME_LIMIT)
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
            thread = self._threads.current = _Thread()
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
            self._busy = True
            words = self._words
            words[self._w_writing] = self._writing + 1
            try:
                generation = words[self._w_generation]
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
                        words[self._w_losses + _LOSS["oversized"]] += 1
                        return
                self._view[self._position : end] = data
                self._committed = committed = self._committed + len(data) + _ONE_EVENT
                words[self._w_committed] = committed
                self._position = end
                self._last = now
                if span:
                    if span > 0:
                        self._open[span] = (name, now, thread, opened)
                    else:
                        self._open.pop(-span, None)
            except BaseException as error:
                # A signal handler raised in here, or there was no memory. What was published
                # stands; the next event starts a batch of its own.
                self._recover()
                if not isinstance(error, MemoryError):
                    words[self._w_losses + _LOSS["interrupted"]] += 1
                    raise
                words[self._w_losses + _LOSS["no_memory"]] += 1
            finally:
                self._writing = words[self._w_writing] = self._writing + 2
                self._busy = False
            if self._deferred:
                self._drain()
        finally:
            try:  # noqa: SIM105 - entering suppress() costs as much as the lock
                release()
            except RuntimeError:
                pass

    def _turn(self, generation: int, now: int) -> bool:
        """Seal the batch and open the next one; False if the recording has been closed."""
        words = self._words
        if not self._guard[0]:
            # Another thread detached while this one waited for the lock.
            return False
        newer = generation != self._generation
        if self._base:
            flags = SlotFlag.SEALED | (SlotFlag.END_OF_GENERATION if newer else 0)
            words[self._base + _FLAGS] |= flags
        if newer:
            words[self._w_closed] = max(0, generation - 1)
            if words[self._w_state] == SegmentState.CLOSED:
                self._base = 0
                self._guard[0] = 0
                words[self._w_losses + _LOSS["closed"]] += 1
                return False
        self._events += self._committed >> COUNT_SHIFT
        self._committed = 0
        self._limit = -1
        self._number = number = self._number + 1
        start = self._ring + (number - 1) % self._slots * self._slot_size
        base = start // layout.WORD
        words[self._w_opening] = number
        words[base + _NUMBER] = 0
        words[base + _GENERATION] = generation
        words[base + _START] = now
        words[base + _COMMITTED] = 0
        words[base + _FIRST] = self._events
        words[base + _FLAGS] = 0
        words[base + _NUMBER] = number
        self._base = base
        self._w_committed = base + _COMMITTED
        self._position = start + SLOT.size
        self._names = {}
        self._thread = None
        self._last = now
        self._generation = generation
        self._limit = start + self._slot_size
        if self._open:
            self._preamble(now)
        return True

    def _preamble(self, now: int) -> None:
        """Name the open spans; if they are too many, others in every batch."""
        spans = list(self._open.items())
        budget = self._position + (self._limit - self._position) // events.PREAMBLE_SHARE
        if self._rotation >= len(spans):
            self._rotation = 0
        spans = spans[self._rotation :] + spans[: self._rotation]
        for written, (span, (name, start, thread, args)) in enumerate(spans):
            if self._position > budget:
                self._rotation += written
                self._words[self._base + _FLAGS] |= SlotFlag.PARTIAL_PREAMBLE
                break
            known = self._introduce(name, thread)
            head = OPEN.prefix(bool(args)) + b"\0" + known
            self._place(head + _pack(span) + _pack(now - start) + args)
        else:
            self._rotation = 0
        self._words[self._w_committed] = self._committed

    def _introduce(self, name: str, thread: _Thread) -> bytes:
        """Have the batch know the name, and that `thread` speaks; the name's packed number.

        The bytes are published with the event that needs them. In a batch that is too full for
        them nothing changes, and the batch is marked full.
        """
        names = self._names
        fresh: dict[str, bytes] = {}
        needed = b""
        speaks = thread is not self._thread
        for text in (thread.name, name) if speaks else (name,):
            if text not in names and text not in fresh:
                fresh[text] = number = _pack(len(names) + len(fresh))
                # Only known now to be new: a name costs nothing to check again.
                shown = bounded_text(text, events.NAME_LIMIT)
                needed += NAME.prefix() + b"\0" + number + _pack(shown)
        if speaks:
            speaker = fresh.get(thread.name) or names[thread.name]
            needed += THREAD.prefix() + b"\0" + _pack(thread.id) + speaker
        if self._position + len(needed) > self._limit:
            self._limit = -1
            return b""
        self._place(needed)
        names.update(fresh)
        self._thread = thread
        return names[name]

    def _place(self, data: bytes) -> None:
        """Put bytes that count as no event behind the last ones, to be published later."""
        end = self._position + len(data)
        self._view[self._position : end] = data
        self._position = end
        self._committed += len(data)

    def _recover(self) -> None:
        """After an interruption, let the published words say where things stand."""
        self._generation = -1
        self._limit = -1
        if self._base:
            self._committed = self._words[self._w_committed]

    def _defer(self, *record: Any) -> None:
        """Queue a record made inside another; lost and counted if the outer never returns."""
        self._words[self._w_losses + _LOSS["reentrant"]] += 1
        if len(self._deferred) < _DEFERRED_LIMIT:
            self._deferred.append(record)

    def _drain(self) -> None:
        while self._deferred:
            record = self._deferred.pop(0)
            self._append(*record)
            self._words[self._w_losses + _LOSS["reentrant"]] -= 1
