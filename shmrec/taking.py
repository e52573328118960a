"""Taking a recording's snapshots: those that are due, those that are asked for.

Runs in the collector, whose loop says when. Brings together what `alarms` plans, the stacks of who
is to leave them, and `capture`, which writes the file; answers who waits for it, buries the dead
that it holds, and keeps the directory within its quota.

Invariants:

- A death's ring is marked settled, and so free to be claimed again, only after a snapshot
  that holds it has its final name on disk.
- Whoever asked is answered, also where taking the snapshot failed; where a stop came in the
  middle of it, by the last one or by the end of the recording.
- What is on disk is not taken again because of what failed afterwards.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from shmrec import capture, hidden, requests, store
from shmrec.alarms import Alarms
from shmrec.capture import CaptureStopped, Order
from shmrec.control_block import ControlBlock
from shmrec.deaths import Watched
from shmrec.errors import ShmrecError
from shmrec.incidents import REQUEST, Plan
from shmrec.layout import Stacks, Status
from shmrec.manifest import Stack
from shmrec.roster import Roster
from shmrec.segment import Segment
from shmrec.stack_area import Asking, take_stacks
from shmrec.takeover import Settings

__all__ = ["Snapshots", "on_one_line"]

Taken = dict[tuple[int, int], list[Stack]]

_LAST_DEADLINE_NS: Final = 200_000_000


def on_one_line(error: Exception) -> str:
    """What went wrong on one line; and where, if it was not foreseen."""
    if isinstance(error, ShmrecError):
        return str(error)
    trace = traceback.format_exception(error)[-2:]
    return f"unexpected: {' '.join(' '.join(trace).split())}"


class Snapshots:
    """Those of one recording. `stopping`: whether what is not begun is not wanted any more."""

    def __init__(
        self,
        segment: Segment,
        settings: Settings,
        roster: Roster,
        control: ControlBlock,
        *,
        stopping: Callable[[], bool],
    ) -> None:
        self._segment = segment
        self._settings = settings
        self._roster = roster
        self._control = control
        self._stopping = stopping
        self.alarms = Alarms(segment, settings, roster.readers, self.stacks_of)

    def stacks_of(self, suspects: Iterable[int] = ()) -> Taken:
        """The stacks of the producers in those rings, or of all where that was configured."""
        everybody, wished = self._settings.stacks == "all", set(suspects)
        return self._take_stacks(lambda watched: everybody or watched.index in wished)

    def _stacks_for(self, asked: Iterable[requests.Request]) -> Taken:
        """Those that people ask for."""
        wishes = [request.argument for request in asked]
        everybody = any(kind == Stacks.ALL for kind, _ in wishes)
        pids = {pid for kind, pid in wishes if kind == Stacks.ONE}
        return self._take_stacks(lambda watched: everybody or watched.pid in pids)

    def _take_stacks(self, wanted: Callable[[Watched], bool]) -> Taken:
        chosen = [watched for watched in self._roster.living() if wanted(watched)]
        entries = ((each, self._roster.readers[each.index].entry()) for each in chosen)
        asking = [
            Asking(entry, each.pidfd)
            for each, entry in entries
            # What an entry says of signals is of its owner, who may be another one by now.
            if (entry.incarnation, entry.pid) == (each.incarnation, each.pid)
        ]
        return take_stacks(self._segment, asking, stop=self._stopping)

    def take_due(self, *, last: bool = False) -> None:
        """The snapshot that deaths and triggers have become by now, if any; `last`: all of them."""
        plan = self.alarms.due(self._roster.deaths, last=last)
        if plan is None:
            return
        for death in plan.deaths:
            self._settings.log(f"{death.describe()}")
        text, status = "", Status.DONE
        try:
            if plan.trigger == "death" and not plan.refusal:
                # Those that were taken when a trigger fired are what it is about.
                plan.stacks = self.stacks_of() | plan.stacks
            if plan.refusal:
                self._settings.log(f"no snapshot of {plan.reason}: {plan.refusal}")
            else:
                text = str(self.take(plan, last=last))
        except CaptureStopped:
            return
        except Exception as error:
            # Also what was not foreseen: whoever waits is answered, and deaths are tried later.
            self.alarms.failed(plan)
            text, status = on_one_line(error), Status.FAILED
            self._settings.log(f"no snapshot of {plan.reason}: {text}")
        else:
            self.alarms.done(plan)
            self._roster.bury(plan.deaths)  # step: bury
        for request in plan.requests:
            requests.answer(self._segment, request, text, status)

    def take(
        self,
        plan: Plan,
        *,
        names: Callable[[], Iterator[str]] | None = None,
        last: bool = False,
    ) -> Path:
        """Have the snapshot written; its path. With `names`, for somebody to take away.

        The `last` one is not to wait for long, nor to be stopped.
        """
        deadline = int(self._settings.deadline * 1e9)
        path = capture.take(
            self._segment,
            Order(
                directory=self._settings.directory,
                reason=plan.reason,
                trigger=plan.trigger,
                size=self._control.keep_size,
                period_ns=self._control.keep_period_ns,
                flushes=self._settings.flushes,
                deadline_ns=min(deadline, _LAST_DEADLINE_NS) if last else deadline,
                requests=[{"pid": ask.pid, "reason": ask.reason} for ask in plan.requests],
                causes=self._roster.causes(),
                details=self._roster.details,
                stacks=plan.stacks,
                extra=self.alarms.facts(plan),
                names=names,
                stop=bool if last else self._stopping,
                warn=self._settings.log,
            ),
        )
        self._segment.bump("snapshots")  # step: counted
        if names is None:
            if plan.trigger != REQUEST:
                # Who asks for one is told its path; of these nobody else speaks.
                self._settings.log(f"snapshot ({plan.reason}): {path}")
            self._enforce_quota(path)
        return path

    def _enforce_quota(self, latest: Path) -> None:
        try:
            store.enforce_quota(
                self._settings.directory,
                count=self._settings.quota_count,
                size=self._settings.quota_bytes,
                latest=latest,
            )
        except Exception as error:
            # The snapshot is on disk all the same: it must not be taken again because of this.
            self._settings.log(f"old snapshots could not be removed: {on_one_line(error)}")

    def take_asked(
        self, kept: Sequence[requests.Request], handed: Sequence[requests.Request]
    ) -> None:
        """Answer those who ask for a snapshot: one file for all who want it `kept`."""
        if kept:
            reason = kept[0].reason or "requested"
            more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
            stacks = self._stacks_for(kept)
            self._answer(Plan(REQUEST, reason + more, requests=list(kept), stacks=stacks))
        for request in handed:
            # One file each: its requester removes it as soon as it has it open.
            stacks = self._stacks_for([request])
            plan = Plan(REQUEST, request.reason, requests=[request], stacks=stacks)
            self._answer(plan, hidden.transfer_names)

    def _answer(self, plan: Plan, names: Callable[[], Iterator[str]] | None = None) -> None:
        try:
            text, status = str(self.take(plan, names=names)), Status.DONE
        except Exception as error:
            text, status = on_one_line(error), Status.FAILED
            self._settings.log(f"no snapshot: {text}")
        for request in plan.requests:
            requests.answer(self._segment, request, text, status)
