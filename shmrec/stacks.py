"""Has faulthandler leave this process's stacks in its stack area, at C level, without the GIL.

Runs in producers. faulthandler writes to a descriptor of ``/proc/self/mem`` that stands at the
area's address: at a fatal signal into `fatal`, and at a real-time signal, which the collector
sends to a process under suspicion, into `asked`. Each part ends at a guard page, so that a dump
that is too long is cut and touches nothing else.

Invariants:

- Nothing is dumped while all is well: reading the stacks of running threads has crashed
  interpreters (python/cpython#116008, #131580). Only who is dying or under suspicion is dumped.
- An application that uses faulthandler keeps its output: who had it enabled, or enables it
  later, has the fatal signals; we stand back, and the entry says so.
- A forked child writes nothing into its parent's area: its descriptors lead nowhere until it
  has a ring, and an area, of its own.
- There is one area in a process, that of the recording that it joined first.

Source of the formats: CPython's ``Modules/faulthandler.c``, proc(5) on ``/proc/pid/mem``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from shmrec import threads
from shmrec.errors import SegmentError
from shmrec.guarded import map_guarded, unmap_guarded
from shmrec.layout import ENTRY, STACK, STACK_SIZE, STACK_THREADS, StackFlag
from shmrec.process import signals
from shmrec.segment import Segment

__all__ = ["DEFAULT_SIGNAL", "ENVIRONMENT", "after_fork", "arm", "disarm", "renew", "stack_signal"]

ENVIRONMENT: Final = "SHMREC_SIGNAL"
DEFAULT_SIGNAL: Final = signal.SIGRTMAX - 7
_MEMORY: Final = "/proc/self/mem"
_HIGH: Final = 200
"""Descriptors from here on: whoever closes all and opens others gets the lowest numbers, and
faulthandler would write to those."""


class _Rewound(Protocol):
    def rewinds(self, fd: int, start: int, /) -> None: ...


class _Place(NamedTuple):
    """Where the stacks of this process go."""

    segment: Segment
    ring: int
    fatal: int
    asked: int


_place: _Place | None = None
# faulthandler keeps the numbers of its descriptors: what they lead to may change.
_fds: dict[str, int] = {}
_signal = 0
_ours = False
_rows: dict[int, int] = {}


def stack_signal(environ: Mapping[str, str] = os.environ) -> int:
    """The signal at which a process leaves its stacks: ``SHMREC_SIGNAL``, 0 for none.

    Only a real-time signal will do: every other means something already.
    """
    asked = environ.get(ENVIRONMENT, "")
    if not asked:
        return DEFAULT_SIGNAL
    number = int(asked) if asked.isdecimal() and len(asked) < 4 else 0
    return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else 0


def arm(segment: Segment, index: int, engine: _Rewound) -> None:
    """Have this process's stacks written into the area of ring `index`, which it owns.

    Where that cannot be done the entry says which stacks there will not be; raises nothing.
    """
    global _place
    words, entry = segment.words, segment.geometry.entry(index)
    words[ENTRY.word("stacks", entry)] = words[ENTRY.word("stack_signal", entry)] = 0
    if _place is not None or not stack_signal():
        return
    area = segment.geometry.stack(index)
    parts = {name: STACK.bytes_at(name, area) for name in ("fatal", "asked")}
    mapped: dict[str, int] = {}
    try:
        segment.reserve(area, STACK_SIZE)
        segment.view[area : area + STACK_SIZE] = bytes(STACK_SIZE)
        for name, part in parts.items():
            mapped[name] = map_guarded(segment.fd, part.start, part.stop - part.start)
            _open_memory(name, mapped[name])
    except (OSError, SegmentError):
        _unmap(mapped)
        return
    _place = _Place(segment, index, mapped["fatal"], mapped["asked"])
    _name_threads()
    flags = _listen() | _guard_fatal()
    engine.rewinds(_fds["asked"], mapped["asked"])
    words[ENTRY.word("stack_signal", entry)] = _signal
    words[ENTRY.word("stacks", entry)] = flags


def _open_memory(name: str, address: int) -> None:
    fd = os.open(_MEMORY, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.lseek(fd, address, os.SEEK_SET)
        _lead(name, fd)
    finally:
        os.close(fd)


def _lead(name: str, fd: int) -> None:
    """Have the descriptor that faulthandler has, or is about to have, lead where `fd` does."""
    known = _fds.get(name)
    if known is not None:
        os.dup2(fd, known, inheritable=False)
        return
    try:
        _fds[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        # The limit of descriptors is lower than that.
        _fds[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _unmap(mapped: dict[str, int]) -> None:
    for name, address in mapped.items():
        with contextlib.suppress(OSError):
            unmap_guarded(address, STACK.bytes_at(name).stop - STACK.bytes_at(name).start)


def _listen() -> int:
    """Leave stacks at the signal, if nobody else has it."""
    global _signal
    if not _signal:
        number = stack_signal()
        if signals(os.getpid()).has(number):
            return 0
        # Not chained: so the kernel keeps the signal blocked while the stacks are written, by
        # which the collector sees when they are.
        faulthandler.register(number, file=_fds["asked"], all_threads=True, chain=False)
        _signal = number
    return StackFlag.ASKED


def _guard_fatal() -> int:
    """Leave stacks at fatal signals, unless the application has faulthandler enabled."""
    global _ours
    if not _ours:
        if faulthandler.is_enabled():
            return StackFlag.APPLICATION
        faulthandler.enable(_fds["fatal"], all_threads=True)
        _ours = True
        _watch_application()
    return StackFlag.FATAL


def _watch_application() -> None:
    """Learn of it when the application takes faulthandler over after us."""
    originals = {name: getattr(faulthandler, name) for name in ("enable", "disable")}

    def taking(name: str, flag: int) -> Callable[..., Any]:
        original = originals[name]

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            global _ours
            for each, restored in originals.items():
                setattr(faulthandler, each, restored)
            if _ours:
                _ours = False
                _say(StackFlag.FATAL, flag)
            return original(*args, **kwargs)

        return call

    setattr(faulthandler, "enable", taking("enable", StackFlag.APPLICATION))  # noqa: B010
    setattr(faulthandler, "disable", taking("disable", 0))  # noqa: B010
    _originals.update(originals)


_originals: dict[str, Callable[..., Any]] = {}


def _say(instead_of: int, flag: int) -> None:
    if _place is not None:
        segment, index, *_ = _place
        word = ENTRY.word("stacks", segment.geometry.entry(index))
        with contextlib.suppress(ValueError):
            segment.words[word] = segment.words[word] & ~instead_of | flag


def renew() -> None:
    """Be asked first again at SIGABRT, after a host has set up its signals; main thread only.

    gunicorn's workers reset them after `post_fork`. The handler that they installed comes
    after the stacks: faulthandler calls what it found.
    """
    if not _ours:
        return
    handler = signal.getsignal(signal.SIGABRT)
    if handler is None:
        return
    _originals["disable"]()
    # Disabling put back what was there before the host's.
    signal.signal(signal.SIGABRT, handler)
    _originals["enable"](_fds["fatal"], all_threads=True)


def disarm(segment: Segment) -> None:
    """Leave no more stacks in the segment's area, which may get another owner."""
    global _place, _ours, _signal
    if _place is None or _place.segment is not segment:
        return
    entry = segment.geometry.entry(_place.ring)
    segment.words[ENTRY.word("stacks", entry)] = 0
    threads.listener = None
    if _signal:
        faulthandler.unregister(_signal)
        _signal = 0
    if _ours:
        for name, original in _originals.items():
            setattr(faulthandler, name, original)
        faulthandler.disable()
        _ours = False
    mapped = {"fatal": _place.fatal, "asked": _place.asked}
    _place = None
    for fd in _fds.values():
        with contextlib.suppress(OSError):
            os.close(fd)
    _fds.clear()
    _unmap(mapped)


