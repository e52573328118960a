"""One pass over a snapshot's events: spans' durations, how busy producers were, what they raised.

Runs in whoever reads a snapshot. However many events there are, memory is bounded: durations
are kept by the name, of a bounded number of names, and thinned out where they get many, always
in the same way, so that a snapshot has one survey.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from shmrec.decoder import Event
from shmrec.events import END, EXCEPTION
from shmrec.snapshot_file import Snapshot

__all__ = ["LAST", "Durations", "Seen", "Survey", "survey"]

LAST: Final = 1_000_000_000
"""How long the end of a producer's history is, whose rate is looked at by itself."""

_NAMES_LIMIT: Final = 512
_SAMPLES_LIMIT: Final = 1 << 14
_EXCEPTIONS_LIMIT: Final = 8
_NOTES_LIMIT: Final = 100
_LONGEST: Final = (1 << 63) - 1

_time = itemgetter(Event._fields.index("time_ns"))
_KIND: Final = Event._fields.index("kind")


class Durations:
    """How long spans of one name took. `count` and `longest` are exact, `median` where few.

    Of many, every second, fourth, eighth... is a sample.
    """

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0
        self._samples = array("q")
        self._every = 1

    def add(self, ns: int) -> None:
        """One more; below none and beyond all time count as these."""
        ns = min(max(ns, 0), _LONGEST)
        if ns > self.longest:
            self.longest = ns
        if self.count % self._every == 0:
            self._samples.append(ns)
            if len(self._samples) >= _SAMPLES_LIMIT:
                del self._samples[1::2]
                self._every *= 2
        self.count += 1

    @property
    def median(self) -> int:
        """The lower median of the samples; 0 if there are none."""
        return self.quantile(0.5)

    def quantile(self, share: float) -> int:
        """The lower quantile of the samples, for a share from 0 to 1; 0 if there are none."""
        ordered = sorted(self._samples)
        return ordered[int((len(ordered) - 1) * share)] if ordered else 0


@dataclass
class Seen:
    """Of one producer: its last event; how many events were in its last second (LAST) and how
    many before; its newest exceptions that nobody handled, oldest first.
    """

    last: Event | None = None
    recent: int = 0
    earlier: int = 0
    unhandled: deque[Event] = field(default_factory=lambda: deque(maxlen=_EXCEPTIONS_LIMIT))


@dataclass
class Survey:
    """`durations` by the span's name, `seen` by the producer's index.

    `damage` names batches that have not all of their events, the first of them.
    """

    durations: dict[str, Durations] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """One more batch that is damaged."""
        if len(self.damage) < _NOTES_LIMIT:
            self.damage.append(text)


def survey(snapshot: Snapshot, names: Collection[str] | None = None) -> Survey:
    """Go through all events; keep the durations of spans with these `names`, or of all.

    Raises `DamagedFileError` if the file changes meanwhile.
    """
    found = Survey({name: Durations() for name in sorted(names or ())[:_NAMES_LIMIT]})
    durations = found.durations
    end, exception = END.name, EXCEPTION.name
    room = _NAMES_LIMIT if names is None else 0
    since = {each.index: snapshot.reference_ns(each) - LAST for each in snapshot.producers}
    for run in snapshot.runs(ordered=False, told=found.note):
        seen = found.seen.setdefault(run[0].producer, Seen())
        seen.last = run[-1]
        old = bisect_left(run, since.get(run[0].producer, 0), key=_time)
        seen.earlier += old
        seen.recent += len(run) - old
        for event in run:
            # Millions: looked at by place, which is twice as fast as by name.
            kind = event[_KIND]
            if kind == end:
                kept = durations.get(event.name)
                if kept is None:
                    if len(durations) >= room:
                        continue
                    kept = durations.setdefault(event.name, Durations())
                kept.add(event.duration_ns or 0)
            elif kind == exception and event.args.get("unhandled"):
                seen.unhandled.append(event)
    return found
