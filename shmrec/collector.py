"""The collector: a service process of its own, one per recording.

One loop: generation tick, requests, deaths, triggers; the snapshots that come of them are taken in
`taking`. It is the only writer of ``generation`` and of the other words marked "collector" in
`layout`; it holds nothing that a producer waits for, and killing it loses nothing: the segment
stays, and another collector adopts it.

Invariants:

- A segment with a death that is not on disk yet is never removed.
- A stop is obeyed within a second, also in the middle of a snapshot.
- Whatever somebody scribbles in the memory, or cuts off it, the loop goes on or ends in order.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from shmrec import alarms, cuts, fence, hidden, ledger, naming, requests
from shmrec.capture import CUT_SHORT
from shmrec.control_block import ControlBlock
from shmrec.deaths import HOST, UNKNOWN
from shmrec.errors import CutShortError, SegmentError
from shmrec.incidents import Plan
from shmrec.layout import SegmentState, Status, Verb
from shmrec.roster import Roster
from shmrec.segment import Segment
from shmrec.takeover import Settings
from shmrec.taking import Snapshots, on_one_line
from shmrec.wakeup import open_wakeup, refused, remove_wakeup, wake, watch_wakeup

__all__ = ["Collector", "spare_signals"]

_TICK_NS: Final = 1_000_000_000
_SWEEP_NS: Final = 60_000_000_000
_SCRIBBLING_NS: Final = 60_000_000_000
"""A scribbler that goes on is spoken of that often."""
_LAST_LOCK_SECONDS: Final = 0.2
_UNUSED_SECONDS: Final = 60.0
_FAILURES: Final = 20
_FAILURE_SECONDS: Final = 0.2
_SPARED: Final = (signal.SIGUSR1, signal.SIGUSR2)


def spare_signals() -> None:
    """Outlive the signals that may be triggers, whether they are or not; from the main thread.

    No program that is started inherits this, as it would if they were ignored.
    """
    for number in _SPARED:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _nothing)


def _nothing(*_: object) -> None:
    """What a signal that is no trigger does."""


def _prepare_for_many() -> None:
    """A descriptor for every producer, and what must be loaded while there are any left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fence.barrier()


