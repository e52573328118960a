"""The triggers of a recording at work: who may fire them, and what a snapshot says of them.

Runs in the collector. Brings together what is signalled to the collector, what producers and
hosts say through requests, and what shows in the rings (`lookout`); what becomes of it is for
`incidents` to decide. Does not take snapshots itself.

Invariants: what a limit refuses is in the control block's ``suppressed`` before its requester is
answered; a request of these verbs is answered here when it is refused, else with its snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, Final

from shmrec import requests, store, triggers
from shmrec.deaths import Death, Watched
from shmrec.incidents import REQUEST, Incidents, Plan, Ring
from shmrec.layout import ENTRY, REASON_BYTES, TELLABLE, TRIGGERS, Status, Verb
from shmrec.lookout import Lookout
from shmrec.requests import Request
from shmrec.ring import RingReader
from shmrec.segment import Segment
from shmrec.takeover import Settings
from shmrec.triggers import Trigger, called, shortened

__all__ = ["VERBS", "Alarms"]

VERBS: Final = (Verb.TRIGGER, Verb.TIMEOUT)
_HELD_AT_MOST: Final = 1 << 32
_STACKS: Final = ("slow_span", "stall", "timeout")
"""The kinds of triggers whose suspects have their stacks taken."""


class Alarms:
    """What causes snapshots in one recording. `stacks_of` takes stacks, by ring."""

    def __init__(
        self,
        segment: Segment,
        settings: Settings,
        readers: Sequence[RingReader],
        stacks_of: Callable[[Iterable[int]], Mapping[Ring, Any]],
    ) -> None:
        every = triggers.defaults(settings.triggers, int(settings.death_interval * 1e9))
        self._segment = segment
        self._settings = settings
        self._readers = readers
        self._stacks_of = stacks_of
        self._incidents = Incidents(every, segment.suppressed())
        self._lookout = Lookout(readers, every)
        self._next_look = 0
        self._signalled: list[int] = []
        self._to_ask: dict[int, None] | None = None
        self._by_signal = {each.signal: each for each in every if each.kind == "signal"}
        self._last_wall = store.last_of_incident(settings.directory, settings.name)

    def handlers(self) -> dict[int, Callable[[int, FrameType | None], None]]:
        """What is to be called at which signal."""
        return dict.fromkeys(self._by_signal, self._signal)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        # Several before the loop comes round say no more than one.
        if number not in self._signalled:
            self._signalled.append(number)

    def wait_ns(self, deaths: Sequence[Death], now: int) -> int | None:
        """How long until there is something to look at; None: until told."""
        waits = [self._incidents.wait_ns(deaths, now)]
        if self._lookout.wanted:
            waits.append(max(0, self._next_look - now))
        return min((wait for wait in waits if wait is not None), default=None)

    def look_around(self, live: Iterable[int], now: int) -> None:
        """Fire what was signalled, and what shows in the rings of those who live.

        And take the stacks of all that are suspects since the last time.
        """
        while self._signalled:
            found = self._by_signal[self._signalled.pop(0)]
            self._fire(found, f"signal {found.name}", now)
        if self._lookout.wanted and now >= self._next_look:
            self._next_look = now + self._lookout.interval_ns
            for finding in self._lookout.look(live, now):
                ring = finding.ring, finding.incarnation
                if self._fire(finding.trigger, finding.reason, now, [ring]):
                    # It may hang on for longer than the limit forbids another snapshot.
                    self._lookout.retry(finding, now + finding.trigger.interval_ns)
        if self._to_ask is not None:
            # Now, and not after the window: what they do meanwhile is not what was asked. All at
            # once: one that does not answer takes as long as many.
            suspects, self._to_ask = self._to_ask, None
            self._incidents.add_stacks(self._stacks_of(suspects))

    def holds(self, request: Request) -> bool:
        """Whether the request waits for its snapshot here."""
        return self._incidents.holds(request)

    def serve(self, request: Request, watched: Iterable[Watched], now: int) -> None:
        """Word that a trigger has come up: limited, as a snapshot that a person asks for is not."""
        number, pid = request.argument
        if request.verb == Verb.TIMEOUT:
            pid, milliseconds = request.argument
        rings = [(each.index, each.incarnation) for each in watched if each.pid == pid]
        labels = [self._readers[index].entry().label for index, _ in rings]
        who = called(labels[0] if labels else "", pid)
        if request.verb == Verb.TIMEOUT:
            kind, reason = "timeout", f"timeout of {who} after {milliseconds / 1e3:g} s"
        else:
            kind = TRIGGERS[number] if number < len(TRIGGERS) else str(number)
            said = shortened(request.reason, REASON_BYTES // 2)
            reason = f"{kind} in {who}: {said}" if said else f"{kind} in {who}"
            if kind not in TELLABLE:
                text = f"{kind} is no trigger that a producer may give word of"
                requests.answer(self._segment, request, text, Status.FAILED)
                return
        self._fire(self._incidents.trigger(kind), reason, now, rings, request)

    def _fire(
        self,
        trigger: Trigger,
        reason: str,
        now: int,
        rings: Sequence[Ring] = (),
        request: Request | None = None,
    ) -> str:
        """Have it become a snapshot; why not, or ""."""
        refusal = self._incidents.fire(trigger, reason, now, suspects=rings, request=request)
        if refusal:
            self._publish()
            if request is not None:
                text = f"no snapshot ({reason}): {refusal}; it was counted"
                requests.answer(self._segment, request, text, Status.SUPPRESSED)
        elif trigger.kind in _STACKS and self._settings.stacks != "none":
            self._to_ask = (self._to_ask or {}) | dict.fromkeys(index for index, _ in rings)
        return refusal

    def due(self, deaths: Sequence[Death], *, last: bool = False) -> Plan | None:
        """What is to be snapshotted now; see `Incidents.due`."""
        return self._incidents.due(deaths, time.monotonic_ns(), last=last)

    def done(self, plan: Plan) -> None:
        """The plan has been carried out."""
        if not plan.refusal:
            self._last_wall = time.time()
        self._incidents.done(plan)
        self._publish()

    def failed(self, plan: Plan) -> None:
        """The plan's snapshot could not be taken."""
        self._incidents.failed(plan, time.monotonic_ns())

    def count_held_back(self) -> None:
        """Count, as suppressed, the words that producers did not send: see `words`."""
        words, geometry = self._segment.words, self._segment.geometry
        new = False
        for index in range(geometry.producers):
            at = geometry.entry(index)
            held, counted = ENTRY.word("held_back", at), ENTRY.word("held_counted", at)
            for place, kind in enumerate(TELLABLE):
                count = words[held + place]
                more = count - words[counted + place]
                if more:
                    words[counted + place] = count
                    # Backwards, or so far at once, is somebody's scribbling.
                    if 0 < more < _HELD_AT_MOST:
                        self._incidents.limits.suppress(self._incidents.trigger(kind), more)
                        new = True
        if new:
            self._publish()

    def _publish(self) -> None:
        self._segment.set_suppressed(self._incidents.limits.suppressed)

    def facts(self, plan: Plan) -> dict[str, Any]:
        """What a snapshot's header says of its cause, if it was not asked for, and of limits."""
        self.count_held_back()
        counts = self._incidents.limits.suppressed
        facts: dict[str, Any] = {"suppressed": {kind: n for kind, n in counts.items() if n}}
        if plan.trigger == REQUEST:
            return facts
        suspects = [
            index
            for index, incarnation in plan.suspects
            if self._readers[index].incarnation() == incarnation
        ]
        since = time.time() - self._last_wall if self._last_wall is not None else -1.0
        # A clock that was set back makes an incident of its own: one too many does no harm.
        first = not 0 <= since <= store.INCIDENT_SECONDS
        return facts | {"suspects": suspects, "triggered_ns": plan.triggered_ns, "first": first}
