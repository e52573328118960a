"""What looking costs: the processor time of ``top`` and ``tail``, and of those whom they look at.

Producers that are looked at record the same as when nobody looks: whoever does is stopped and let
go on in turns, within one run. ``top`` has a terminal, that somebody reads; ``tail`` writes to
nowhere. A producer at a pace is this file run as a program.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import shmrec
from tools.bench.idle_collector import WAKER, processor_seconds
from tools.bench.report import Options, Result
from tools.bench.rig import Rig
from tools.bench.timing import Sample, interleaved, ratio

_SETTLE_SECONDS = 2.5
_QUICK_SECONDS = 1.0
_TICK_SECONDS = 0.01
_TOP_RATE = 1_000
_TAIL_RATE = 10_000
_OFTEN = ("--interval", "0.1")
_ALONE = "nobody looking"


def measure(options: Options) -> list[Result]:
    """What it costs the producers, then what it takes itself."""
    return [*_costs(options), *_takes(options)]


@contextlib.contextmanager
def _top(name: str, *arguments: str) -> Iterator[int]:
    """The pid of a ``top`` on a terminal."""
    main, side = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(main, 65536):
                pass

    reader = threading.Thread(target=read)
    reader.start()
    running = subprocess.Popen(
        [*_dump("top", name), *arguments],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(side)
    try:
        yield running.pid
    finally:
        running.kill()
        running.wait()
        reader.join()
        os.close(main)


@contextlib.contextmanager
def _tail(name: str) -> Iterator[int]:
    running = subprocess.Popen(
        _dump("tail", name), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield running.pid
    finally:
        running.kill()
        running.wait()


def _dump(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shmrec.commands.dump", *arguments]


def _settle(options: Options) -> None:
    # Starting takes more than looking.
    time.sleep(_QUICK_SECONDS if options.quick else _SETTLE_SECONDS)


# What they cost.


def _costs(options: Options) -> list[Result]:
    events, rounds = (20_000, 2) if options.quick else (1_000_000, 25)
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(Rig(options.directory, size=2 << 20, producers=1))
        rig.grow(1, full=True)
        lookers = {
            "top looking": stack.enter_context(_top(rig.name, *_OFTEN)),
            "tail looking": stack.enter_context(_tail(rig.name)),
        }
        _settle(options)
        for pid in lookers.values():
            os.kill(pid, signal.SIGSTOP)

        def sample(pid: int | None) -> Sample:
            def cost() -> float:
                if pid is None:
                    return rig.record(events)[0].cpu_ns / events
                os.kill(pid, signal.SIGCONT)
                try:
                    return rig.record(events)[0].cpu_ns / events
                finally:
                    os.kill(pid, signal.SIGSTOP)

            return cost

        samples = interleaved(
            {_ALONE: sample(None), **{name: sample(pid) for name, pid in lookers.items()}}, rounds
        )
    return [
        Result(
            "live",
            f"a producer's event, {name}",
            statistics.median(samples[name]),
            "ns",
            {_ALONE: round(ratio(samples, name, _ALONE), 3)},
            notes="ten looks a second" if name.startswith("top") else "flat out",
        )
        for name in lookers
    ]


# What they take.


def _takes(options: Options) -> list[Result]:
    many = 4 if options.quick else 16
    waker = subprocess.Popen([sys.executable, "-c", WAKER], stdout=subprocess.PIPE)
    try:
        assert waker.stdout is not None
        waker.stdout.readline()
        return [
            _taken(options, waker.pid, _top, "top", 1, _TOP_RATE),
            _taken(options, waker.pid, _top, "top", many, _TOP_RATE),
            _taken(options, waker.pid, _tail, "tail", 1, _TAIL_RATE),
        ]
    finally:
        waker.kill()
        waker.wait()
        if waker.stdout is not None:
            waker.stdout.close()


def _taken(
    options: Options,
    floor: int,
    looker: Callable[[str], contextlib.AbstractContextManager[int]],
    verb: str,
    count: int,
    rate: int,
) -> Result:
    """The processor time that one of them takes while so many record so much each."""
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(Rig(options.directory, size=1 << 20, producers=count))
        for _ in range(count):
            stack.enter_context(_paced(rig.name, rate))
        pid = stack.enter_context(looker(rig.name))
        _settle(options)
        began = time.monotonic()
        before = [processor_seconds(each) for each in (pid, floor)]
        time.sleep(options.idle_seconds / 2)
        used = [
            processor_seconds(each) - start
            for each, start in zip((pid, floor), before, strict=True)
        ]
        elapsed = time.monotonic() - began
    percent = 100 * used[0] / elapsed
    notes = f"over {elapsed:.1f} s"
    if verb == "tail":
        notes += f"; {used[0] / elapsed / rate * 1e6:.1f} µs an event"
    return Result(
        "live",
        f"{verb} of {count} producer{'s' * (count > 1)}, {rate:,} events a second each",
        percent,
        "% of a core",
        {"waking once a second": round(used[0] / used[1], 1)} if used[1] else {},
        notes=notes,
    )


@contextlib.contextmanager
def _paced(name: str, rate: int) -> Iterator[None]:
    running = subprocess.Popen(
        [sys.executable, __file__, name, str(rate)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert running.stdout is not None
        if not running.stdout.readline():
            raise RuntimeError("a producer could not join: see its messages")
        yield
    finally:
        running.communicate()


def _record(name: str, rate: int) -> None:
    """Record so many events a second until standard input ends."""
    recorder = shmrec.attach(name, label="paced", required=True)
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    print(flush=True)
    begun, done = time.monotonic(), 0
    while not over.wait(_TICK_SECONDS):
        due = int((time.monotonic() - begun) * rate)
        for number in range(done, due):
            recorder.instant("request", n=number, path="/x")
        done = due


if __name__ == "__main__":
    _record(sys.argv[1], int(sys.argv[2]))
