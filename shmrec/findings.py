"""What a snapshot tells of one producer: threads, rates, memory, and what it cannot tell.

Runs in whoever reads a snapshot. Nothing here judges; `verdict` and `culprits` do. Numbers in a
snapshot are hostile: those that make no sense are as good as not there.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any, Final

from shmrec.decoder import Event, OpenSpan
from shmrec.layout import StackFlag
from shmrec.manifest import ENDED, FACTS, Producer, Stack
from shmrec.phrases import LOST, MAIN_THREAD, age, counted, safe, size, some
from shmrec.snapshot_file import Snapshot
from shmrec.stack_text import Dump, ThreadStack, parse
from shmrec.survey import LAST, Seen

__all__ = [
    "REQUEST",
    "Finding",
    "Thread",
    "Trend",
    "Verdict",
    "find",
    "memory_said",
    "number_of",
    "stack_missing",
    "threads_of",
]

REQUEST: Final = "request"
"""What the integrations call the span of a request."""
_LATELY: Final = 5_000_000_000
_BRIEFLY: Final = 500_000_000
_DAMAGE_SHOWN: Final = 3
_THREADS_NAMED: Final = 4
_MILLION: Final = 1_000_000
_TIME, _RSS, _CPU, _THREADS, _FILES, _STATE = range(len(FACTS))


@dataclass
class Thread:
    """A thread: its open spans, innermost first, and what it was executing.

    `thread` is the kernel's id as events have it, 0 where a stack's ident leads to none.
    """

    thread: int
    name: str = ""
    spans: list[OpenSpan] = field(default_factory=list)
    stack: ThreadStack | None = None

    @property
    def since_ns(self) -> int:
        """When its oldest open span began; later than all time if it has none."""
        return self.spans[-1].start_ns if self.spans else 1 << 64


@dataclass
class Trend:
    """A process's memory and doing over its last minute, as the kernel told. Sizes in bytes.

    `limit` 0: none, or not known. `cpu` is the share of one processor that it used in the last
    seconds before `last_ns`, None if that is not known; `threads` and `files` -1 likewise.
    """

    first_ns: int
    last_ns: int
    first_rss: int
    last_rss: int
    peak_rss: int
    limit: int
    cpu: float | None
    threads: int
    files: int
    state: str

    @property
    def growth(self) -> int:
        """By how much the resident memory grew, negative where it shrank."""
        return self.last_rss - self.first_rss


@dataclass
class Verdict:
    """Why a producer ended: a `kind` of `verdict.KINDS`, a sentence, and what it rests on."""

    kind: str
    text: str
    evidence: list[str] = field(default_factory=list)


@dataclass
class Finding:
    """One producer.

    `threads`: the one that a fatal signal hit first, then those with open spans, the longest
    open first, then the others. `stack` is the dump that they were taken from. `silence_ns` is
    how long before `reference_ns` its last event was. `rate_before` and `rate_last` are events
    a second before its last second, and in it. `history_ns` is how long before `reference_ns`
    its history begins. `unhandled` are exceptions. `unknowns` are sentences: what the snapshot
    cannot tell of it, and why.
    """

    producer: Producer
    reference_ns: int
    threads: list[Thread] = field(default_factory=list)
    stack: Stack | None = None
    fatal: str = ""
    last: Event | None = None
    silence_ns: int | None = None
    history_ns: int | None = None
    rate_before: float | None = None
    rate_last: float | None = None
    unhandled: list[Event] = field(default_factory=list)
    trend: Trend | None = None
    waiting: str = ""
    verdict: Verdict | None = None
    unknowns: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.producer.state in ENDED

    @property
    def untold(self) -> bool:
        """Whether it died and this snapshot is the first to tell."""
        return self.producer.state == "dead" and not self.producer.reported

    @property
    def stalled(self) -> bool:
        return "stalled" in (self.producer.state, self.producer.evidence)

    @property
    def struck(self) -> Thread | None:
        """The thread that a fatal signal hit, if its stack says which."""
        first = self.threads[0] if self.threads and self.fatal else None
        return first if first and first.stack and first.stack.current else None

    @property
    def oldest(self) -> OpenSpan | None:
        """Of all its open spans the one open for longest."""
        spans = [thread.spans[-1] for thread in self.threads if thread.spans]
        return min(spans, key=lambda span: (span.start_ns, span.span), default=None)

    @property
    def requests(self) -> list[OpenSpan]:
        """The open requests, or else each thread's outermost span; the longest open first.

        Of the thread that a fatal signal hit, if it has any.
        """
        struck = self.struck
        threads = [struck] if struck is not None and struck.spans else self.threads
        spans = [span for each in threads for span in each.spans if span.name == REQUEST]
        found = spans or [each.spans[-1] for each in threads if each.spans]
        return sorted(found, key=lambda span: (span.start_ns, span.span))

    @property
    def request(self) -> OpenSpan | None:
        """The first of `requests`."""
        return next(iter(self.requests), None)

    def age_ns(self, span: OpenSpan) -> int:
        """For how long the span had been open; 0 where it began after `reference_ns`."""
        return max(0, self.reference_ns - span.start_ns)


def find(snapshot: Snapshot, producer: Producer, seen: Seen) -> Finding:
    """All that is known of one producer, but for the verdict."""
    found = Finding(producer, snapshot.reference_ns(producer))
    found.last = seen.last
    if producer.newest_ns:
        found.silence_ns = max(0, found.reference_ns - producer.newest_ns)
    found.unhandled = list(seen.unhandled)
    _rates(found, seen)
    dump = _choose_dump(found)
    found.threads = threads_of(producer, found.stack, dump)
    found.trend = _trend(producer)
    found.waiting = _waiting(found)
    found.unknowns = _unknowns(found, dump)
    return found


def number_of(values: dict[str, Any], key: str) -> int | None:
    """A whole number that is not negative, or None."""
    value = values.get(key)
    return value if type(value) is int and value >= 0 else None


def _rates(found: Finding, seen: Seen) -> None:
    producer = found.producer
    if not producer.events or not producer.oldest_ns:
        return
    found.history_ns = max(0, found.reference_ns - producer.oldest_ns)
    found.rate_last = float(seen.recent)
    if found.history_ns > LAST:
        found.rate_before = seen.earlier / ((found.history_ns - LAST) / 1e9)
        # Over less than a second before the last one, a rate would say nothing.
        if found.history_ns < 2 * LAST:
            found.rate_before = None


def _choose_dump(found: Finding) -> Dump | None:
    """Of an ended one what it wrote at its end, else the newest; sets `stack` and `fatal`."""
    stacks = found.producer.stacks
    fatal = [stack for stack in stacks if stack.kind == "fatal"] if found.ended else []
    for stack in fatal[-1:] or sorted(stacks, key=lambda stack: stack.taken_ns)[-1:]:
        found.stack = stack
        dumps = parse(stack.text)
        if dumps:
            found.fatal = dumps[-1].fatal
            return dumps[-1]
    return None


def threads_of(producer: Producer, stack: Stack | None, dump: Dump | None) -> list[Thread]:
    """The threads of one of its dumps beside their open spans, and those that have only spans.

    In the order of `Finding.threads`.
    """
    threads: dict[int, Thread] = {}
    spans = producer.open_spans
    for span in sorted(spans, key=lambda span: (span.start_ns, span.span), reverse=True):
        threads.setdefault(span.thread, Thread(span.thread, span.thread_name)).spans.append(span)
    rest: list[Thread] = []
    idents = stack.idents if stack is not None else {}
    for calls in dump.threads if dump is not None else ():
        number = idents.get(calls.ident, 0)
        known = threads.get(number) if number else None
        if known is not None and known.stack is None:
            known.stack = calls
        else:
            main = bool(number) and number == producer.pid
            rest.append(Thread(number, calls.name or (MAIN_THREAD if main else ""), [], calls))
    ordered = sorted(threads.values(), key=lambda thread: (thread.since_ns, thread.thread)) + rest
    if dump is not None and dump.fatal:
        ordered.sort(key=lambda thread: not (thread.stack is not None and thread.stack.current))
    return ordered


def _trend(producer: Producer) -> Trend | None:
    rows = sorted((row for row in producer.facts if row[_TIME] > 0), key=lambda row: row[_TIME])
    limit = number_of(producer.memory, "limit") or 0
    if not rows:
        return None
    last = rows[-1]
    sizes = [row[_RSS] for row in rows if row[_RSS] >= 0]
    if not sizes:
        sizes = [-1]
    cpu = None
    # As short as can be told from the kernel's ticks: what it does now is what matters.
    before = [
        row
        for row in rows
        if _BRIEFLY <= last[_TIME] - row[_TIME] <= _LATELY and min(row[_CPU], last[_CPU]) >= 0
    ]
    if before:
        used = last[_CPU] - before[-1][_CPU]
        cpu = max(0.0, used / (last[_TIME] - before[-1][_TIME]))
    return Trend(
        rows[0][_TIME], last[_TIME], sizes[0], sizes[-1], max(producer.peak_rss, *sizes, 0),
        limit, cpu, last[_THREADS], last[_FILES], last[_STATE],
    )  # fmt: skip


_STATES: Final = {
    "D": "in uninterruptible sleep, waiting for a device or file system",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "R": "running",
}


def _waiting(found: Finding) -> str:
    """What a live process is at, as the kernel tells."""
    if found.ended:
        return ""
    words = []
    trend = found.trend
    several = trend is not None and trend.threads > 1
    doing = found.producer.doing
    syscall, wchan = (str(doing.get(key) or "") for key in ("syscall", "wchan"))
    if syscall and syscall not in ("-1", "running"):
        words.append(f"in system call {safe(syscall)}")
    if wchan and wchan != "0":
        words.append(f"waiting in {safe(wchan)}")
    if trend is not None and trend.state in _STATES:
        words.append(_STATES[trend.state])
    if several and words:
        words[-1] += " (its main thread)"
    running = _running(found)
    if running:
        words.append(f"running in {some(running, _THREADS_NAMED)}")
    if trend is not None and trend.cpu is not None:
        words.append(f"using {trend.cpu:.0%} of a processor")
    return ", ".join(words)


def _running(found: Finding) -> list[str]:
    """The threads that ran, but for the main one, in words."""
    numbers = found.producer.doing.get("running")
    if not isinstance(numbers, list):
        return []
    names = {thread.thread: thread.name for thread in found.threads}
    return [
        safe(names.get(number) or f"thread {number}")
        for number in numbers
        if type(number) is int and number != found.producer.pid
    ]


def stack_missing(producer: Producer) -> str:
    """Why there is no stack of a producer; "" if there is one."""
    if producer.stacks:
        return ""
    flags = producer.stack_flags
    if producer.cause is not None and producer.cause.signal == signal.SIGKILL:
        return "no stack: nothing can be written at SIGKILL, and it was not asked for before"
    if producer.state in ENDED:
        if flags & StackFlag.APPLICATION:
            return "no stack: at a fatal signal it goes where the application's faulthandler writes"
        if not flags & StackFlag.FATAL:
            return "no stack: faulthandler was not armed in it"
        return "no stack: nothing was written at its end"
    if not flags & StackFlag.ASKED:
        return "no stack: it is not set up to give its stacks when asked"
    return "no stack: it was not asked for one"


def _unknowns(found: Finding, dump: Dump | None) -> list[str]:
    producer = found.producer
    said = []
    lost = {cause: count for cause, count in producer.losses.items() if count > 0}
    before = lost.pop("overwritten", 0) + max(0, producer.trimmed)
    if not producer.events:
        said.append("no event of it is in the snapshot")
    elif before and found.history_ns is not None:
        said.append(
            f"its history starts {age(found.history_ns)} before: {counted(before, 'older event')} "
            + ("overwritten" if not producer.trimmed else "overwritten or left out")
        )
    for cause, count in lost.items():
        said.append(f"{counted(count, 'event')} {LOST.get(cause, f'lost: {safe(cause)}')}")
    if producer.spans_missing:
        said.append("more spans were open than it could name: some are missing")
    if producer.evidence == "stalled":
        said.append("what it was just recording may be missing")
    said += [f"damaged: {safe(note)}" for note in producer.damage[:_DAMAGE_SHOWN]]
    if len(producer.damage) > _DAMAGE_SHOWN:
        said.append(f"and {len(producer.damage) - _DAMAGE_SHOWN} more damages")
    if producer.state == "dead" and not producer.ended_ns:
        said.append("when it ended is not known: ages are up to the snapshot")
    if producer.state == "dead" and found.trend is None:
        said.append("nothing is known of its memory and processor time: they were not sampled")
    if found.stack is not None:
        said += _of_the_stack(found, found.stack, dump)
    return said


def _of_the_stack(found: Finding, stack: Stack, dump: Dump | None) -> list[str]:
    said = []
    if dump is None or not dump.threads:
        said.append("its stack could not be read")
    elif stack.cut or dump.cut:
        said.append("its stack is cut off: threads or calls are missing")
    if dump is not None and dump.odd_count:
        said.append(f"{counted(dump.odd_count, 'line')} of its stack not understood")
    if stack.note:
        said.append(f"of its stack: {safe(stack.note)}")
    before = found.reference_ns - stack.taken_ns
    if stack.kind != "fatal" and stack.taken_ns and abs(before) >= LAST // 2:
        when = "before" if before > 0 else "after"
        said.append(f"its stack is from {age(abs(before))} {when}")
    return said


def memory_said(trend: Trend | None, reference_ns: int, end: str = "its end") -> str:
    """How much memory a process had, beside its limit; "" if that is not known."""
    if trend is None or trend.last_rss < 0:
        return ""
    before = max(0, reference_ns - trend.last_ns)
    of = f" of {size(trend.limit)} allowed" if trend.limit else ""
    when = f"{age(before)} before" if before >= _MILLION else "at"
    text = f"{size(trend.last_rss)} resident{of}, {when} {end}"
    if trend.peak_rss > trend.last_rss:
        text += f", {size(trend.peak_rss)} at most"
    over = trend.last_ns - trend.first_ns
    if over > 0 and abs(trend.growth) >= _MILLION:
        grew = "grew" if trend.growth > 0 else "shrank"
        text += f"; it {grew} by {size(abs(trend.growth))} in {age(over)}"
    return text
