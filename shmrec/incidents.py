"""What waits to become a snapshot: triggers that fired and deaths, coalesced, delayed, limited.

Runs in the collector. Pure: the clock is passed in, and nothing here reads, writes or waits. The
collector tells what happened (`fire`) and asks what is to be done (`due`); the answer is a `Plan`
for one snapshot, which it reports as `done` or `failed`.

Rules:

- A firing becomes a snapshot when its trigger's window is over, if the limits of the trigger
  allowed it when it fired. Firings of a trigger that waits already join it.
- Deaths that come within `COALESCE_NS`, or within the interval of deaths, share a snapshot. A
  death is never delayed by a window, and never forgotten without having been counted.
- What is ready at the time of a snapshot is part of it: deaths with firings, firings with deaths
  if their window is over or their suspect is the one that died.
- Whoever asked waits for the snapshot; only so many may wait, so that a person still can ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shmrec.deaths import Death
from shmrec.layout import REASON_BYTES, REQUESTS
from shmrec.requests import Request
from shmrec.triggers import Limits, Trigger, shortened

__all__ = ["REQUEST", "Incidents", "Plan"]

REQUEST: Final = "request"

COALESCE_NS: Final = 50_000_000
STATUS_NS: Final = 20_000_000
"""How long until the next look for the cause of a death."""
_RETRY_NS: Final = 5_000_000_000
_PATIENCE_NS: Final = 500_000_000
"""How long what could be snapshotted waits for deaths to become ready."""
_HELD_AT_MOST: Final = REQUESTS // 2
_SUSPECTS_AT_MOST: Final = 256

Ring = tuple[int, int]
"""A producer by its ring's index and the incarnation in it."""


@dataclass(eq=False)
class _Pending:
    """A trigger that fired and waits for its snapshot."""

    trigger: Trigger
    reason: str
    fired_ns: int
    count: int = 1
    suspects: dict[Ring, None] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    @property
    def due_ns(self) -> int:
        return self.fired_ns + self.trigger.window_ns


@dataclass
class Plan:
    """One snapshot that is to be taken, or, with a `refusal`, deaths that get none.

    `trigger` is one of TRIGGERS, REQUEST if somebody asked: such a plan is not made here.
    `triggered_ns` is when the first of its triggers that has a window fired, 0 if none has one.
    """

    trigger: str
    reason: str
    made_ns: int = 0
    deaths: list[Death] = field(default_factory=list)
    suspects: list[Ring] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stacks: dict[Ring, Any] = field(default_factory=dict)
    triggered_ns: int = 0
    refusal: str = ""
    pending: list[_Pending] = field(default_factory=list)


