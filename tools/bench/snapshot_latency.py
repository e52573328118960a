"""From the request for a snapshot to its answer, by number of producers and size of rings.

The producers are real processes that have filled their rings and then stay idle; the request
goes through the recording's real collector, with two flushes. The floor is what no snapshot
can do without: copying as many bytes from shared memory, checksumming, writing and syncing
them in the same directory.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
import zlib
from pathlib import Path

from tools.bench import timing
from tools.bench.report import Options, Result
from tools.bench.rig import Rig, memory

TARGET = 3.0
_TARGET_CASE = (2 << 20, 8)
_FLOOR = "copy+crc+write+fsync"
_SNAPSHOT = "snapshot"
_FULL_SHARE = 0.9


def measure(options: Options) -> list[Result]:
    """Sizes one after the other, producers joining one recording as the counts grow."""
    counts = (1, 8) if options.quick else (1, 2, 4, 8, 16)
    rounds = 5 if options.quick else 25
    results = []
    for size in (256 << 10, 2 << 20):
        with Rig(options.directory, size=size, producers=counts[-1]) as rig:
            for count in counts:
                rig.grow(count, full=True)
                results.append(_measure_one(rig, size, count, rounds))
    return results


def _measure_one(rig: Rig, size: int, count: int, rounds: int) -> Result:
    found = rig.flight.snapshot("bench")
    content = found.read_bytes()
    found.unlink()
    if len(content) < _FULL_SHARE * size * count:
        raise RuntimeError(f"the rings were not full: {len(content)} bytes of {count} x {size}")
    source = mmap.mmap(-1, len(content))
    source[:] = content

    def snapshot() -> float:
        began = time.perf_counter()
        path = rig.flight.snapshot("bench")
        seconds = time.perf_counter() - began
        path.unlink()
        return seconds * 1e3

    def floor() -> float:
        return _floor(source, size, rig.directory) * 1e3

    samples = timing.interleaved({_SNAPSHOT: snapshot, _FLOOR: floor}, rounds)
    source.close()
    ratio = timing.ratio(samples, _SNAPSHOT, _FLOOR)
    promised = (size, count) == _TARGET_CASE
    return Result(
        "snapshot",
        f"{count} x {size >> 10} KiB",
        statistics.median(samples[_SNAPSHOT]),
        "ms",
        {_FLOOR: round(ratio, 3)},
        judged=ratio if promised else None,
        target=TARGET if promised else None,
        target_text=f"{TARGET:g}x floor" if promised else "",
        notes=f"{len(content) / 1e6:.1f} MB; {memory(rig.collector)}",
        details=(),
    )


def _floor(source: mmap.mmap, chunk: int, directory: Path) -> float:
    """Seconds to copy, checksum, write and sync all of `source`, a ring's worth at a time."""
    path = directory / "floor"
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with memoryview(source) as view:
            for start in range(0, len(view), chunk):
                copy = bytes(view[start : start + chunk])
                zlib.crc32(copy)
                os.write(fd, copy)
        os.fsync(fd)
    finally:
        os.close(fd)
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds
