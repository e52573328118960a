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

The lock is the interpreter's own recursive lock, entered by ``with``: no signal handler can
run between its acquisition and the protection of the block.
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
from shmrec.values import bounded, bounded_text, one_bounded, plain

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
_SLOT_WORDS: Final = SLOT.size // layout.WORD
_LOSS: Final = {cause: index for index, cause in enumerate(LOSSES)}

_INSTANT: Final = INSTANT.prefix()
_INSTANT_ARGS: Final = INSTANT.prefix(arguments=True)
_BEGIN: Final = BEGIN.prefix()
_BEGIN_ARGS: Final = BEGIN.prefix(arguments=True)
_END: Final = END.prefix()
_END_ARGS: Final = END.prefix(arguments=True)
_COUNTER: Final = COUNTER.prefix()

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
        self._batch_events = 0
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

    def unbind(self) -> None:
        """Seal the batch and let go of the ring; calls do nothing from now on."""
        with self._lock:
            if not self._guard[0]:
                return
            self._guard[0] = 0
            if self._base:
                self._words[self._base + _FLAGS] |= SlotFlag.SEALED

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
        if args:
            try:
                tail = _pack(args) if plain(args) else bounded(args, events.ARGUMENTS_LIMIT, _pack)
            except _ENCODING_ERRORS:
                tail = bounded(args, events.ARGUMENTS_LIMIT, _pack)
            if len(tail) > events.ARGUMENTS_LIMIT:
                tail = bounded(args, events.ARGUMENTS_LIMIT, _pack)
            self._append(_INSTANT_ARGS, name, tail)
        else:
            self._append(_INSTANT, name, b"")

    def begin(self, name: str, /, **args: Any) -> int:
        """Begin a span; the id returned ends it, from any thread. 0 where nothing records."""
        if not self._guard[0] and not self._revived():
            return 0
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
        self._append(_COUNTER, name, packed)

    def record(self, kind: Kind, name: str, args: dict[str, Any]) -> None:
        """Record an event of any kind whose fields are a name and arguments."""
        if not self._guard[0] and not self._revived():
            return
        self._append(kind.prefix(bool(args)), name, self._arguments(args) if args else b"")

    # Outside the critical section.

    def _revived(self) -> bool:
        return self.revive is not None and self.revive()

    def _arguments(self, args: dict[str, Any]) -> bytes:
        try:
            if plain(args):
                packed = _pack(args)
                if len(packed) <= events.ARGUMENTS_LIMIT:
                    return packed
        except _ENCODING_ERRORS:
            pass
        return bounded(args, events.ARGUMENTS_LIMIT, _pack)

    def lose(self, cause: str, count: int = 1) -> None:
        """Count events that could not be recorded, by a cause from `layout.LOSSES`."""
        with self._lock:
            if self._guard[0]:
                index = self._w_losses + _LOSS[cause]
                self._words[index] = max(0, self._words[index] + count)

    def _name_bytes(self, name: Any) -> str:
        """The text of a name that is not a short plain string."""
        if not isinstance(name, str):
            return bounded_text(repr(name), events.NAME_LIMIT)
        return bounded_text(name, events.NAME_LIMIT)

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
        if type(name) is not str or len(name) > events.NAME_LIMIT or not name.isascii():
            try:
                name = self._name_bytes(name)
            except Exception:
                self.lose("unencodable")
                return
        with self._lock:
            if self._busy:
                self._defer(prefix, name, tail, since, span, opened)
                return
            if not self._guard[0]:
                return
            self._busy = True
            words = self._words
            writing = self._writing
            words[self._w_writing] = writing + 1
            try:
                generation = words[self._w_generation]
                now = self._clock()
                if generation != self._generation and not self._turn(generation, now):
                    return
                known = self._names.get(name)
                if known is None or thread is not self._thread:
                    self._introduce(name, thread, now)
                    known = self._names[name]
                if since:
                    tail = _pack(now - since) + tail
                data = prefix + _pack(now - self._last) + known + tail
                position = self._position
                end = position + len(data)
                if end > self._limit:
                    if not self._turn(generation, now):
                        return
                    self._introduce(name, thread, now)
                    data = prefix + _pack(now - self._last) + self._names[name] + tail
                    position = self._position
                    end = position + len(data)
                    if end > self._limit:
                        words[self._w_losses + _LOSS["oversized"]] += 1
                        return
                self._view[position:end] = data
                self._batch_events = count = self._batch_events + 1
                words[self._base + _COMMITTED] = count << COUNT_SHIFT | end - self._payload
                self._position = end
                self._last = now
                if span > 0:
                    self._open[span] = (name, now, thread, opened)
                elif span:
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
                self._writing = words[self._w_writing] = writing + 2
                self._busy = False
            if self._deferred:
                self._drain()

    def _turn(self, generation: int, now: int) -> bool:
        """Seal the batch and open the next one; False if the recording has been closed."""
        words = self._words
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
        self._events += self._batch_events
        self._batch_events = 0
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
        self._payload = self._position = start + SLOT.size
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
            self._introduce(name, thread, now)
            head = OPEN.prefix(bool(args)) + b"\0" + self._names[name]
            self._place(head + _pack(span) + _pack(now - start) + args)
        else:
            self._rotation = 0
        self._publish()

    def _introduce(self, name: str, thread: _Thread, now: int) -> None:
        """Have the batch know the name, and that `thread` speaks; turns a full batch."""
        needed = b""
        names = self._names
        fresh: list[str] = []
        if thread is not self._thread:
            if thread.name not in names:
                fresh.append(thread.name)
            if name not in names and name != thread.name:
                fresh.append(name)
        elif name not in names:
            fresh.append(name)
        ids = {text: _pack(len(names) + index) for index, text in enumerate(fresh)}
        for text, number in ids.items():
            needed += NAME.prefix() + b"\0" + number + _pack(text)
        if thread is not self._thread:
            speaker = ids.get(thread.name) or names[thread.name]
            needed += THREAD.prefix() + b"\0" + _pack(thread.id) + speaker
        if self._position + len(needed) > self._limit:
            # The event itself will not fit either: let the caller turn the batch.
            names.setdefault(name, b"\0")
            self._limit = -1
            return
        self._place(needed)
        names.update(ids)
        self._thread = thread

    def _place(self, data: bytes) -> None:
        end = self._position + len(data)
        self._view[self._position : end] = data
        self._position = end

    def _publish(self) -> None:
        size = self._position - self._payload
        self._words[self._base + _COMMITTED] = self._batch_events << COUNT_SHIFT | size

    def _recover(self) -> None:
        """After an interruption, let the published words say where things stand."""
        self._generation = -1
        self._limit = -1
        if self._base:
            self._batch_events = self._words[self._base + _COMMITTED] >> COUNT_SHIFT

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
