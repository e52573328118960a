"""A collector whose time is compressed, so that an hour of it is days of another's.

Run as a program, as a trial's child: the collector as it is, with shorter times. A tick, and so a
generation, lasts `TICK_SECONDS` instead of a second; what goes by ticks, such as the facts of
processes, is hurried with it. A day of limits lasts `DAY_SECONDS`, and what it counts is forgotten
as often. It says "ready" once it serves, and ends at SIGTERM, as any collector.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from shmrec import collector, store, triggers  # noqa: E402
from shmrec.collector import Collector, spare_signals  # noqa: E402
from shmrec.log import log_to_stderr  # noqa: E402
from shmrec.takeover import Settings, establish  # noqa: E402

TICK_SECONDS = 0.03
DAY_SECONDS = 300.0
READY = "ready"
_SWEEP_SECONDS = 2.0
_INCIDENT_SECONDS = 20.0
_SECOND = 1_000_000_000

TRIGGERS = (
    "death interval=0.2s daily={deaths}",
    "exception interval=1s daily=100",
    "log interval=1s daily=100",
    "slow_span slow* 0.2s interval=2s daily=100",
    "stall stuck* 0.3s interval=2s daily=50",
    "counter depth* > 90 interval=2s window=0.1s daily=50",
    "signal USR1 interval=2s daily=50",
)


def hurry(tick: float = TICK_SECONDS) -> None:
    """Compress the time of this process's collector."""
    compressed = (
        (collector, "_TICK_NS", round(tick * _SECOND)),
        (collector, "_SWEEP_NS", round(_SWEEP_SECONDS * _SECOND)),
        (triggers, "_DAY_NS", round(DAY_SECONDS * _SECOND)),
        (store, "INCIDENT_SECONDS", _INCIDENT_SECONDS),
    )
    for module, name, value in compressed:
        # One that has another name by now would be compressed by nobody.
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name} any more")
        setattr(module, name, value)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", type=int, default=128 * 1024)
    parser.add_argument("--producers", type=int, default=64)
    parser.add_argument("--period", type=float, default=2.0)
    parser.add_argument("--quota", type=int, default=12)
    parser.add_argument("--tick", type=float, default=TICK_SECONDS)
    parser.add_argument("--deaths", type=int, default=500, help="a day")
    given = parser.parse_args()
    spare_signals()
    hurry(given.tick)
    settings = Settings(
        name=given.name,
        directory=given.directory,
        size=given.size,
        period=given.period,
        producers=given.producers,
        quota_count=given.quota,
        death_interval=0.2,
        triggers=triggers.parse_all(each.format(deaths=given.deaths) for each in TRIGGERS),
        log=log_to_stderr,
    )
    serving = Collector(establish(settings), settings)
    serving.handle_signals()
    print(READY, os.getpid(), flush=True)
    serving.run()


if __name__ == "__main__":
    main()
