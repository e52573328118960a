"""The processor time of a collector whose producers are attached and record nothing.

All collectors are watched at the same time. The floor, watched with them, is a Python process
that does nothing but wake once a second.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from tools.bench.report import Options, Result
from tools.bench.rig import Rig

TARGET_PERCENT = 0.5
_SETTLE_SECONDS = 2.5
_SIZE = 256 << 10
WAKER = "import select; p = select.poll(); print(flush=True)\nwhile True: p.poll(1000)"


def measure(options: Options) -> list[Result]:
    """One collector with one producer, one with many."""
    counts = (1, 4) if options.quick else (1, 16)
    with contextlib.ExitStack() as stack:
        waker = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", WAKER], stdout=subprocess.PIPE)
        )
        stack.callback(waker.kill)
        assert waker.stdout is not None
        waker.stdout.readline()
        watched = []
        for count in counts:
            rig = stack.enter_context(Rig(options.directory, size=_SIZE, producers=count))
            rig.grow(count, full=False)
            watched.append(rig.collector)
        # Attaching wakes a collector: that is not idling.
        time.sleep(_SETTLE_SECONDS)
        pids = [*watched, waker.pid]
        began = time.monotonic()
        before = [processor_seconds(pid) for pid in pids]
        time.sleep(options.idle_seconds)
        used = [processor_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
        elapsed = time.monotonic() - began
    percents = [100 * seconds / elapsed for seconds in used]
    floor = percents.pop()
    return [
        Result(
            "idle",
            f"collector of {count} idle producers" if count > 1 else "collector of 1 idle producer",
            percent,
            "% of a core",
            {"waking once a second": round(percent / floor, 3)} if floor else {},
            judged=percent,
            target=TARGET_PERCENT,
            target_text=f"{TARGET_PERCENT:g} % of a core",
            notes=f"over {elapsed:.1f} s",
        )
        for count, percent in zip(counts, percents, strict=True)
    ]


def processor_seconds(pid: int) -> float:
    """What all threads of the process have used so far."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    try:
        # Nanoseconds; the clock ticks of the stat file are too coarse for a process that idles.
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except (OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
