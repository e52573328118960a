"""The read side of stack areas: what faulthandler has left there, and having it leave more.

Runs in the collector, and cold in `recover`. The other half is `stacks`.

Invariants:

- A signal is sent only to the very process, only a real-time one, and only while the kernel says
  that this process catches it, for it would end any other, and has its memory open, as whoever
  leaves stacks does: the words that name the process are anybody's who records, the signal would
  come from a collector that may have more rights, and to some it is an order.
- A process that has a handler in Python for it is asked politely first: see `stacks`. Of one that
  does not come to that the stacks are taken at once.
- Then the signal goes to a thread that is running, if one is: of Python's threads that is the one
  that holds the GIL, and while it writes the others do not change what it reads. Sent to the
  process it would interrupt the main thread, beside which the others run on: among busy threads,
  one dump in ten then crashes the interpreter.
- The words and texts in an area are its producer's, and may be anything: they are bounded here.
- `asked` is cleared, and ``stack_turn`` changed, after each dump was read: the producer goes on
  at the beginning when it next opens a batch, and until then behind what it wrote last.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from shmrec import fence, process
from shmrec.entry import Entry
from shmrec.layout import ENTRY, STACK, STACK_THREADS, StackFlag
from shmrec.manifest import Stack
from shmrec.own_memory import HIGH
from shmrec.process import Signals, signal_bit
from shmrec.segment import PLAUSIBLE, Segment
from shmrec.stacks import LEAVING, polite_signal

__all__ = ["Asking", "fatal_stack", "take_stacks"]

FATAL: Final = "fatal"
ASKED: Final = "asked"
DEADLINE_SECONDS: Final = 0.5
POLITE_SECONDS: Final = 0.15
"""For that long a process may come to its handler; other threads keep it from the GIL meanwhile."""
_POLL_FIRST_SECONDS: Final = 0.0005
_POLL_LAST_SECONDS: Final = 0.01
_TASKS_LIMIT: Final = 2048
_RUNNERS_LIMIT: Final = 256


_LEAVING: Final = re.compile(rf'^  File "[^"\n]*", line [0-9]+ in {LEAVING}\n', re.M)


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
    deadline = time.monotonic() + deadline_seconds
    found: dict[tuple[int, int], list[Stack]] = {}
    waiting: list[_Dump] = []
    for asking in wanted:
        dump = _Dump(segment, asking)
        found[asking.entry.index, asking.entry.incarnation] = dump.stacks
        if time.monotonic() > deadline or stop():
            dump.note("the others took all the time that there was")
        elif dump.ask():
            waiting.append(dump)
    pause = _POLL_FIRST_SECONDS
    while waiting and not stop():
        waiting = [dump for dump in waiting if not dump.finish(deadline)]
        if waiting:
            time.sleep(pause)
            pause = min(2 * pause, _POLL_LAST_SECONDS)
    for dump in waiting:
        # Told to stop: what comes now is for nobody.
        dump.let_go()
    return found


class _Dump:
    """One process's dump, from the signal to the text."""

    def __init__(self, segment: Segment, asking: Asking) -> None:
        self._segment = segment
        self._entry = asking.entry
        self._pidfd = asking.pidfd
        self._at = segment.geometry.entry(asking.entry.index)
        self._blocked: set[int] = set()
        self._quiet = False
        self._ticket = 0
        self._polite_until = 0.0
        self._task = 0
        self._asked_ns = 0
        self.stacks: list[Stack] = []

    def ask(self) -> bool:
        """Send the signal, or note why not; whether it was sent."""
        why = self._obstacle()
        if why:
            self.note(why)
            return False
        late, cut = self._take()
        if late:
            # Of a request that it was too slow for, or stopped: it had the signal all the same.
            note = "written after an earlier request had been given up"
            self.stacks.append(Stack(ASKED, time.monotonic_ns(), late, cut, note, self._named()))
        return self._ask_politely() or self._insist()

    def _ask_politely(self) -> bool:
        """Ask for the stacks as soon as they can be had safely; whether that could be asked."""
        entry = self._entry
        number = polite_signal(entry.stack_signal)
        if not entry.stacks & StackFlag.POLITE:
            return False
        self._asked_ns = self._ticket = time.monotonic_ns()
        self._word("stack_wanted", self._ticket)
        masks = process.signals(entry.pid)
        # One that is pending already has not been come to for a while.
        if masks.caught & signal_bit(number) and not masks.pending & signal_bit(number):
            try:
                self._send(number)
            except OSError:
                pass
            else:
                self._polite_until = time.monotonic() + POLITE_SECONDS
                return True
        self.let_go()
        return False

    def let_go(self) -> None:
        """Want no polite answer any more."""
        self._ticket = 0
        self._word("stack_wanted", 0)

    def _answered(self) -> bool:
        answered = self._read_word("stack_answered") == self._ticket
        fence.acquire()
        return answered

    def _word(self, name: str, value: int) -> None:
        self._segment.words[ENTRY.word(name, self._at)] = value

    def _read_word(self, name: str) -> int:
        return self._segment.words[ENTRY.word(name, self._at)]

    def _insist(self) -> bool:
        """Have them written at once, or note why not; whether the signal was sent."""
        entry = self._entry
        # Threads that never take signals are no sign of a dump under way.
        self._blocked = set(self._blocking())
        self._asked_ns = time.monotonic_ns()
        bit, masks = signal_bit(entry.stack_signal), process.signals(entry.pid)
        if masks.pending & bit:
            # An earlier one is still to come; each would be answered.
            return True
        if not masks.caught & bit:
            # Looking took time, and meanwhile it may have become another program.
            self.note(_deaf(entry.stack_signal))
            return False
        try:
            if not self._send_to_runner():
                self._send(entry.stack_signal)
        except OSError as error:
            self.note(f"it could not be asked: {error.strerror}")
            return False
        return True

    def _send(self, number: int) -> None:
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, number)
        else:
            os.kill(self._entry.pid, number)

    def _send_to_runner(self) -> bool:
        """Send it to the thread that most likely holds the GIL, if one seems to."""
        pid, number = self._entry.pid, self._entry.stack_signal
        tasks = [task for task in process.tasks(pid) if task not in self._blocked]
        if len(tasks) < 2:
            return False
        known = set(self._named().values())
        # Those that have recorded run Python code; of others nobody knows.
        tasks.sort(key=lambda task: task not in known)
        for task in tasks[:_RUNNERS_LIMIT]:
            if process.running(pid, task):
                try:
                    sent = process.send_to_thread(pid, task, number)
                except OSError:
                    # It has just ended.
                    continue
                self._task = task if sent else 0
                return sent
        return False

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
        if not process.signals(entry.pid).caught & signal_bit(number):
            return _deaf(number)
        open_there = process.writes_own_memory(entry.pid, HIGH)
        if open_there is None and not os.geteuid():
            # Not allowed to look, as in some containers: then rather none of root's.
            open_there = process.user(entry.pid) not in (None, 0)
        if open_there is False:
            return "it has closed the descriptor that its stacks would go to"
        return ""

    def _blocking(self) -> Iterator[int]:
        bit = signal_bit(self._entry.stack_signal)
        for task in process.tasks(self._entry.pid)[:_TASKS_LIMIT]:
            if process.signals(self._entry.pid, task).blocked & bit:
                yield task

    def finish(self, deadline: float) -> bool:
        """Take the text if it is all there, or, when it is late, what is; whether that was it."""
        late = time.monotonic() > deadline
        if self._ticket and not self._answered():
            if not late and time.monotonic() < self._polite_until:
                return False
            # From now on it does not begin. What it has begun it goes on with, and the other
            # signal would come in the middle of that.
            self._word("stack_wanted", 0)
            # It had time to end, or to become another program.
            why = "" if late else self._obstacle()
            if not late and _text(self._segment, self._entry.index, ASKED)[0]:
                return False
            self.let_go()
            if late:
                return self._end(done=False)
            if why:
                self.note(why)
            return bool(why) or not self._insist()
        if self._ticket:
            self.let_go()
            return self._end(done=True)
        # Once is not enough: for an instant the signal has been taken and is not blocked yet.
        # When it is late, what the last look found will do: looking at many threads takes time.
        quiet = self._quiet if late else self._done()
        done, self._quiet = quiet and (late or self._quiet), quiet
        return (done or late) and self._end(done=done)

    def _end(self, *, done: bool) -> bool:
        """Take what was written, `done` if that is all."""
        text, cut = self._take()
        if text:
            note = "" if done else "it was not finished in time"
            self.stacks.append(
                Stack(ASKED, self._asked_ns, text, cut or not done, note, self._named())
            )
        elif not done:
            self.note("it did not answer in time")
        else:
            self.note("nothing was written: no room was left, or the descriptor was closed")
        return True

    def _done(self) -> bool:
        """Whether the signal has been taken and its handler has returned: meanwhile the kernel
        keeps the signal blocked in the thread that it interrupted."""
        masks = process.signals(self._entry.pid, self._task)
        if masks == Signals():
            return True
        if masks.pending & signal_bit(self._entry.stack_signal):
            return False
        return all(task in self._blocked for task in self._blocking())

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

    def note(self, why: str) -> None:
        """Have a `Stack` without text say why there is none."""
        when = self._asked_ns or time.monotonic_ns()
        self.stacks.append(Stack(ASKED, when, "", note=why))


def _deaf(number: int) -> str:
    return f"it does not listen to signal {number} any more"


def _text(segment: Segment, index: int, part: str) -> tuple[str, bool]:
    """A part's text, and whether the part ended before it did."""
    where = STACK.bytes_at(part, segment.geometry.stack(index))
    raw = bytes(segment.view[where])
    full = not raw.endswith(b"\0")
    text = raw.strip(b"\0")
    # faulthandler writes ASCII, whatever names are made of.
    shown = text.decode("ascii", "replace")
    # Nor does it matter that one was answering politely.
    shown = _LEAVING.sub("", shown)
    return shown, bool(text) and (full or not text.endswith(b"\n"))


def _idents(segment: Segment, index: int) -> dict[int, int]:
    first = STACK.word("threads", segment.geometry.stack(index))
    words = segment.words[first : first + 2 * STACK_THREADS].tolist()
    return {ident: thread for ident, thread in zip(words[::2], words[1::2], strict=True) if ident}
