"""The read side of stack areas: what faulthandler has left there, and having it leave more.

Runs in the collector, and cold in `recover`. The other half is `stacks`.

Invariants:

- A signal is sent only to the very process, only a real-time one, and only while the kernel says
  that this process catches it: it would end any other.
- The words and texts in an area are its producer's, and may be anything: they are bounded here.
- `asked` is cleared, and ``stack_turn`` changed, after each dump was read: the producer goes on
  at the beginning when it next opens a batch, and until then behind what it wrote last.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from shmrec import fence, process
from shmrec.layout import ENTRY, STACK, STACK_THREADS, StackFlag
from shmrec.manifest import Stack
from shmrec.process import Signals, signal_bit
from shmrec.ring import Entry
from shmrec.segment import PLAUSIBLE, Segment

__all__ = ["Asking", "fatal_stack", "take_stacks"]

FATAL: Final = "fatal"
ASKED: Final = "asked"
DEADLINE_SECONDS: Final = 0.5
_POLL_FIRST_SECONDS: Final = 0.0005
_POLL_LAST_SECONDS: Final = 0.01
_TASKS_LIMIT: Final = 2048


@dataclass(frozen=True)
class Asking:
    """A process whose stacks are wanted; `pidfd` may be -1."""

    entry: Entry
    pidfd: int


def fatal_stack(segment: Segment, entry: Entry) -> Stack | None:
    """What the producer left at a fatal signal, if it did."""
    if not entry.stacks & (StackFlag.FATAL | StackFlag.APPLICATION):
        # Looking at memory that nobody has used would have it allocated.
        return None
    text, cut = _text(segment, entry.index, FATAL)
    if not text:
        return None
    taken = entry.ended_ns or entry.detached_ns or time.monotonic_ns()
    return Stack(FATAL, taken, text, cut, "", _idents(segment, entry.index))


def take_stacks(
    segment: Segment,
    wanted: Iterable[Asking],
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    stop: Callable[[], bool] = bool,
) -> dict[tuple[int, int], list[Stack]]:
    """Ask these processes for their stacks; by ring index and incarnation.

    Where there is none, its `Stack` has no text and a note that says why. Takes at most
    `deadline_seconds` in all.
    """
    found: dict[tuple[int, int], list[Stack]] = {}
    waiting: list[_Dump] = []
    for asking in wanted:
        dump = _Dump(segment, asking)
        found[asking.entry.index, asking.entry.incarnation] = dump.stacks
        if dump.ask():
            waiting.append(dump)
    deadline = time.monotonic() + deadline_seconds
    pause = _POLL_FIRST_SECONDS
    while waiting and not stop():
        late = time.monotonic() > deadline
        waiting = [dump for dump in waiting if not dump.finish(late)]
        if waiting:
            time.sleep(pause)
            pause = min(2 * pause, _POLL_LAST_SECONDS)
    return found


class _Dump:
    """One process's dump, from the signal to the text."""

    def __init__(self, segment: Segment, asking: Asking) -> None:
        self._segment = segment
        self._entry = asking.entry
        self._pidfd = asking.pidfd
        self._blocked: set[int] = set()
        self._asked_ns = 0
        self.stacks: list[Stack] = []

    def ask(self) -> bool:
        """Send the signal, or note why not; whether it was sent."""
        entry = self._entry
        why = self._obstacle()
        if why:
            self._note(why)
            return False
        late, cut = self._take()
        if late:
            # Of a request that it was too slow for, or stopped: it had the signal all the same.
            note = "written after an earlier request had been given up"
            self.stacks.append(Stack(ASKED, time.monotonic_ns(), late, cut, note, self._named()))
        # Threads that never take signals are no sign of a dump under way.
        self._blocked = set(self._blocking())
        self._asked_ns = time.monotonic_ns()
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, entry.stack_signal)
            else:
                os.kill(entry.pid, entry.stack_signal)
        except OSError as error:
            self._note(f"it could not be asked: {error.strerror}")
            return False
        return True

    def _obstacle(self) -> str:
        entry = self._entry
        number = entry.stack_signal
        if not entry.stacks & StackFlag.ASKED:
            return "it leaves none when asked"
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return f"it names signal {number}, which is no real-time signal"
        seen = process.stat(entry.pid)
        if seen is None or seen.state in "ZX" or seen.start_ticks != entry.start_ticks:
            return "it has ended"
        if seen.state in "Tt":
            return "it is stopped"
        if not self._takes_part():
            return "it has not this recording's memory"
        if not process.signals(entry.pid).caught & signal_bit(number):
            return f"it does not listen to signal {number} any more"
        return ""

    def _takes_part(self) -> bool:
        """Whether it is a process of the recording: a pid in an entry is but somebody's word.

        A signal must not go to whomever a worker names, least of all when root sends it.
        """
        mapped = process.has_mapped(self._entry.pid, os.fstat(self._segment.fd), self._segment.path)
        return mapped if mapped is not None else os.geteuid() != 0

    def _blocking(self) -> Iterator[int]:
        bit = signal_bit(self._entry.stack_signal)
        for task in process.tasks(self._entry.pid)[:_TASKS_LIMIT]:
            if process.signals(self._entry.pid, task).blocked & bit:
                yield task

    def finish(self, late: bool) -> bool:
        """Take the text if it is all there, or, when it is late, what is; whether that was it."""
        done = self._done()
        if not done and not late:
            return False
        text, cut = self._take()
        if text:
            note = "" if done else "it was not finished in time"
            self.stacks.append(
                Stack(ASKED, self._asked_ns, text, cut or not done, note, self._named())
            )
        elif not done:
            self._note("it did not answer in time")
        else:
            self._note("nothing was written: no room was left, or the descriptor was closed")
        return True

    def _done(self) -> bool:
        """Whether the signal has been taken and its handler has returned: meanwhile the kernel
        keeps the signal blocked in the thread that it interrupted."""
        masks = process.signals(self._entry.pid)
        if masks == Signals():
            return True
        if masks.pending & signal_bit(self._entry.stack_signal):
            return False
        return not set(self._blocking()) - self._blocked

    def _take(self) -> tuple[str, bool]:
        """The text, and room for the next."""
        segment, index = self._segment, self._entry.index
        text, cut = _text(segment, index, ASKED)
        if text:
            where = STACK.bytes_at(ASKED, segment.geometry.stack(index))
            segment.view[where] = bytes(where.stop - where.start)
            fence.release()
            word = ENTRY.word("stack_turn", segment.geometry.entry(index))
            segment.words[word] = (segment.words[word] & PLAUSIBLE) + 1
        return text, cut

    def _named(self) -> dict[int, int]:
        return _idents(self._segment, self._entry.index)

    def _note(self, why: str) -> None:
        when = self._asked_ns or time.monotonic_ns()
        self.stacks.append(Stack(ASKED, when, "", note=why))


def _text(segment: Segment, index: int, part: str) -> tuple[str, bool]:
    """A part's text, and whether the part ended before it did."""
    where = STACK.bytes_at(part, segment.geometry.stack(index))
    raw = bytes(segment.view[where])
    full = not raw.endswith(b"\0")
    text = raw.strip(b"\0")
    # faulthandler writes ASCII, whatever names are made of.
    shown = text.decode("ascii", "replace")
    return shown, bool(text) and (full or not text.endswith(b"\n"))


def _idents(segment: Segment, index: int) -> dict[int, int]:
    first = STACK.word("threads", segment.geometry.stack(index))
    words = segment.words[first : first + 2 * STACK_THREADS].tolist()
    return {ident: thread for ident, thread in zip(words[::2], words[1::2], strict=True) if ident}
