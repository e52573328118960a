"""Producers that record flat out at once, with and without snapshots being taken all the time.

The cost is each producer's own processor time per event, because there may be more producers
than cores. Rounds with and without snapshots take turns. Every snapshot is checked afterwards:
what was recorded must be kept, trimmed or overwritten; what the producers say they have
recorded must be what the round's last snapshot counts; and what the very last one kept is
decoded, and must go on to the last event without a hole.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import shmrec
from shmrec.manifest import Producer
from tools.bench import timing
from tools.bench.report import Options, Result
from tools.bench.rig import Rig, Work

_SIZE = 2 << 20
_ALONE = "no snapshots"
_WATCHED = "snapshots continuously"
_TRIAL_EVENTS = 20_000
_QUICK_SECONDS = 0.1
_SECONDS = 0.3
"""Processor time that a producer spends in one round."""


@dataclass
class Books:
    """What snapshots say of the producers' events: losses by cause, and sums that are wrong."""

    snapshots: int = 0
    kept: int = 0
    recorded: int = 0
    losses: dict[str, int] = field(default_factory=dict)
    """The most that any snapshot has said."""
    wrong: int = 0
    stalled: int = 0

    def check(self, path: Path, told: list[Work], *, last: int | None = None) -> None:
        """Read a snapshot, remove it; `told` is what it must have counted, if that is known.

        `last` is the number that the newest event of all who have told must bear.
        """
        expected = {work.pid: work.recorded for work in told}
        losses: dict[str, int] = {}
        found = shmrec.read(path)
        self.wrong += len(found.damage)
        for producer in found.producers:
            self._add(producer, losses)
            if producer.pid in expected:
                self.wrong += abs(expected.pop(producer.pid) - producer.recorded)
                if last is not None:
                    self.wrong += _holes(found, producer, last)
        self.wrong += sum(expected.values())
        for cause, count in losses.items():
            self.losses[cause] = max(count, self.losses.get(cause, 0))
        self.snapshots += 1
        path.unlink()

    def _add(self, producer: Producer, losses: dict[str, int]) -> None:
        overwritten = producer.losses.get("overwritten", 0)
        accounted = producer.events + producer.trimmed + overwritten
        self.wrong += abs(producer.recorded - accounted) + len(producer.damage)
        self.stalled += producer.evidence == "stalled"
        self.kept += producer.events
        self.recorded += producer.recorded
        for cause, count in producer.losses.items():
            if count and cause != "overwritten":
                losses[cause] = losses.get(cause, 0) + count

    @property
    def lost(self) -> int:
        """Events lost other than by overwriting."""
        return sum(self.losses.values())


def _holes(snapshot: shmrec.Snapshot, producer: Producer, last: int) -> int:
    """Places where the numbers of a producer's events do not go on, to `last` at the end."""
    holes, expected = 0, None
    for event in snapshot.events(producers={producer.index}):
        number = event.args.get("n")
        if number is not None:
            # Every round counts anew.
            holes += expected is not None and number != expected and number != 0
            expected = number + 1
    return holes + (expected != last + 1)


def measure(options: Options) -> list[Result]:
    """One recording; producers join it as the counts grow."""
    counts = (1, 2) if options.quick else (1, 2, 4, 8)
    rounds = 2 if options.quick else 7
    results = []
    with Rig(options.directory, size=_SIZE, producers=counts[-1]) as rig:
        for count in counts:
            rig.grow(count, full=True)
            trial = max(work.cpu_ns for work in rig.record(_TRIAL_EVENTS)) / _TRIAL_EVENTS
            seconds = _QUICK_SECONDS if options.quick else _SECONDS
            results += _measure_one(rig, count, max(1, int(seconds * 1e9 / trial)), rounds)
    return results


def _measure_one(rig: Rig, count: int, events: int, rounds: int) -> list[Result]:
    books = Books()
    latencies: list[float] = []
    rates: dict[str, list[float]] = {_ALONE: [], _WATCHED: []}

    def cost(works: list[Work], case: str) -> float:
        slowest = max(work.wall_ns for work in works)
        rates[case].append(len(works) * events / slowest * 1e3)
        return statistics.mean(work.cpu_ns for work in works) / events

    def alone() -> float:
        return cost(rig.record(events), _ALONE)

    def watched() -> float:
        with Snapshots(rig) as snapshots:
            works = rig.record(events)
        latencies.extend(snapshots.milliseconds)
        for path in snapshots.paths:
            books.check(path, [])
        books.check(rig.flight.snapshot("bench"), works)
        return cost(works, _WATCHED)

    samples = timing.interleaved({_ALONE: alone, _WATCHED: watched}, rounds)
    works = rig.record(events)
    books.check(rig.flight.snapshot("bench"), works, last=events - 1)
    ratio = timing.ratio(samples, _WATCHED, _ALONE)
    title = f"{count} producer{'s' * (count > 1)}"
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(books.losses.items()))
    checked = f"lost: {causes or 'none'}; {books.wrong} miscounted in {books.snapshots} snapshots"
    if books.stalled:
        checked += f", in which {books.stalled} producers had stalled"
    spread = f"ratio's quartiles {_quartiles(samples[_WATCHED], samples[_ALONE])}"
    return [
        Result(
            "throughput",
            f"{title}, {_ALONE}",
            statistics.median(samples[_ALONE]),
            "ns/event",
            notes=_rate(rates[_ALONE], events),
        ),
        Result(
            "throughput",
            f"{title}, {_WATCHED}",
            statistics.median(samples[_WATCHED]),
            "ns/event",
            {_ALONE: round(ratio, 3)},
            notes=f"{spread}; {_rate(rates[_WATCHED], events)}",
        ),
        Result(
            "throughput",
            f"{title}, events lost or miscounted",
            books.lost + books.wrong,
            "events",
            judged=books.lost + books.wrong,
            target=0,
            target_text="0 but by overwriting",
            notes=checked,
        ),
        Result(
            "throughput",
            f"{title}, snapshot latency",
            statistics.median(latencies),
            "ms",
            notes=(
                f"p99 {_percentile(latencies, 99):.1f} ms, worst {max(latencies):.1f} ms of "
                f"{len(latencies)}; {books.kept / books.snapshots:,.0f} events kept in each"
            ),
        ),
    ]


class Snapshots:
    """One snapshot after the other, as long as the block lasts; at least one."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take)
        self._failure: Exception | None = None
        self.milliseconds: list[float] = []
        self.paths: list[Path] = []

    def _take(self) -> None:
        aside = self._rig.directory / "taken"
        try:
            aside.mkdir(exist_ok=True)
            while not self.paths or not self._over.is_set():
                began = time.perf_counter()
                path = self._rig.flight.snapshot("bench")
                self.milliseconds.append((time.perf_counter() - began) * 1e3)
                # Looked at afterwards, out of the reach of the recording's quota.
                self.paths.append(path.rename(aside / f"{len(self.paths)}.shmrec"))
        except Exception as error:
            self._failure = error

    def __enter__(self) -> Snapshots:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


def _rate(rates: list[float], events: int) -> str:
    together = statistics.median(rates)
    return f"{together:.2f} M events/s of wall time together; {events:,} each a round"


def _quartiles(samples: list[float], floors: list[float]) -> str:
    ratios = [sample / floor for sample, floor in zip(samples, floors, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{low:.3f} to {high:.3f}"


def _percentile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
