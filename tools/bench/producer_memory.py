"""The private memory that recording adds to a producer, besides its ring.

Fresh processes do the same work twice, the first time recording nowhere; what they hold
afterwards is compared with what they held in between. A process that records nowhere the
second time too is watched beside them: what it grows by is the work's own.

What is counted are the dirty private pages, and what was swapped out, of every mapping but the
recording's: its pages are the ring, and look private as long as the collector has not read
them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import shmrec
from tools.bench import memory_workload
from tools.bench.memory_workload import ATTACHED, BARE, IMPORTED, WARM
from tools.bench.report import Options, Result
from tools.bench.rig import Rig

TARGET_MIB = 1.0
_SIZE = 2 << 20
_PARTS = 10
_SEGMENT = "/dev/shm/shmrec."
_RECORDED_SHARE = 0.95
_COUNTED = ("Private_Dirty", "Swap")


@dataclass(frozen=True)
class Held:
    """MiB that a process holds: private besides the recording, and of the recording."""

    private: float
    segment: float


def measure(options: Options) -> list[Result]:
    """Processes that record and processes that do not, in turns, one at a time."""
    events = 100_000 if options.quick else 1_000_000
    rounds = 1 if options.quick else 5
    recorded: list[dict[str, Held]] = []
    not_recorded: list[dict[str, Held]] = []
    for _ in range(rounds):
        with Rig(options.directory, size=_SIZE, producers=1) as rig:
            recorded.append(_watch(rig.flight.name, events))
            _check(rig, events)
            not_recorded.append(_watch("", events))
    growths = [_growth(stages) for stages in recorded]
    control = statistics.median(map(_growth, not_recorded))
    attach = statistics.median(_between(stages, WARM, ATTACHED) for stages in recorded)
    imports = [_between(stages, BARE, IMPORTED) for stages in recorded + not_recorded]
    ring = max(held.segment for stages in recorded for held in stages.values())
    details = [
        ", ".join(f"{stage} {held.private:.2f}" for stage, held in recorded[0].items()) + " MiB"
    ]
    return [
        Result(
            "producer-memory",
            f"a producer, besides its ring, after {events:,} events",
            statistics.median(growths),
            "MiB",
            judged=max(growths),
            target=TARGET_MIB,
            target_text=f"{TARGET_MIB:g} MiB, the most of {rounds}",
            notes=(
                f"{min(growths):.2f} to {max(growths):.2f}; {attach:.2f} by attaching; "
                f"of the recording {ring:.1f} MiB are mapped in"
            ),
            details=tuple(details) if options.verbose else (),
        ),
        Result("producer-memory", "the same work, recorded nowhere", control, "MiB"),
        Result("producer-memory", "import shmrec", statistics.median(imports), "MiB"),
    ]


def _between(stages: dict[str, Held], before: str, after: str) -> float:
    return stages[after].private - stages[before].private


def _growth(stages: dict[str, Held]) -> float:
    """From before the attach to the most that was seen at any stage afterwards."""
    later = list(stages)[list(stages).index(ATTACHED) :]
    return max(_between(stages, WARM, stage) for stage in later)


def _watch(recording: str, events: int) -> dict[str, Held]:
    """What a fresh process holds, stage by stage."""
    program = memory_workload.__file__
    stages: dict[str, Held] = {}
    with subprocess.Popen(
        [sys.executable, program, recording, str(events), str(_PARTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            stages[line.strip()] = held(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
    if process.returncode or len(stages) != _PARTS + 4:
        raise RuntimeError(f"the watched producer ended with {process.returncode}: see its words")
    return stages


def _check(rig: Rig, events: int) -> None:
    """See that the work was recorded: memory that was never needed would prove nothing."""
    path = rig.flight.snapshot("bench")
    found = max(producer.recorded for producer in shmrec.read(path).producers)
    path.unlink()
    if found < events * _RECORDED_SHARE:
        raise RuntimeError(f"the watched producer has recorded {found:,} events of {events:,}")


def held(pid: int) -> Held:
    """What the process holds now."""
    private = segment = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if " " in key or not value:
            # A mapping's own line: "from-to rights offset device inode path".
            ours = _SEGMENT in line
        elif ours and key == "Rss":
            segment += int(value.split()[0])
        elif not ours and key in _COUNTED:
            private += int(value.split()[0])
    return Held(private / 1024, segment / 1024)