class Collector:
    """Serves one recording until told to stop, or until nobody is left (`Settings.linger`)."""

    def __init__(self, segment: Segment, settings: Settings) -> None:
        self.segment = segment
        self.settings = settings
        self.stopping = False
        self.roster = Roster(segment)
        self._control = ControlBlock(segment)
        self._next_word_of_scribbling = 0
        self._snapshots = Snapshots(
            segment, settings, self.roster, self._control, stopping=lambda: self.stopping
        )
        self._alarms = self._snapshots.alarms
        _prepare_for_many()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = open_wakeup(segment, create=True)
        self._watch = watch_wakeup(segment) if self._wakeup is not None else cuts.NOWHERE
        if self._wakeup is None and (squatted := refused(segment)):
            settings.log(f"{squatted}: not used, requests may wait for a second; have it removed")
        self._next_tick = time.monotonic_ns()
        self._next_sweep = self._next_tick + _SWEEP_NS
        self._waker: threading.Thread | None = None
        self._failures = 0

    def stop(self, *_: object) -> None:
        """Ask the loop to end; may be called from a signal handler or another thread."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Make the loop look around now."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"w")

    def run(self, until: Callable[[], bool] = bool) -> None:
        """Serve until stopped, `until()` holds, or lingering is over; then end in order.

        Raises `CutShortError`, when all that is left is kept, if the memory was cut short.
        """
        if self._wakeup is not None:
            self._waker = self._started_waker()
        try:
            while True:
                while not self.stopping and not until() and not self._deserted():
                    self._turn_safely()
                    self._look_at_memory()
                if self._finish(wanted=self.stopping or until()):
                    break
        except BaseException:
            # Not ours to end: the segment stays for the next collector to adopt.
            self._let_go()
            raise
        self._let_go()

    def handle_signals(self) -> None:
        """Let SIGTERM and SIGINT stop the loop, and others be triggers; from the main thread."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        spare_signals()
        handlers = self._alarms.handlers()
        handlers.update(dict.fromkeys((signal.SIGTERM, signal.SIGINT), self.stop))
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # Whoever launched us may have had them blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*handlers, *_SPARED})

    def _started_waker(self) -> threading.Thread | None:
        waker = threading.Thread(target=self._forward_wakeups, daemon=True)
        try:
            waker.start()
        except (RuntimeError, MemoryError):
            self.settings.log("no memory or no leave for a thread: requests may wait for a second")
            return None
        return waker

    def _forward_wakeups(self) -> None:
        while not self.stopping:
            with contextlib.suppress(Exception):
                self._wakeup.acquire()
            self.wake()

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for fd in self.roster.pidfds():
            poll.register(fd, select.POLLIN)
        now = time.monotonic_ns()
        waits = [self._next_tick - now, self._alarms.wait_ns(self.roster.deaths, now)]
        soonest = min(wait for wait in waits if wait is not None)
        poll.poll(max(0.0, soonest / 1e6))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass

    def _turn_safely(self) -> None:
        """A turn; what it did not foresee is told, and after a while no longer borne."""
        try:
            self._poll()
            self._turn()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            if self._failures >= _FAILURES:
                raise
            self.settings.log(f"{on_one_line(error)}; going on")
            time.sleep(_FAILURE_SECONDS)

    def _look_at_memory(self) -> None:
        """Put back what was scribbled over; keep what is left if the rest was cut off."""
        if self.segment.cut:
            self._keep_remnant()
        now = time.monotonic_ns()
        if self._control.restore() and now >= self._next_word_of_scribbling:
            self._next_word_of_scribbling = now + _SCRIBBLING_NS
            self.settings.log(
                f"the control block of recording {self.settings.name!r} was overwritten by a "
                f"process that has it open: put back ({self._control.restored} so far)"
            )

    def _keep_remnant(self) -> None:
        """Take a snapshot of what is left, and end; whoever records there is lost with it."""
        segment, name = self.segment, self.settings.name
        lost = f"recording {name!r}: {CUT_SHORT}, {segment.left:,} of {len(segment.view):,} bytes"
        try:
            self.roster.look(time.monotonic_ns())
            if self.roster.anybody() or self.roster.deaths or self.roster.ever_attached:
                plan = Plan("recover", CUT_SHORT)
                kept = f"are left, what they hold is in {self._snapshots.take(plan, last=True)}"
            else:
                kept = "are left, and nobody had recorded anything"
        except Exception as error:
            raise CutShortError(
                f"{lost} are left in memory and could not be kept: {on_one_line(error)}; "
                f"`shmrec-dump recover {name}` reads them"
            ) from error
        if segment.linked():
            naming.remove(name, self.settings.path)
            remove_wakeup(segment)
        raise CutShortError(f"{lost} {kept}; start it again, and its processes")

    def _turn(self) -> None:
        """One look at everything."""
        now = time.monotonic_ns()
        tick = now >= self._next_tick
        self.roster.look(now, tick=tick)
        if tick:
            self._next_tick = now + _TICK_NS
            ledger.advance(self.segment)
            self.segment.set_word("heartbeat_ns", now)
            self._alarms.count_held_back()
            if now >= self._next_sweep:
                self._next_sweep = now + _SWEEP_NS
                hidden.sweep(self.settings.directory)
        self._serve()
        live = [watched.index for watched in self.roster.living()]
        self._alarms.look_around(live, time.monotonic_ns())
        self._snapshots.take_due()

    def _deserted(self) -> bool:
        linger = self.settings.linger
        if linger is None or self.roster.deaths:
            return False
        silence = time.monotonic() - self.roster.last_alive
        return silence > (linger if self.roster.ever_attached else max(linger, _UNUSED_SECONDS))

    def _serve(self) -> None:
        """Answer the requests that wait; those for snapshots share one."""
        waiting = requests.pending(self.segment)
        kept = [request for request in waiting if request.verb == Verb.SNAPSHOT]
        # Nobody would take away what is made for who does not wait.
        handed = [each for each in waiting if each.verb == Verb.TRANSFER and not each.abandoned]
        for request in waiting:
            if self._alarms.holds(request):
                continue
            if request.verb == Verb.ENDED:
                self.roster.watcher.told(*request.argument, request.reason or HOST)
                requests.answer(self.segment, request, "")
            elif request.verb == Verb.STOP:
                self.stopping = True
                requests.answer(self.segment, request, "")
            elif request.verb in alarms.VERBS:
                now = time.monotonic_ns()
                if request.verb == Verb.TIMEOUT:
                    self.roster.watcher.timed_out(*request.argument, now)
                self._alarms.serve(request, self.roster.watcher.watched.values(), now)
            elif request not in kept and request not in handed:
                why = "abandoned" if request.verb == Verb.TRANSFER else "unknown"
                requests.answer(
                    self.segment, request, f"{why} request {request.verb}", Status.FAILED
                )
        self._snapshots.take_asked(kept, handed)

    # The end.

    def _finish(self, *, wanted: bool) -> bool:
        """End the recording: last death snapshots, closed for all, names removed.

        Unless it is `wanted` it ends only if nobody has attached since we looked; whether it
        ended.
        """
        self.roster.look(time.monotonic_ns())
        for death in self.roster.deaths:
            death.cause = death.cause or UNKNOWN
        self._snapshots.take_due(last=True)
        segment = self.segment
        with contextlib.ExitStack() as held:
            # Without the lock, whoever attaches now learns at its first event that it is over.
            with contextlib.suppress(SegmentError):
                held.enter_context(segment.locked(_LAST_LOCK_SECONDS))
            if not wanted and self.roster.anybody():
                self.roster.last_alive = time.monotonic()
                return False
            segment.set_word("state", SegmentState.CLOSED)  # step: close
            ledger.advance(segment)
            if self.roster.deaths:
                self.settings.log(
                    f"recording {self.settings.name!r} is left in memory, its evidence could not "
                    f"be written: read it with `shmrec-dump recover {self.settings.name}`"
                )
            elif segment.linked():
                naming.remove(self.settings.name, self.settings.path)  # step: unname
                remove_wakeup(segment)
        for request in requests.pending(segment):
            requests.answer(segment, request, "the recording has been stopped", Status.FAILED)
        return True

    def _let_go(self) -> None:
        """Close everything of this process; the recording itself is not touched."""
        self.stopping = True
        if self._waker is not None:
            wake(self._wakeup)
            self._waker.join(timeout=1.0)
        cuts.unwatch(self._watch)
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        self.roster.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.segment.close()
