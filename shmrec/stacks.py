"""Has faulthandler leave this process's stacks in its stack area, at C level, without the GIL.

Runs in producers. faulthandler writes to a descriptor of ``/proc/self/mem`` that stands at the
area's address: at a fatal signal into `fatal`, and at a real-time signal, which the collector
sends to a process under suspicion, into `asked`. Each part ends at a guard page, so that a dump
that is too long is cut and touches nothing else.

There are two such signals. The first is polite: a handler in Python, which the main thread runs
with the GIL, so that no other thread changes what is read. Only who does not come to that gets the
second, at which faulthandler writes at once.

Invariants:

- Nothing is dumped while all is well: reading the stacks of running threads has crashed
  interpreters (python/cpython#116008, #131580). Only who is dying or under suspicion is dumped.
- An application that uses faulthandler keeps its output: who had it enabled, or enables it
  later, has the fatal signals; we stand back, and the entry says so.
- A forked child writes nothing into its parent's area: its descriptors lead nowhere until it
  has a ring, and an area, of its own. Where C code forks only the extension can see to that.
- The signal is ignored before we listen and after: one that comes late ends nobody.
- There is one area in a process, that of the recording that it joined first.

Source of the format: CPython's ``Modules/faulthandler.c``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import weakref
from _thread import RLock
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from shmrec import fence, threads
from shmrec.errors import SegmentError
from shmrec.extension import EXTENSION
from shmrec.guarded import map_guarded, unmap_guarded
from shmrec.ignored import ignore_signal
from shmrec.layout import ENTRY, STACK, STACK_SIZE, STACK_THREADS, StackFlag
from shmrec.own_memory import Descriptors
from shmrec.process import signal_bit, signals, tasks
from shmrec.segment import Segment

__all__ = [
    "DEFAULT_SIGNAL",
    "ENVIRONMENT",
    "after_fork",
    "arm",
    "disarm",
    "polite_signal",
    "renew",
    "stack_signal",
]

ENVIRONMENT: Final = "SHMREC_SIGNAL"
DEFAULT_SIGNAL: Final = signal.SIGRTMAX - 7


class _Rewound(Protocol):
    def rewinds(self, fd: int, start: int, /) -> None: ...


class _Place(NamedTuple):
    """Where the stacks of this process go."""

    segment: Segment
    ring: int
    mapped: dict[str, int]
    """Addresses of the parts."""


class _File:
    """What faulthandler writes to. It drops this object when somebody else takes its place."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def flush(self) -> None:
        pass


_pid = os.getpid()
"""Whose all this is, unless C code has forked."""
_place: _Place | None = None
# faulthandler keeps the numbers of its descriptors: what they lead to may change.
_descriptors: Final = Descriptors()
_given: dict[str, weakref.ref[_File]] = {}
_signal = 0
_rows: dict[int, int] = {}
_lock: Any = RLock()

_FATAL_SIGNALS: Final = (
    signal.SIGSEGV,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGILL,
)


def stack_signal(environ: Mapping[str, str] = os.environ) -> int:
    """The signal at which a process leaves its stacks: ``SHMREC_SIGNAL``, 0 for none.

    Only a real-time signal will do: every other means something already.
    """
    asked = environ.get(ENVIRONMENT, "")
    if not asked:
        return DEFAULT_SIGNAL
    number = int(asked) if asked.isdecimal() and len(asked) < 4 else 0
    return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else 0


def polite_signal(number: int) -> int:
    """The other signal, at which stacks are left as soon as that is safe."""
    return number + 1 if number < signal.SIGRTMAX else number - 1


def arm(segment: Segment, index: int, engine: _Rewound) -> None:
    """Have this process's stacks written into the area of ring `index`, which it owns.

    Where that cannot be done the entry says which stacks there will not be; raises nothing.
    """
    global _place
    words, entry = segment.words, segment.geometry.entry(index)
    words[ENTRY.word("stacks", entry)] = words[ENTRY.word("stack_signal", entry)] = 0
    after_fork()
    with _lock:
        if _place is not None or not stack_signal():
            return
        area = segment.geometry.stack(index)
        mapped: dict[str, int] = {}
        try:
            segment.reserve(area, STACK_SIZE)
            segment.view[area : area + STACK_SIZE] = bytes(STACK_SIZE)
            for name in ("fatal", "asked"):
                part = STACK.bytes_at(name, area)
                mapped[name] = map_guarded(segment.fd, part.start, part.stop - part.start)
                _descriptors.lead_to_memory(name, mapped[name])
        except (OSError, SegmentError):
            # What leads to memory that is no longer ours must not be written to.
            _take_down(mapped)
            return
        _place = _Place(segment, index, mapped)
        _left_by_forks(_descriptors.names())
        _name_threads()
        flags = _listen() | _listen_politely() | _guard_fatal()
        engine.rewinds(_descriptors.number("asked"), mapped["asked"])
        words[ENTRY.word("stack_signal", entry)] = _signal
        words[ENTRY.word("stacks", entry)] = flags


