"""The collector: a service process of its own, one per recording.

One loop: generation tick, requests, deaths, triggers, quota. It is the only writer of
``generation`` and of the other words marked "collector" in `layout`; it holds nothing that a
producer waits for, and killing it loses nothing: the segment stays, and another collector adopts
it.

Invariants:

- A death's ring is marked settled, and so free to be claimed again, only after a snapshot
  that holds it has its final name on disk.
- A segment with a death that is not on disk yet is never removed.
- A stop is obeyed within a second, also in the middle of a snapshot.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from shmrec import alarms, capture, fence, ledger, naming, process, requests, store
from shmrec.alarms import Alarms
from shmrec.capture import CaptureStopped, Order
from shmrec.deaths import UNKNOWN, Death, Watcher
from shmrec.errors import SegmentError, ShmrecError
from shmrec.incidents import REQUEST, Plan
from shmrec.layout import ENTRY, EntryState, SegmentState, Status, Verb
from shmrec.manifest import Cause, Stack
from shmrec.ring import RingReader
from shmrec.segment import Segment
from shmrec.takeover import Settings
from shmrec.wakeup import open_wakeup, remove_wakeup, wake

__all__ = ["Collector"]

_TICK_NS: Final = 1_000_000_000
_SWEEP_NS: Final = 60_000_000_000
_CAUSE_NS: Final = 250_000_000
_LAST_DEADLINE_NS: Final = 200_000_000
_LAST_LOCK_SECONDS: Final = 0.2
_UNUSED_SECONDS: Final = 60.0
_FAILURES: Final = 20
_FAILURE_SECONDS: Final = 0.2


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
        self.snapshots: list[Path] = []
        self.extra_pidfds: list[int] = []
        self.watcher = Watcher()
        self._deaths: list[Death] = []
        # Kept until the ring has another owner, for later snapshots hold the dead one too.
        self._causes: dict[int, tuple[int, Cause]] = {}
        self._readers = [
            RingReader(segment.view, segment.words, segment.geometry, index)
            for index in range(segment.geometry.producers)
        ]
        self._alarms = Alarms(segment, settings, self._readers, self._stacks_of)
        _prepare_for_many()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = open_wakeup(segment, create=True)
        self._next_tick = time.monotonic_ns()
        self._next_sweep = self._next_tick + _SWEEP_NS
        self._last_alive = time.monotonic()
        self._ever_attached = False
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
        """Serve until stopped, `until()` holds, or lingering is over; then end in order."""
        if self._wakeup is not None:
            self._waker = threading.Thread(target=self._forward_wakeups, daemon=True)
            self._waker.start()
        try:
            while True:
                while not self.stopping and not until() and not self._deserted():
                    self._poll()
                    self._turn_safely()
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
        handlers = self._alarms.handlers()
        handlers.update(dict.fromkeys((signal.SIGTERM, signal.SIGINT), self.stop))
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # Whoever launched us may have had them blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)

    def _forward_wakeups(self) -> None:
        while not self.stopping:
            with contextlib.suppress(Exception):
                self._wakeup.acquire()
            self.wake()

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        pending = {death.watched.pidfd for death in self._deaths}
        for fd in [*self.watcher.pidfds(), *self.extra_pidfds]:
            if fd not in pending:
                poll.register(fd, select.POLLIN)
        now = time.monotonic_ns()
        waits = [self._next_tick - now, self._alarms.wait_ns(self._deaths, now)]
        soonest = min(wait for wait in waits if wait is not None)
        poll.poll(max(0.0, soonest / 1e6))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass

    def _turn_safely(self) -> None:
        """A turn; what it did not foresee is told, and after a while no longer borne."""
        try:
            self._turn()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            if self._failures >= _FAILURES:
                raise
            trace = traceback.format_exception(error)[-2:]
            self.settings.log(f"unexpected: {' '.join(' '.join(trace).split())}; going on")
            time.sleep(_FAILURE_SECONDS)

    def _turn(self) -> None:
        """One look at everything."""
        now = time.monotonic_ns()
        self._notice_producers(now)
        self._notice_deaths(now)
        if now >= self._next_tick:
            self._next_tick = now + _TICK_NS
            ledger.advance(self.segment)
            self.segment.set_word("heartbeat_ns", now)
            if now >= self._next_sweep:
                self._next_sweep = now + _SWEEP_NS
                store.sweep(self.settings.directory)
        self._serve()
        live = (index for index in self.watcher.watched if not self._dying(index))
        self._alarms.look_around(live, time.monotonic_ns())
        self._take_what_is_due()

    # Producers coming and going.

    def _notice_producers(self, now: int) -> None:
        words, geometry = self.segment.words, self.segment.geometry
        alive = False
        for index, reader in enumerate(self._readers):
            at = geometry.entry(index)
            incarnation = words[ENTRY.word("incarnation", at)]
            if not incarnation:
                continue
            state = words[ENTRY.word("state", at)]
            if state == EntryState.DETACHED:
                if index in self.watcher.watched and not self._dying(index):
                    self.watcher.forget(index)
                self._settle(index, incarnation)
            elif state == EntryState.LIVE and words[ENTRY.word("settled", at)] != incarnation:
                entry = reader.entry()
                self.watcher.watch(index, incarnation, entry.pid, entry.start_ticks)
                self._ever_attached = alive = True
        if alive:
            self._last_alive = time.monotonic()

    def _dying(self, index: int) -> bool:
        return any(death.watched.index == index for death in self._deaths)

    def _notice_deaths(self, now: int) -> None:
        for index, watched in list(self.watcher.watched.items()):
            if self._dying(index) or not self.watcher.gone(watched):
                continue
            entry = self._readers[index].entry()
            if entry.state == EntryState.DETACHED or entry.incarnation != watched.incarnation:
                self.watcher.forget(index)
                continue
            at = self.segment.geometry.entry(index)
            self.segment.words[ENTRY.word("ended_ns", at)] = now
            self._deaths.append(Death(watched, entry.label, now))
        for death in list(self._deaths):
            if death.cause is None:
                death.cause = self.watcher.cause(death.watched)
                if death.cause is None and now - death.noticed_ns > _CAUSE_NS:
                    death.cause = UNKNOWN
            if death.cause is not None:
                self._causes[death.watched.index] = death.watched.incarnation, death.cause
            if death.cause is not None and death.cause.exit_code == 0:
                # It left by os._exit(0): in order, but for saying so.
                self._deaths.remove(death)
                self._settle(death.watched.index, death.watched.incarnation)
                self.watcher.forget(death.watched.index)

    def _settle(self, index: int, incarnation: int) -> None:
        word = ENTRY.word("settled", self.segment.geometry.entry(index))
        if self.segment.words[word] != incarnation:
            self.segment.words[word] = incarnation

    def _deserted(self) -> bool:
        linger = self.settings.linger
        if linger is None or self._deaths:
            return False
        silence = time.monotonic() - self._last_alive
        return silence > (linger if self._ever_attached else max(linger, _UNUSED_SECONDS))

    # Snapshots.

    def _stacks_of(self, indexes: Iterable[int]) -> Mapping[tuple[int, int], Sequence[Stack]]:
        """The stacks of the producers in those rings, by ring index and incarnation."""
        return {}

    def _timed_out(self, pid: int, milliseconds: int, now: int) -> None:
        """Word of a host that a process has not answered for so long."""

    def _take_what_is_due(self, *, last: bool = False) -> None:
        plan = self._alarms.due(self._deaths, last=last)
        if plan is None:
            return
        for death in plan.deaths:
            self.settings.log(f"{death.describe()}")
        text, status = "", Status.DONE
        try:
            if plan.refusal:
                self.settings.log(f"no snapshot of {plan.reason}: {plan.refusal}")
            else:
                text = str(self._snapshot(plan, last=last))
        except CaptureStopped:
            return
        except ShmrecError as error:
            self._alarms.failed(plan)
            self.settings.log(f"no snapshot of {plan.reason}: {error}")
            text, status = str(error), Status.FAILED
        else:
            self._alarms.done(plan)
            for death in plan.deaths:
                self._deaths.remove(death)
                self._settle(death.watched.index, death.watched.incarnation)
                self.watcher.forget(death.watched.index)
        for request in plan.requests:
            requests.answer(self.segment, request, text, status)

    def _snapshot(
        self,
        plan: Plan,
        *,
        names: Callable[[], Iterator[str]] | None = None,
        last: bool = False,
    ) -> Path:
        deadline = int(self.settings.deadline * 1e9)
        causes = {(index, known[0]): known[1] for index, known in self._causes.items()}
        for death in self._deaths:
            ended = death.watched.index, death.watched.incarnation
            causes[ended] = death.cause or UNKNOWN
        path = capture.take(
            self.segment,
            Order(
                directory=self.settings.directory,
                reason=plan.reason,
                trigger=plan.trigger,
                size=self.segment.word("keep_size"),
                period_ns=self.segment.word("keep_period_ns"),
                flushes=self.settings.flushes,
                deadline_ns=min(deadline, _LAST_DEADLINE_NS) if last else deadline,
                requests=[{"pid": ask.pid, "reason": ask.reason} for ask in plan.requests],
                causes=causes,
                stacks=plan.stacks,
                extra=self._alarms.facts(plan),
                names=names,
                stop=bool if last else lambda: self.stopping,
            ),
        )
        self.segment.bump("snapshots")
        if names is None:
            self.snapshots.append(path)
            if plan.trigger != REQUEST:
                # Who asks for one is told its path; of these nobody else speaks.
                self.settings.log(f"snapshot ({plan.reason}): {path}")
            store.enforce_quota(
                self.settings.directory,
                count=self.settings.quota_count,
                size=self.settings.quota_bytes,
            )
        return path

    def _serve(self) -> None:
        """Answer the requests that wait; those for snapshots share one."""
        waiting = requests.pending(self.segment)
        kept = [request for request in waiting if request.verb == Verb.SNAPSHOT]
        handed = [request for request in waiting if request.verb == Verb.TRANSFER]
        for request in waiting:
            if self._alarms.holds(request):
                continue
            if request.verb == Verb.ENDED:
                self.watcher.told(*request.argument)
                requests.answer(self.segment, request, "")
            elif request.verb == Verb.STOP:
                self.stopping = True
                requests.answer(self.segment, request, "")
            elif request.verb in alarms.VERBS:
                now = time.monotonic_ns()
                if request.verb == Verb.TIMEOUT:
                    self._timed_out(*request.argument, now)
                self._alarms.serve(request, self.watcher.watched.values(), now)
            elif request not in kept and request not in handed:
                requests.answer(
                    self.segment, request, f"unknown request {request.verb}", Status.FAILED
                )
        if kept:
            reason = kept[0].reason or "requested"
            more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
            self._answer(Plan(REQUEST, reason + more, requests=kept))
        for request in handed:
            # One file each: its requester removes it as soon as it has it open.
            self._answer(Plan(REQUEST, request.reason, requests=[request]), store.hidden_names)

    def _answer(self, plan: Plan, names: Callable[[], Iterator[str]] | None = None) -> None:
        try:
            text, status = str(self._snapshot(plan, names=names)), Status.DONE
        except ShmrecError as error:
            text, status = str(error), Status.FAILED
            self.settings.log(f"no snapshot: {error}")
        for request in plan.requests:
            requests.answer(self.segment, request, text, status)

    # The end.

    def _finish(self, *, wanted: bool) -> bool:
        """End the recording: last death snapshots, closed for all, names removed.

        Unless it is `wanted` it ends only if nobody has attached since we looked; whether it
        ended.
        """
        self._notice_producers(time.monotonic_ns())
        self._notice_deaths(time.monotonic_ns())
        for death in self._deaths:
            death.cause = death.cause or UNKNOWN
        self._take_what_is_due(last=True)
        segment = self.segment
        with contextlib.ExitStack() as held:
            # Without the lock, whoever attaches now learns at its first event that it is over.
            with contextlib.suppress(SegmentError):
                held.enter_context(segment.locked(_LAST_LOCK_SECONDS))
            if not wanted and self._somebody():
                self._last_alive = time.monotonic()
                return False
            segment.set_word("state", SegmentState.CLOSED)
            ledger.advance(segment)
            if self._deaths:
                self.settings.log(
                    f"recording {self.settings.name!r} is left in memory, its evidence could not "
                    f"be written: read it with `shmrec-dump recover {self.settings.name}`"
                )
            elif segment.linked():
                naming.remove(self.settings.name, self.settings.path)
                remove_wakeup(segment)
        for request in requests.pending(segment):
            requests.answer(segment, request, "the recording has been stopped", Status.FAILED)
        return True

    def _somebody(self) -> bool:
        """Whether a live process has a ring or is getting one."""
        for reader in self._readers:
            entry = reader.entry()
            if entry.state in (EntryState.LIVE, EntryState.CLAIMING) and process.alive(
                entry.pid, entry.start_ticks
            ):
                return True
        return False

    def _let_go(self) -> None:
        """Close everything of this process; the recording itself is not touched."""
        self.stopping = True
        if self._waker is not None:
            wake(self._wakeup)
            self._waker.join(timeout=1.0)
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        self.watcher.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.segment.close()
