"""Triggers that show in the rings: slow spans, stalls, counters, seen from outside.

Runs in the collector. Looks at the newest batches of each live producer, and so finds what a
hung process can no longer tell: its batch does not change, but its spans grow older. It wakes
nobody, writes nothing, and asks producers for nothing.

What it sees, and what it does not:

- Batches are decoded only when the producer has recorded since the last look, and then the
  newest `BATCHES` of it, and of all `BATCHES_A_SECOND`, as a full one costs a millisecond. Who
  gets no turn is first at the next look, and is not judged by what was known of it before.
- Open spans are seen all, where a batch's preamble holds them; of more than that, those in the
  newest batches. A span that ended between two looks is found by its end, if that was seen.
- Of a producer that records more than `BATCHES` between two looks, older events are not seen:
  a counter's peak may pass unnoticed. A heartbeat that may have been among them is not missed.

A span fires once, a silence once until something is recorded, a counter once until it has been
within its limit. What is read is hostile: every text and number is checked and bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from shmrec.decoder import Event, OpenSpan, decode
from shmrec.events import COUNTER, END, INSTANT
from shmrec.layout import SlotFlag
from shmrec.ring import Batch, RingReader
from shmrec.triggers import Trigger, called, shortened

__all__ = ["LOOKED_FOR", "Finding", "Lookout"]

LOOKED_FOR: Final = ("slow_span", "stall", "counter")
"""The kinds of triggers that are found here."""
BATCHES: Final = 2
"""Batches of one producer decoded at a look, its newest ones."""
BATCHES_A_SECOND: Final = 64
"""Batches of all producers decoded, however often that is."""
_PREAMBLES: Final = 8
"""Batches decoded where none of the newest has all open spans in its preamble."""
_COUNTERS: Final = 64
"""Counters of one producer beyond a trigger's value at a time, by name, that fire only once."""
_SPANS: Final = 1 << 12
"""Open spans of one producer that are watched, the oldest ones."""
_SHORTEST_NS: Final = 100_000_000
_LONGEST_NS: Final = 1_000_000_000


class Finding(NamedTuple):
    """A trigger that fired because of a producer, by its ring's index and incarnation."""

    trigger: Trigger
    reason: str
    ring: int
    incarnation: int
    spans: frozenset[int] = frozenset()
    """Those that are slow and still open."""


class _Span(NamedTuple):
    start_ns: int
    span: int
    name: str


class _Again(NamedTuple):
    """When that is to be judged anew which was refused, and which spans that was about."""

    at: int
    spans: frozenset[int]


@dataclass
class _Seen:
    """What is known of one producer."""

    incarnation: int
    who: str
    mark: tuple[int, int] = (0, 0)
    batch: int = 0
    """The newest batch decoded."""
    events: int = 0
    """Recorded, up to the last one seen."""
    newest_ns: int = 0
    spans: list[_Span] = field(default_factory=list)
    """Open, oldest first."""
    judged: dict[Trigger, set[int]] = field(default_factory=dict)
    """Open spans beyond the threshold that need no second look: they fired, or do not match."""
    silence: dict[Trigger, int] = field(default_factory=dict)
    """The beginning of the silence that has been judged."""
    beats: dict[Trigger, int] = field(default_factory=dict)
    again: dict[Trigger, _Again] = field(default_factory=dict)
    """What a limit refused."""
    beyond: dict[Trigger, set[str]] = field(default_factory=dict)
    """Counters that have fired and have not been within their limit since."""