def _unmap(mapped: dict[str, int]) -> None:
    for name, address in mapped.items():
        with contextlib.suppress(OSError):
            unmap_guarded(address, STACK.bytes_at(name).stop - STACK.bytes_at(name).start)


def _take_down(mapped: dict[str, int]) -> None:
    """Have faulthandler write nothing more for us; close and unmap what it wrote to."""
    _silence(("fatal", "asked"))
    _left_by_forks(())
    _descriptors.close()
    _unmap(mapped)


def _silence(names: Iterable[str]) -> None:
    global _signal
    for name in names:
        held = _holds(name)
        # First, lest its going be taken for somebody else's coming.
        _given.pop(name, None)
        if name == "asked":
            number, _signal = _signal, 0
            if held and number:
                with _handlers_kept((number,)):
                    faulthandler.unregister(number)
        elif held:
            with _handlers_kept(_FATAL_SIGNALS):
                faulthandler.disable()


@contextlib.contextmanager
def _handlers_kept(numbers: Iterable[int]) -> Iterator[None]:
    """Handlers that were installed since faulthandler's: it puts back those from before."""
    handlers = [(number, signal.getsignal(number)) for number in numbers]
    yield
    for number, handler in handlers:
        if callable(handler):
            # ValueError: only the main thread may.
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)


def _file(name: str) -> _File:
    """What to give faulthandler for that part; when it lets go of it, somebody else came."""
    file = _File(_descriptors.number(name))
    _given[name] = weakref.ref(file, lambda _: _taken(name))
    return file


def _holds(name: str) -> bool:
    """Whether faulthandler still has what it was given."""
    given = _given.get(name)
    return given is not None and given() is not None


def _taken(name: str) -> None:
    """The application has called faulthandler: what it wants it gets."""
    if name == "asked":
        _say(StackFlag.ASKED, 0)
    else:
        _say(StackFlag.FATAL, StackFlag.APPLICATION if faulthandler.is_enabled() else 0)


def _listen() -> int:
    """Leave stacks at the signal, if nobody else has it."""
    global _signal
    if not _holds("asked"):
        number = stack_signal()
        masks = signals(os.getpid())
        if (masks.caught | masks.blocked) & signal_bit(number):
            return 0
        # What faulthandler puts back in the end. By default the signal ends the process.
        ignore_signal(number)
        _signal = number
    # Not chained: so the kernel keeps the signal blocked while the stacks are written, by
    # which the collector sees when they are.
    faulthandler.register(_signal, file=_file("asked"), all_threads=True, chain=False)
    return StackFlag.ASKED


def _listen_politely() -> int:
    """Leave stacks at the other signal, with the GIL; only the main thread can see to that."""
    if not _holds("asked"):
        return 0
    number = polite_signal(_signal)
    try:
        if signal.getsignal(number) is not _leave_stacks:
            masks = signals(os.getpid())
            if (masks.caught | masks.blocked) & signal_bit(number):
                return 0
            signal.signal(number, _leave_stacks)
    except ValueError:
        return 0
    return StackFlag.POLITE


def _leave_stacks(number: int, frame: object) -> None:
    """The handler in Python: writes them if they are still wanted."""
    # All of it, and without a call outside: the application may be at the end of its stack, or of
    # memory, and what is raised here would come out of whatever it is doing.
    try:
        place = _place
        if place is None or _pid != os.getpid() or not _descriptors.ours("asked"):
            return
        asked = _descriptors.number("asked")
        entry = place.segment.geometry.entry(place.ring)
        words = place.segment.words
        answered = ENTRY.word("stack_answered", entry)
        # Last: by now it may have been given up, and the other signal be on its way.
        wanted = words[ENTRY.word("stack_wanted", entry)]
        # An earlier signal may have been come to when this request was there already.
        if wanted and words[answered] != wanted:
            faulthandler.dump_traceback(asked, all_threads=True)
            fence.release()
            words[answered] = wanted
    except Exception:
        return


