"""What shmrec costs, as ratios to floors that are measured in the same run.

    python tools/bench [MEASUREMENT...] [--quick] [--check] [--json FILE] [--verbose]

A machine's speed drifts by up to 2x within minutes, so that nanoseconds of different runs say
nothing about each other. Candidates and floors take turns, and a ratio is the median of the
ratios of neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.bench import (  # noqa: E402
    collector_memory,
    event_cost,
    idle_collector,
    import_cost,
    live_views,
    peers,
    producer_memory,
    reading,
    report,
    snapshot_latency,
    stacks,
    throughput,
    web_service,
)
from tools.bench.machine import describe  # noqa: E402
from tools.bench.report import MISSED, Options, Result  # noqa: E402

MEASUREMENTS = {
    "events": event_cost.measure,
    "peers": peers.measure,
    "snapshot": snapshot_latency.measure,
    "idle": idle_collector.measure,
    "live": live_views.measure,
    "import": import_cost.measure,
    "throughput": throughput.measure,
    "web": web_service.measure,
    "producer-memory": producer_memory.measure,
    "collector-memory": collector_memory.measure,
    "reading": reading.measure,
    "stacks": stacks.measure,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure what shmrec costs, as ratios to floors of the same run.",
        epilog="A floor is what cannot be done without: no-op, clock and copy are calls of C that "
        "do nothing, ask for the time, and copy an event besides; pack is msgpack's. A target is "
        "promised, a prize is more than that. "
        "Exit status: 0; 1 with --check if a target was missed.",
    )
    parser.add_argument(
        "measurement",
        nargs="*",
        help=f"measure only these: {', '.join(MEASUREMENTS)}",
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, small cases: a smoke")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument(
        "--json", metavar="FILE", help="write the results there too; - for stdout, and no table"
    )
    parser.add_argument("--verbose", action="store_true", help="say what the figures consist of")
    parser.add_argument(
        "--idle-seconds", type=float, metavar="S", help="how long to watch idle collectors"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        help="where snapshots are written: the file system matters (default: the temporary one)",
    )
    found = parser.parse_args()
    unknown = set(found.measurement) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement {min(unknown)!r}: choose from {', '.join(MEASUREMENTS)}")
    if found.idle_seconds is not None and found.idle_seconds <= 0:
        parser.error("--idle-seconds must be more than 0")
    return found


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shmrec-bench-", dir=wanted) as made:
        yield Path(made)


def main() -> int:
    """Measure, print, and give the exit status."""
    given = _arguments()
    # Collectors and daemons that were started for a measurement end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    results: list[Result] = []
    with _directory(given.dir) as directory:
        options = Options(
            directory=directory,
            quick=given.quick,
            verbose=given.verbose,
            idle_seconds=given.idle_seconds or (3.0 if given.quick else 20.0),
        )
        machine = describe(directory)
        for name, measure in MEASUREMENTS.items():
            if not given.measurement or name in given.measurement:
                print(f"measuring {name} ...", file=sys.stderr, flush=True)
                results += measure(options)
    seconds = round(time.monotonic() - began, 1)
    whole = {
        "machine": machine,
        "quick": given.quick,
        "seconds": seconds,
        "results": [result.as_json() for result in results],
    }
    if given.json == "-":
        print(json.dumps(whole, indent=2))
    else:
        if given.json is not None:
            Path(given.json).write_text(json.dumps(whole, indent=2) + "\n")
        report.show(machine, results, seconds=seconds)
    return int(given.check and any(result.verdict == MISSED for result in results))


if __name__ == "__main__":
    sys.exit(main())