class Lookout:
    """Looks at rings for the triggers that are found there; those of other kinds are ignored.

    `interval_ns` is how often it should look, and `wanted` whether at all.
    """

    def __init__(self, readers: Sequence[RingReader], triggers: Iterable[Trigger]) -> None:
        self._readers = readers
        found = [trigger for trigger in triggers if trigger.kind in LOOKED_FOR]
        self._slow = [each for each in found if each.kind == "slow_span"]
        self._stalls = [each for each in found if each.kind == "stall" and not each.heartbeat]
        self._hearts = [each for each in found if each.heartbeat]
        self._counters = [each for each in found if each.kind == "counter"]
        ages = [int(each.threshold) for each in found if each.kind != "counter"]
        self.interval_ns: Final = max(_SHORTEST_NS, min([*ages, _LONGEST_NS]))
        self.wanted: Final = bool(found)
        self._budget = max(BATCHES, BATCHES_A_SECOND * self.interval_ns // _LONGEST_NS)
        self._seen: dict[int, _Seen] = {}
        self._late: list[int] = []

    def look(self, indexes: Iterable[int], now: int) -> list[Finding]:
        """What fires now because of the producers in those rings, who must be alive."""
        live = dict.fromkeys(indexes) if self.wanted else {}
        self._seen = {index: seen for index, seen in self._seen.items() if index in live}
        turns = dict.fromkeys([*(late for late in self._late if late in live), *live])
        self._late = []
        findings: list[Finding] = []
        left = self._budget
        for index in turns:
            reader = self._readers[index]
            seen = self._known(index)
            fired: dict[Trigger, list[str]] = {}
            slow: dict[Trigger, set[int]] = {}
            mark = reader.mark()
            if mark != seen.mark:
                if left <= 0:
                    self._late.append(index)
                    continue
                batches = _newest(reader, seen.batch)
                left -= max(1, len(batches))
                if not batches or reader.incarnation() != seen.incarnation:
                    continue
                self._read(seen, batches, fired, now)
                seen.mark = mark
            self._judge(seen, fired, slow, now)
            for trigger, reasons in fired.items():
                more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
                spans = frozenset(slow.get(trigger, ()))
                reason = reasons[0] + more
                findings.append(Finding(trigger, reason, index, seen.incarnation, spans))
        return findings

    def retry(self, finding: Finding, at: int) -> None:
        """A limit refused it: if it goes on until then, it fires once more.

        Not so what fired before it and was not refused.
        """
        seen = self._seen.get(finding.ring)
        if seen is not None and seen.incarnation == finding.incarnation:
            waits = seen.again.get(finding.trigger, _Again(at, frozenset()))
            seen.again[finding.trigger] = _Again(min(at, waits.at), finding.spans | waits.spans)

    def _known(self, index: int) -> _Seen:
        seen = self._seen.get(index)
        incarnation = self._readers[index].incarnation()
        if seen is None or seen.incarnation != incarnation:
            entry = self._readers[index].entry()
            seen = self._seen[index] = _Seen(entry.incarnation, called(entry.label, entry.pid))
        return seen

    def _read(
        self, seen: _Seen, batches: Sequence[Batch], fired: dict[Trigger, list[str]], now: int
    ) -> None:
        """Take in what was recorded since the last look."""
        spans: dict[int, OpenSpan] = {}
        first = batches[0].head
        if first.first > seen.events:
            for heart in seen.beats:
                # One may have been among the events that were not seen.
                seen.beats[heart] = max(seen.beats[heart], min(first.start_ns, now))
        for batch in batches:
            head = batch.head
            decoded = decode(
                batch.payload,
                start_ns=head.start_ns,
                generation=head.generation,
                flags=head.flags,
                open_spans=spans,
            )
            seen.newest_ns = head.start_ns
            count = head.first
            for event in decoded:
                count += 1
                seen.newest_ns = event.time_ns
                if count > seen.events:
                    self._event(seen, event, fired, now)
            seen.batch = head.number
        seen.events = count
        ordered = sorted(_Span(each.start_ns, each.span, each.name) for each in spans.values())
        seen.spans = ordered[:_SPANS]
        for judged in seen.judged.values():
            judged.intersection_update(spans)

    def _event(self, seen: _Seen, event: Event, fired: dict[Trigger, list[str]], now: int) -> None:
        if event.kind == END.name:
            for slow in self._slow:
                took = event.duration_ns or 0
                if took < slow.threshold or event.span in seen.judged.get(slow, ()):
                    continue
                if slow.matches(event.name):
                    text = f"slow span {shortened(event.name)} of {seen.who}, {_time(took)}"
                    fired.setdefault(slow, []).append(text)
        elif event.kind in (INSTANT.name, COUNTER.name):
            for heart in self._hearts:
                if event.name == heart.heartbeat:
                    seen.beats[heart] = min(event.time_ns, now)
            if event.kind == COUNTER.name and type(event.value) in (int, float):
                for counter in self._counters:
                    if counter.matches(event.name):
                        self._count(seen, counter, event, fired)

    def _count(
        self, seen: _Seen, trigger: Trigger, event: Event, fired: dict[Trigger, list[str]]
    ) -> None:
        known = seen.beyond.setdefault(trigger, set())
        if not trigger.beyond(event.value):
            known.discard(event.name)
        elif event.name not in known:
            text = f"counter {shortened(event.name)} of {seen.who} at {event.value:g}"
            fired.setdefault(trigger, []).append(text)
            if len(known) < _COUNTERS:
                known.add(event.name)

    def _judge(
        self,
        seen: _Seen,
        fired: dict[Trigger, list[str]],
        slow_spans: dict[Trigger, set[int]],
        now: int,
    ) -> None:
        """What time alone has made slow or silent."""
        for trigger in [each for each, waits in seen.again.items() if now >= waits.at]:
            refused = seen.again.pop(trigger)
            seen.judged.get(trigger, set()).difference_update(refused.spans)
            seen.silence.pop(trigger, None)
        for slow in self._slow:
            judged = seen.judged.setdefault(slow, set())
            for span in seen.spans:
                if now - span.start_ns < slow.threshold:
                    break
                if span.span in judged:
                    continue
                judged.add(span.span)
                if slow.matches(span.name):
                    age = _time(now - span.start_ns)
                    text = f"slow span {shortened(span.name)} of {seen.who}, open for {age}"
                    fired.setdefault(slow, []).append(text)
                    slow_spans.setdefault(slow, set()).add(span.span)
        for stall in self._stalls:
            silent = now - seen.newest_ns
            if silent < stall.threshold or seen.silence.get(stall) == seen.newest_ns:
                continue
            seen.silence[stall] = seen.newest_ns
            inside = next((span for span in reversed(seen.spans) if stall.matches(span.name)), None)
            if inside is not None:
                where = f"no event for {_time(silent)} inside of {shortened(inside.name)}"
                fired.setdefault(stall, []).append(f"stall of {seen.who}, {where}")
        for heart, beat in seen.beats.items():
            if now - beat >= heart.threshold and seen.silence.get(heart) != beat:
                seen.silence[heart] = beat
                where = f"no {shortened(heart.heartbeat)} for {_time(now - beat)}"
                fired.setdefault(heart, []).append(f"stall of {seen.who}, {where}")


def _newest(reader: RingReader, since: int) -> list[Batch]:
    """The newest batches, oldest first, back to number `since` or as many as are decoded.

    Empty if the very newest one was overwritten meanwhile.
    """
    found: list[Batch] = []
    whole = False
    for head in reversed(reader.newest(2 * _PREAMBLES)):
        batch = reader.copy(head)
        if batch is None:
            break
        if not batch.payload:
            # Opened, but its preamble was not published: the batch before it still tells.
            continue
        found.append(batch)
        whole = whole or not head.flags & SlotFlag.PARTIAL_PREAMBLE
        enough = head.number <= since or len(found) >= BATCHES
        if enough and (whole or len(found) >= _PREAMBLES):
            break
    return found[::-1]


def _time(ns: int) -> str:
    return f"{ns / 1e9:.1f} s" if ns >= _LONGEST_NS else f"{ns / 1e6:.0f} ms"