LEAVING: Final = _leave_stacks.__name__
"""The function that is the newest call of the main thread where stacks were left politely."""


def _guard_fatal() -> int:
    """Leave stacks at fatal signals, unless the application has faulthandler enabled."""
    if not _holds("fatal") and faulthandler.is_enabled():
        return StackFlag.APPLICATION
    faulthandler.enable(_file("fatal"), all_threads=True)
    return StackFlag.FATAL


def _say(instead_of: int, flag: int) -> None:
    if _place is not None and _pid == os.getpid():
        word = ENTRY.word("stacks", _place.segment.geometry.entry(_place.ring))
        with contextlib.suppress(ValueError):
            words = _place.segment.words
            words[word] = words[word] & ~instead_of | flag


def renew() -> None:
    """Be asked first again at SIGABRT, after a host has set up its signals; main thread only.

    gunicorn's workers reset them after `post_fork`. The handler that they installed comes
    after the stacks: faulthandler calls what it found.
    """
    with _lock:
        if not _holds("fatal"):
            return
        handler = signal.getsignal(signal.SIGABRT)
        if handler is None:
            return
        _silence(("fatal",))
        try:
            # Disabling put back what was there before the host's.
            signal.signal(signal.SIGABRT, handler)
        finally:
            _guard_fatal()


def disarm(segment: Segment) -> None:
    """Leave no more stacks in the segment's area, which may get another owner."""
    global _place
    with _lock:
        if _place is None or _place.segment is not segment or _pid != os.getpid():
            return
        entry = segment.geometry.entry(_place.ring)
        segment.words[ENTRY.word("stacks", entry)] = 0
        threads.listener = None
        mapped, _place = _place.mapped, None
        _take_down(mapped)


def after_fork() -> None:
    """In a forked child: the area is the parent's, and so is the memory at the descriptors."""
    global _pid, _place, _lock
    if _pid == os.getpid():
        return
    _pid = os.getpid()
    # Another thread of the parent's may have held it, and not have got to its end.
    _lock = RLock()
    threads.listener = None
    mapped, _place = _place.mapped if _place is not None else {}, None
    if not _descriptors.names():
        return
    for name in _left_by_forks(()):
        _descriptors.accept(name)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        _take_down(mapped)
        return
    for name in _descriptors.names():
        if _descriptors.ours(name):
            _descriptors.lead(name, nowhere)
        else:
            _silence((name,))
            _descriptors.forget(name)
    os.close(nowhere)
    _unmap(mapped)


def _left_by_forks(names: Iterable[str]) -> list[str]:
    """Have those lead nowhere in children from now on; which already do in this process."""
    if EXTENSION is None:
        return []
    with contextlib.suppress(OSError):
        left = EXTENSION.left_by_forks([_descriptors.number(name) for name in names])
        return [name for name in _descriptors.names() if _descriptors.number(name) in left]
    return []


# Which kernel thread a stack is of: faulthandler knows threads by another number.


def _name_threads() -> None:
    _rows.clear()
    threads.listener = _note_thread
    # Those that have spoken in another recording will not be introduced again.
    here = set(tasks(os.getpid()))
    active: dict[Any, Any] = getattr(sys.modules.get("threading"), "_active", {})
    for thread in list(active.values()):
        # Classes of the application's may do anything.
        with contextlib.suppress(Exception):
            if type(thread.ident) is int and thread.native_id in here:
                _note_thread(thread.ident, thread.native_id)
    main = threads.main_ident()
    if main:
        _note_thread(main, os.getpid())
    threads.Speaker()


def _note_thread(ident: int, kernel_id: int) -> None:
    """A thread records for the first time; the newest one of an ident counts."""
    if _place is None:
        return
    segment, index = _place.segment, _place.ring
    row = _rows.setdefault(ident, len(_rows))
    if row >= STACK_THREADS:
        # More threads than rows: their rows are used again.
        row %= STACK_THREADS
    word = STACK.word("threads", segment.geometry.stack(index)) + 2 * row
    with contextlib.suppress(ValueError, OverflowError):
        segment.words[word] = 0
        segment.words[word + 1] = kernel_id
        segment.words[word] = ident
