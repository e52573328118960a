"""The collector's memory: at rest, and what a snapshot needs besides, by number of producers.

Only private memory counts: the recording is mapped shared, and is there whether a collector
is or not. At rest is before a recording's first snapshot, whose memory the process may keep
for the next one. The most that snapshots needed is what the process's peak (reset before
them) was above that, the shared pages and those of files left out, of which there are never
fewer afterwards.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.bench.report import Options, Result
from tools.bench.rig import Rig

TARGET_MIB = 40.0
"""At rest; a snapshot's need comes on top."""
TARGET_RINGS = 1.5
"""What a snapshot needs at most, in rings, however many there are: it streams."""
_SIZE = 2 << 20
_SNAPSHOTS = 5
_MIB = 1 << 20


def measure(options: Options) -> list[Result]:
    """A recording of its own for every count of producers, whose rings are full."""
    counts = (1, 4) if options.quick else (1, 4, 16)
    results = []
    for count in counts:
        with Rig(options.directory, size=_SIZE, producers=count) as rig:
            rig.grow(count, full=True)
            try:
                results += _measure_one(rig, count)
            except PermissionError as error:
                print(f"memory cannot be measured here: {error}", file=sys.stderr)
                return []
    return results


def _measure_one(rig: Rig, count: int) -> list[Result]:
    before = _status(rig.collector)
    rest = before["RssAnon"]
    # Its peak is from now on.
    Path(f"/proc/{rig.collector}/clear_refs").write_text("5")
    for _ in range(_SNAPSHOTS):
        rig.flight.snapshot("bench").unlink()
    after = _status(rig.collector)
    most = after["VmHWM"] - after["RssShmem"] - after["RssFile"]
    needed = most - rest
    producers = "1 full ring" if count == 1 else f"{count} full rings"
    return [
        Result(
            "collector-memory",
            f"collector of {producers}, at rest",
            rest / _MIB,
            "MiB",
            judged=rest / _MIB,
            target=TARGET_MIB,
            target_text=f"{TARGET_MIB:g} MiB",
            notes=f"private; {before['RssFile'] / _MIB:.0f} MiB more of files",
        ),
        Result(
            "collector-memory",
            f"snapshots of {producers}, besides",
            needed / _MIB,
            "MiB",
            {"one ring": round(needed / _SIZE, 3)},
            judged=needed / _SIZE,
            target=TARGET_RINGS,
            target_text=f"{TARGET_RINGS:g} rings",
            notes=f"{most / _MIB:.1f} MiB in all; {after['RssShmem'] / _MIB:.0f} MiB are shared",
        ),
    ]


def _status(pid: int) -> dict[str, int]:
    """Bytes by the name that /proc/PID/status has for them."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[key] = int(value.split()[0]) << 10
    return found
