"""Asking a busy process for its stacks: how long it takes, and how often it crashes.

Politely is with the process's handler in Python; forced is what is done to a process that does
not come to that. Reading the stacks of threads that run crashes interpreters now and then: the
process has three busy threads beside an idle main one, and is asked again and again, by this
process, which no collector helps.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from shmrec import naming, segment
from shmrec.entry import Entry
from shmrec.layout import ENTRY, Geometry, StackFlag
from shmrec.ring import readers
from shmrec.segment import Segment
from shmrec.stack_area import Asking, take_stacks
from tools.bench.report import Options, Result

_BUSY = """
import sys, threading, time
import shmrec

shmrec.attach(sys.argv[1], required=True)

def work():
    while True:
        sum(len(text) for text in [str(number) for number in range(50)])

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
print("busy", flush=True)
while True:
    shmrec.instant("alive")
    time.sleep(0.005)
"""
_DUMPS = 500
_PAUSE_SECONDS = 0.002


def measure(options: Options) -> list[Result]:
    """Both ways; no crash may come of the polite one."""
    name = f"bench-stacks-{time.monotonic_ns()}"
    dumps = _DUMPS // 20 if options.quick else _DUMPS
    with segment.create(name, Geometry.of(0, 4), keep_size=0, keep_period_ns=0) as memory:
        try:
            return [_ask(memory, dumps, politely=politely) for politely in (True, False)]
        finally:
            naming.remove(name)


def _ask(memory: Segment, dumps: int, *, politely: bool) -> Result:
    taken: list[float] = []
    crashes = answered = 0
    while len(taken) < dumps:
        command = [sys.executable, "-c", _BUSY, memory.name]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as busy:
            try:
                assert busy.stdout is not None
                busy.stdout.readline()
                for entry in _while_alive(memory, busy, dumps - len(taken)):
                    asked = entry if politely else _impolitely(entry)
                    before = _answers(memory, entry)
                    began = time.perf_counter()
                    take_stacks(memory, [Asking(asked, -1)])
                    taken.append(time.perf_counter() - began)
                    answered += _answers(memory, entry) != before
                    time.sleep(_PAUSE_SECONDS)
                    # With a new generation it opens a batch, and begins its area anew.
                    memory.bump("generation")
                crashes += busy.poll() is not None
            finally:
                busy.kill()
        _settle(memory)
    return Result(
        "stacks",
        "asked politely" if politely else "forced",
        statistics.median(taken) * 1e3,
        "ms",
        judged=crashes if politely else None,
        target=0 if politely else None,
        target_text="no crash" if politely else "",
        notes=f"{crashes} crashes in {dumps} dumps, {answered} answered politely",
    )


def _while_alive(memory: Segment, busy: subprocess.Popen[str], most: int) -> Iterator[Entry]:
    (entry,) = [each.entry() for each in readers(memory) if each.entry().pid == busy.pid]
    for _ in range(most):
        if busy.poll() is not None:
            return
        yield entry


def _impolitely(entry: Entry) -> Entry:
    return replace(entry, stacks=entry.stacks & ~StackFlag.POLITE)


def _answers(memory: Segment, entry: Entry) -> int:
    return memory.words[ENTRY.word("stack_answered", memory.geometry.entry(entry.index))]


def _settle(memory: Segment) -> None:
    """Free the rings of those that crashed: there is no collector to do so."""
    for reader in readers(memory):
        at = memory.geometry.entry(reader.index)
        memory.words[ENTRY.word("settled", at)] = reader.incarnation()