class Incidents:
    """The triggers of a recording: `triggers` has at least one of "death", which is the limit
    of deaths. `suppressed` is what was counted before."""

    def __init__(
        self, triggers: Sequence[Trigger], suppressed: Mapping[str, int] | None = None
    ) -> None:
        self.limits = Limits(suppressed)
        self._by_kind = {trigger.kind: trigger for trigger in triggers}
        self._death = self._by_kind["death"]
        self._death_allowed = 0
        self._pending: list[_Pending] = []
        self._stacks: dict[Ring, Any] = {}

    def trigger(self, kind: str) -> Trigger:
        """The trigger of a kind of which there is only one."""
        return self._by_kind[kind]

    def fire(
        self,
        trigger: Trigger,
        reason: str,
        now: int,
        *,
        suspects: Iterable[Ring] = (),
        request: Request | None = None,
    ) -> str:
        """Something a trigger is about has happened: "" if there will be a snapshot, and for
        whoever asked an answer; else why not. What is refused has been counted."""
        pending = next((each for each in self._pending if each.trigger == trigger), None)
        if pending is None:
            refusal = self.limits.refusal(trigger, now)
            if refusal:
                self.limits.suppress(trigger)
                return refusal
            self.limits.took(trigger, now)
            pending = _Pending(trigger, reason, now)
            self._pending.append(pending)
        else:
            pending.count += 1
        for ring in suspects:
            if len(pending.suspects) < _SUSPECTS_AT_MOST:
                pending.suspects[ring] = None
        if request is not None:
            if sum(len(each.requests) for each in self._pending) >= _HELD_AT_MOST:
                self.limits.suppress(trigger)
                return "too many wait for its snapshot already, which is taken all the same"
            pending.requests.append(request)
        return ""

    def holds(self, request: Request) -> bool:
        """Whether the request waits for a snapshot here."""
        return any(request in each.requests for each in self._pending)

    def add_stacks(self, stacks: Mapping[Ring, Any]) -> None:
        """Keep stacks of suspects, taken when the trigger fired, for the snapshot."""
        self._stacks.update(stacks)

    def wait_ns(self, deaths: Sequence[Death], now: int) -> int | None:
        """How long until `due` may have a plan or more is to be learnt; None: until told."""
        settling = self._settling(deaths, now)
        patience = _PATIENCE_NS if settling else 0
        times = [each.due_ns + patience for each in self._pending]
        if any(death.cause is None for death in deaths):
            times.append(now + STATUS_NS)
        elif deaths:
            together = min(death.noticed_ns for death in deaths) + COALESCE_NS
            alone = max(together, self._death_allowed)
            times.append(together if self._pending and settling else alone)
        return max(0, min(times) - now) if times else None

    def due(self, deaths: Sequence[Death], now: int, *, last: bool = False) -> Plan | None:
        """What is to be snapshotted now; with `last` everything that waits."""
        ready = [death for death in deaths if death.cause is not None]
        settling = self._settling(deaths, now)
        patience = _PATIENCE_NS if settling else 0
        fired = [each for each in self._pending if last or now >= each.due_ns + patience]
        dying = bool(ready) and (last or (not settling and now >= self._death_allowed))
        if not fired and not dying:
            return None
        if not fired:
            refusal = self.limits.refusal(self._death, now)
            if refusal:
                return Plan("death", _of_deaths(ready), now, ready, refusal=refusal)
        dead = {(death.watched.index, death.watched.incarnation) for death in ready}
        fired += [
            each for each in self._pending if each not in fired and dead & each.suspects.keys()
        ]
        return self._plan(fired, ready, now)

    def _plan(self, fired: list[_Pending], ready: list[Death], now: int) -> Plan:
        reasons = [_of_deaths(ready)] if ready else []
        for each in fired:
            more = f" and {each.count - 1} more" if each.count > 1 else ""
            reasons.append(f"{each.reason}{more}")
        suspects = dict.fromkeys((d.watched.index, d.watched.incarnation) for d in ready)
        for each in fired:
            suspects |= each.suspects
        return Plan(
            "death" if ready else fired[0].trigger.kind,
            shortened("; ".join(reasons), REASON_BYTES),
            now,
            ready,
            list(suspects),
            [request for each in fired for request in each.requests],
            {ring: found for ring, found in self._stacks.items() if ring in suspects},
            min((each.fired_ns for each in fired if each.trigger.window_ns), default=0),
            pending=fired,
        )

    def done(self, plan: Plan) -> None:
        """The snapshot is on disk, or the plan was a refusal and the deaths were dealt with."""
        if plan.refusal:
            self.limits.suppress(self._death, len(plan.deaths))
        elif plan.deaths:
            self.limits.took(self._death, plan.made_ns)
            self._death_allowed = plan.made_ns + self._death.interval_ns
        self._forget(plan)

    def failed(self, plan: Plan, now: int) -> None:
        """There is no snapshot: deaths are tried again, the rest is given up."""
        if plan.deaths:
            self._death_allowed = max(plan.made_ns + self._death.interval_ns, now + _RETRY_NS)
        for each in plan.pending:
            self.limits.failed(each.trigger)
        self._forget(plan)

    def _forget(self, plan: Plan) -> None:
        self._pending = [each for each in self._pending if each not in plan.pending]
        wanted = {ring for each in self._pending for ring in each.suspects}
        self._stacks = {ring: found for ring, found in self._stacks.items() if ring in wanted}

    def _settling(self, deaths: Sequence[Death], now: int) -> bool:
        """Whether more is about to be known of deaths: causes, or others that come with them."""
        ready = [death.noticed_ns for death in deaths if death.cause is not None]
        if not ready:
            return bool(deaths)
        if len(ready) == len(deaths):
            return now < min(ready) + COALESCE_NS
        # Where they die one after the other, there is always one of which more is to be known.
        return now < max(min(ready), self._death_allowed) + _PATIENCE_NS


def _of_deaths(deaths: Sequence[Death]) -> str:
    more = f" and {len(deaths) - 1} more" if len(deaths) > 1 else ""
    return f"death of {deaths[0].describe()}{more}"