def after_fork() -> None:
    """In a forked child: the area is the parent's, and so is the memory at the descriptors."""
    global _place
    if _place is None:
        return
    threads.listener = None
    mapped = {"fatal": _place.fatal, "asked": _place.asked}
    _place = None
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        nowhere = -1
    for fd in _fds.values():
        with contextlib.suppress(OSError):
            if nowhere < 0:
                os.close(fd)
            else:
                os.dup2(nowhere, fd, inheritable=False)
    if nowhere >= 0:
        os.close(nowhere)
    _unmap(mapped)


# Which kernel thread a stack is of: faulthandler knows threads by another number.


def _name_threads() -> None:
    _rows.clear()
    threads.listener = _note_thread
    main = threads.main_ident()
    if main:
        _note_thread(main, os.getpid())
    threads.Speaker()


def _note_thread(ident: int, kernel_id: int) -> None:
    """A thread records for the first time; the newest one of an ident counts."""
    if _place is None:
        return
    segment, index, *_ = _place
    row = _rows.setdefault(ident, len(_rows))
    if row >= STACK_THREADS:
        # More threads than rows: their rows are used again.
        row %= STACK_THREADS
    word = STACK.word("threads", segment.geometry.stack(index)) + 2 * row
    with contextlib.suppress(ValueError, OverflowError):
        segment.words[word] = 0
        segment.words[word + 1] = kernel_id
        segment.words[word] = ident
