"""From the request for a snapshot to its answer, by number of producers and size of rings.

The producers are real processes that have filled their rings and then stay idle; the request
goes through the recording's real collector, with two flushes. The floor is what no snapshot
can do without: copying as many bytes from shared memory, checksumming, writing and syncing
them in the same directory. It checksums with zlib, wherever it is measured; where the collector
has something faster, a second floor has it too.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from shmrec import checksum
from tools.bench import timing
from tools.bench.report import Options, Result
from tools.bench.rig import Rig

TARGETS = {(2 << 20, 8): 3.0, (2 << 20, 16): 2.0}
"""At most so many floors, by size and number of rings."""
_FLOOR = "copy+crc+write+fsync"
_FAST_FLOOR = "that with a faster crc"
_SNAPSHOT = "snapshot"
_FULL_SHARE = 0.9


def measure(options: Options) -> list[Result]:
    """Sizes one after the other, producers joining one recording as the counts grow."""
    counts = (1, 8) if options.quick else (1, 2, 4, 8, 16)
    rounds = 5 if options.quick else 41
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

    def floor(crc32: Callable[[bytes], int]) -> timing.Sample:
        return lambda: _floor(source, size, rig.directory, crc32) * 1e3

    candidates = {_SNAPSHOT: snapshot, _FLOOR: floor(zlib.crc32)}
    if checksum.crc32 is not zlib.crc32:
        candidates[_FAST_FLOOR] = floor(checksum.crc32)
    samples = timing.interleaved(candidates, rounds)
    source.close()
    ratios = {name: timing.ratio(samples, _SNAPSHOT, name) for name in samples if name != _SNAPSHOT}
    target = TARGETS.get((size, count))
    return Result(
        "snapshot",
        f"{count} x {size >> 10} KiB",
        statistics.median(samples[_SNAPSHOT]),
        "ms",
        {name: round(ratio, 3) for name, ratio in ratios.items()},
        judged=ratios[_FLOOR] if target else None,
        target=target,
        target_text=f"{target:g}x floor" if target else "",
        notes=f"{len(content) / 1e6:.1f} MB; crc32 of {checksum.crc32.__module__}",
    )


def _floor(source: mmap.mmap, chunk: int, directory: Path, crc32: Callable[[bytes], int]) -> float:
    """Seconds to copy, checksum, write and sync all of `source`, a ring's worth at a time."""
    path = directory / "floor"
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with memoryview(source) as view:
            for start in range(0, len(view), chunk):
                copy = bytes(view[start : start + chunk])
                crc32(copy)
                os.write(fd, copy)
        os.fsync(fd)
    finally:
        os.close(fd)
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds
