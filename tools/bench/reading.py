"""How many events a second a snapshot file is read at, and what that takes in memory.

The file is a collector's as far as a reader can tell: `FileWriter` writes it, from batches that
the python writer has filled over plain memory with requests as a web worker has them: spans,
instants with two arguments, a counter. A few rings are made and then used again and again at
later times, which costs a reader the same.

Every sample is a process of its own that opens the file and counts its events; its imports do
not count, but for ``shmrec-dump``, where everything does. It is one thread that waits for
nothing but the file, so that what counts is the processor time it takes, whoever else is busy
on the machine; the time that passed is in the notes. The floor is unpacking the same batches
with `msgpack.Unpacker`, and throwing the result away.
"""

from __future__ import annotations

import dataclasses
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from shmrec.file_writer import FileWriter
from shmrec.layout import CONTROL, ENTRY, EntryState, Geometry
from shmrec.manifest import Header, Producer
from shmrec.ring import Batch, RingReader
from shmrec.writer import Writer
from tools.bench import timing
from tools.bench.report import Options, Result

TARGET_RATE = 1e6
_TARGET_PRODUCERS = (4,)
_MADE = 4
_SLOTS = 48
_START_NS = 10**12
_READ = "shmrec.read(FILE).events()"
_COUNT = "shmrec-dump events FILE --count"
_PLAIN = "not merged"
_FLOOR = "msgpack.Unpacker"

_CHILD = """
import json, sys, time
import msgpack, shmrec, shmrec.snapshot_file

def peak():
    # Not ru_maxrss, which counts what the process was before it became this program.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

path, before, start = sys.argv[1], peak(), time.perf_counter()
began = time.process_time()
snapshot = shmrec.read(path)
opened = time.process_time() - began
{how}
seconds = time.process_time() - began
passed = time.perf_counter() - start
print(json.dumps([count, seconds, passed, opened, (peak() - before) / 1024]))
"""
_HOW = {
    _READ: "count = sum(1 for _ in snapshot.events())",
    _PLAIN: "count = sum(map(len, snapshot.runs(ordered=False)))",
    # What is read of the file, and how, is no part of the floor.
    _FLOOR: """
with open(path, "rb") as file:
    payloads = [
        snapshot._payload(file, where) for batches in snapshot._batches.values()
        for where in batches
    ]
count = 0
began = time.process_time()
for payload in payloads:
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=len(payload))
    unpacker.feed(payload)
    for item in unpacker:
        count += 1
""",
}


@dataclasses.dataclass
class _Seen:
    """What the processes said of themselves, the last of each kind."""

    events: int = 0
    passed: float = 0.0
    opened: float = 0.0
    peak: float = 0.0


def measure(options: Options) -> list[Result]:
    """By number of producers, in one file after the other."""
    size = 10 if options.quick else 100
    rounds = 2 if options.quick else 5
    results: list[Result] = []
    rings = [_ring(seed) for seed in range(_MADE)]
    for producers in (4,) if options.quick else (4, 64):
        path = options.directory / f"reading-{producers}.shmrec"
        events = _write(path, rings, producers, size * 10**6)
        results += _measure_one(path, producers, events, rounds, options.verbose)
        path.unlink()
    return results


def _measure_one(
    path: Path, producers: int, events: int, rounds: int, verbose: bool
) -> Iterator[Result]:
    seen = {name: _Seen() for name in _HOW}
    seen[_COUNT] = _Seen()

    def child(name: str) -> timing.Sample:
        command = [sys.executable, "-c", _CHILD.format(how=_HOW[name]), str(path)]

        def sample() -> float:
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            count, seconds, *others = json.loads(done.stdout)
            seen[name] = _Seen(count, *others)
            return float(seconds) / events * 1e9

        return sample

    def dump() -> float:
        command = [sys.executable, "-m", "shmrec.commands.dump", "events", str(path), "--count"]
        start, began = time.perf_counter(), _time_of_children()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seen[_COUNT] = _Seen(int(done.stdout), time.perf_counter() - start)
        return (_time_of_children() - began) / events * 1e9

    candidates = {name: child(name) for name in _HOW} | {_COUNT: dump}
    samples = timing.interleaved(candidates, rounds)
    for name in (_READ, _COUNT):
        if seen[name].events != events:
            raise RuntimeError(f"{name} counted {seen[name].events} events of {events}")
    middle = {name: statistics.median(found) for name, found in samples.items()}
    size = path.stat().st_size
    for name in (_READ, _COUNT):
        promised = producers in _TARGET_PRODUCERS
        notes = f"{size / 1e6:.0f} MB, {events:,} events in {seen[name].passed:.1f} s"
        if name == _READ:
            notes += f", {seen[name].opened:.2f} s of it to open; {seen[name].peak:.0f} MiB"
        yield Result(
            "reading",
            f"{name}, {producers} producers",
            1e3 / middle[name],
            "million/s",
            {_FLOOR: round(timing.ratio(samples, name, _FLOOR), 3)},
            judged=middle[name] if promised else None,
            target=1e9 / TARGET_RATE if promised else None,
            target_text=f"{TARGET_RATE:,.0f}/s" if promised else "",
            notes=notes,
            details=_details(middle, seen, events) if verbose and name == _READ else (),
        )


def _time_of_children() -> float:
    """Processor seconds of all processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _details(middle: dict[str, float], seen: dict[str, _Seen], events: int) -> tuple[str, ...]:
    """Where an event's time goes."""
    opened = seen[_PLAIN].opened / events * 1e9
    parts = {
        "reading the file's frames and their checksums, when it is opened": opened,
        "unpacking": middle[_FLOOR],
        "checking and making the events": middle[_PLAIN] - middle[_FLOOR] - opened,
        "merging, and handing out one by one": middle[_READ] - middle[_PLAIN],
    }
    return tuple(f"{nanoseconds:6.0f} ns an event  {what}" for what, nanoseconds in parts.items())


def _ring(seed: int) -> list[Batch]:
    """The batches of one ring, filled by the python writer in private memory."""
    steps = random.Random(seed)
    now = _START_NS

    def clock() -> int:
        nonlocal now
        now += steps.randrange(500, 60_000)
        return now

    geometry = Geometry(producers=1, slots=_SLOTS)
    memory = memoryview(bytearray(geometry.segment_size))
    words = memory.cast("Q")
    entry = geometry.entry(0)
    words[CONTROL.word("generation")] = 1
    words[ENTRY.word("state", entry)] = EntryState.LIVE
    writer = Writer(clock=clock)
    writer.bind(
        memory,
        words,
        entry=entry,
        ring=geometry.ring(0),
        slot_size=geometry.slot_size,
        slots=geometry.slots,
    )
    number = 0
    while words[ENTRY.word("opening", entry)] < _SLOTS:
        number += 1
        with writer.span("request", method="GET", path=f"/item/{number % 977}"):
            for _ in range(4):
                writer.instant("cache.get", key=f"user:{number % 5000}", hit=number % 2 == 0)
            writer.counter("queue", number % 50)
            with writer.span("query"):
                writer.instant("rows", table="orders", count=number % 300)
    reader = RingReader(memory, words, geometry, 0)
    # All but the last, which is not full.
    copies = [reader.copy(head) for head in reader.scan().heads[:-1]]
    return [copy for copy in copies if copy is not None]


def _write(path: Path, rings: list[list[Batch]], producers: int, size: int) -> int:
    """Write a file of about so many bytes; how many events it holds."""
    turn = max(ring[-1].head.start_ns for ring in rings) - _START_NS + 10**8
    bytes_a_turn = sum(
        len(batch.payload) for index in range(producers) for batch in rings[index % len(rings)]
    )
    turns = max(1, round(size / bytes_a_turn))
    with open(path, "wb") as file:
        writer = FileWriter(file)
        taken = _START_NS + turns * turn
        writer.header(Header(recording="bench", taken_mono_ns=taken, generation=1, flushes=2))
        for index in range(producers):
            writer.producer(Producer(index=index, pid=1000 + index, label=f"worker {index}"))
            number = first = 0
            for start in range(0, turns * turn, turn):
                for batch in rings[index % len(rings)]:
                    number += 1
                    # Not all at the same nanosecond, though a few are filled alike.
                    moved = dataclasses.replace(
                        batch.head,
                        number=number,
                        start_ns=batch.head.start_ns + start + index * 1001,
                        first=first,
                    )
                    writer.batch(index, Batch(moved, batch.payload))
                    first += moved.count
        writer.trailer()
    return writer.events
