"""Why a producer ended: what the evidence in a snapshot allows to say, and no more.

Runs in whoever reads a snapshot. Each verdict has its kind, a sentence for people, and the
evidence, each piece with where it is known from. A kind is given where the evidence is
positive; where it is missing that is said, and unknown stays unknown.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Final

from shmrec.decoder import Event, OpenSpan
from shmrec.findings import Finding, Verdict, memory_said, number_of, stack_missing
from shmrec.manifest import ENDED
from shmrec.phrases import age, counted, safe, size, span_named, thread_said
from shmrec.stack_text import Frame, ThreadStack

__all__ = ["KINDS", "judge", "oldest_of", "place", "raised", "raised_at", "span_said"]

KINDS: Final = (
    "out of memory",
    "host timeout",
    "fatal signal",
    "killed",
    "unhandled exception",
    "exit code",
    "in order",
    "unknown",
)

_FATAL: Final = (
    signal.SIGSEGV,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGSYS,
    signal.SIGTRAP,
)
_DUMPED: Final = _FATAL[:5]
"""Those at which faulthandler writes the stacks."""
_DEADLY: Final = ("Segmentation fault", "Floating point exception", "Floating-point exception",
                  "Bus error", "Illegal instruction")  # fmt: skip
"""What faulthandler calls those that no process survives; "Aborted" may be handled."""
_JUST: Final = 10_000_000_000
_ARGUMENTS: Final = 160
_MESSAGE: Final = 200
_OPEN: Final = 4
_GUNICORN_STOPS: Final = {
    3: "it takes the worker for one that cannot boot",
    4: "it takes the application for one that cannot be loaded",
}
"""gunicorn/arbiter.py: WORKER_BOOT_ERROR, APP_LOAD_ERROR."""


def judge(found: Finding) -> Verdict | None:
    """The verdict on a producer that ended; None for one that lives."""
    producer = found.producer
    if producer.state not in ENDED:
        return None
    cause = producer.cause
    number = cause.signal if cause is not None else None
    code = cause.exit_code if cause is not None else None
    if number is None and code is None:
        verdict = _without_status(found)
    elif number is not None:
        verdict = _by_signal(found, number)
    else:
        verdict = _by_code(found, code or 0)
    if cause is not None and (number is not None or code is not None):
        verdict.evidence.insert(0, f"{safe(cause.text)}, known from {safe(cause.source) or '?'}")
    if found.untold:
        verdict.evidence += _raised_elsewhere(found, verdict)
    return verdict


def _without_status(found: Finding) -> Verdict:
    if found.producer.state == "detached":
        return Verdict("in order", "It left the recording in order.", ["it detached by itself"])
    if found.producer.state == "exited":
        return Verdict("in order", "It ended in order.", ["it exited with 0"])
    cause = found.producer.cause
    seen = "this snapshot does not say" if found.producer.ended_ns else "nobody watched it end"
    why = safe(cause.source) if cause is not None and cause.source else seen
    if found.fatal in _DEADLY:
        where = _struck_at(found)
        return Verdict(
            "fatal signal",
            f"Fatal signal: {found.fatal}{where}.",
            [f"faulthandler wrote its stacks at {found.fatal!r}", f"its wait status: {why}"],
        )
    evidence = [f"its wait status: {why}"]
    word = _host_word(found)
    if word:
        evidence.append(word)
    if found.fatal:
        evidence.append(f"faulthandler wrote its stacks at {safe(found.fatal)!r}")
    evidence += _memory(found)[1] if found.producer.memory else []
    return Verdict("unknown", "Why it ended is not known.", evidence)


def _by_signal(found: Finding, number: int) -> Verdict:
    called = _signal_name(number)
    if number == signal.SIGKILL:
        return _killed(found)
    word = _host_word(found)
    if number == signal.SIGABRT and word:
        return _host_timeout(found, called)
    if number in _FATAL:
        return _fatal(found, number)
    evidence = [word] if word else []
    return Verdict("killed", f"Killed by signal {number} ({called}).", evidence)


def _killed(found: Finding) -> Verdict:
    certain, evidence = _memory(found)
    word = _host_word(found)
    if certain:
        if word:
            evidence += [word, "so that the SIGKILL may have been its host's as well"]
        return Verdict("out of memory", "Out of memory: the kernel killed it.", evidence)
    if word:
        verdict = _host_timeout(found, "SIGKILL")
        verdict.evidence += evidence
        return verdict
    if found.fatal:
        evidence.append(f"faulthandler had written its stacks at {safe(found.fatal)!r} before")
    kills = number_of(found.producer.memory, "kills")
    if kills is None:
        text = "Killed with SIGKILL; whether for want of memory is not known."
    elif kills:
        text = "Killed with SIGKILL, possibly for want of memory: that is not certain."
    else:
        text = "Killed with SIGKILL, not for want of memory; who sent it is not known."
        if found.producer.label.startswith("gunicorn"):
            evidence.append('gunicorn\'s "Perhaps out of memory?" is what it says at any SIGKILL')
    return Verdict("killed", text, evidence)


def _memory(found: Finding) -> tuple[bool, list[str]]:
    """Whether the kernel killed it for want of memory, and what is known about that."""
    memory = found.producer.memory
    kills, others = number_of(memory, "kills"), number_of(memory, "others") or 0
    source = f" ({safe(memory['source'])})" if memory.get("source") else ""
    had = memory_said(found.trend, found.reference_ns)
    if not had and found.producer.peak_rss > 0:
        had = f"{size(found.producer.peak_rss)} resident at most"
    if kills is None:
        said = "the cgroup's count of kills for want of memory could not be read"
        return False, [said, *([f"it had {had}"] if had else [])]
    machine = memory.get("whole_machine") is True
    whose = "machine" if machine else "cgroup"
    window = number_of(memory, "window_ns")
    when = f"in the {age(window)} before its end was noticed" if window else "in its time"
    if not kills:
        there = "on the machine" if machine else "in its cgroup"
        said = f"not for want of memory: the kernel killed none {there} {when}{source}"
        return False, [said, *([f"it had {had}"] if had else [])]
    evidence = [
        f"the kernel killed {counted(kills, 'process')} for want of memory in its {whose} "
        f"{when}{source}"
    ]
    if had:
        evidence.append(f"it had {had}")
    peak = number_of(memory, "peak")
    if peak:
        # What it took between two samples shows here.
        limit = number_of(memory, "limit")
        allowed = f" of {size(limit)} allowed" if limit else ""
        evidence.append(f"all processes of the cgroup had {size(peak)}{allowed} at most")
    if others >= kills:
        evidence.append(
            f"but {counted(others, 'other process')} died of "
            "SIGKILL in that cgroup meanwhile: which of them the kernel killed is not known"
        )
        return False, evidence
    if machine:
        evidence.append("that is of all processes of the machine: it need not have been this one")
    return not machine, evidence


def _host_word(found: Finding) -> str:
    """What the host said before it ended the process; "" if it said nothing."""
    host = found.producer.host
    timeout = number_of(host, "timeout_ms")
    if timeout is None:
        return ""
    said = f"its host gave up on it: no answer for longer than {age(timeout * 1_000_000)}"
    told = number_of(host, "told_ns")
    if told and told <= found.reference_ns:
        said += f"; it said so {age(found.reference_ns - told)} before the end"
    return said


def _host_timeout(found: Finding, how: str) -> Verdict:
    timeout = number_of(found.producer.host, "timeout_ms") or 0
    evidence = [_host_word(found)]
    requests = found.requests
    text = f"Host timeout: ended by its host ({how}) after {age(timeout * 1_000_000)}"
    if requests:
        text += f", inside `{safe(requests[0].name)}` for {age(found.age_ns(requests[0]))}"
        text += oldest_of(requests)
    else:
        evidence.append("no span was open in it")
    for span in requests[:_OPEN]:
        evidence.append(f"open: {span_said(found, span)}{_executing(found, span)}")
    if len(requests) > _OPEN:
        evidence.append(f"and {len(requests) - _OPEN} more were open")
    if found.stack is None:
        evidence.append(stack_missing(found.producer))
    return Verdict("host timeout", f"{text}.", evidence)


def oldest_of(requests: Sequence[OpenSpan]) -> str:
    """Said of the first where several were open: it need not be the one that matters."""
    return f", the oldest of {len(requests)} open" if len(requests) > 1 else ""


def _executing(found: Finding, span: OpenSpan) -> str:
    """What the span's thread was executing."""
    for thread in found.threads:
        if span in thread.spans and thread.stack is not None:
            frame = thread.stack.telling()
            if frame is not None:
                return f", which was executing {place(frame)}"
    return ""


def _fatal(found: Finding, number: int) -> Verdict:
    called = _signal_name(number)
    evidence = []
    text = f"Fatal signal: {called}"
    if found.fatal:
        evidence.append(f"faulthandler wrote its stacks at {safe(found.fatal)!r}")
        text += _struck_at(found)
        if found.struck is None:
            evidence.append("the stacks do not say which thread the signal hit")
    elif number not in _DUMPED:
        evidence.append(f"no stack: faulthandler writes none at {called}")
    elif found.stack is not None:
        evidence.append("no stack of the signal itself: the one there is was taken when asked")
    else:
        evidence.append(stack_missing(found.producer))
    return Verdict("fatal signal", f"{text}.", evidence)


def _struck_at(found: Finding) -> str:
    stack: ThreadStack | None = found.struck.stack if found.struck is not None else None
    if stack is None or not stack.frames:
        return ""
    newest, mine = stack.frames[0], stack.innermost()
    said = f" in {place(newest)}"
    if mine is not None and mine is not newest:
        said += f", called by the application in {place(mine)}"
    return said


def _by_code(found: Finding, code: int) -> Verdict:
    word = _host_word(found)
    if code <= 1 and word and found.producer.state == "dead":
        # gunicorn's SIGABRT has a handler, which exits with 1; its sync workers go on from there
        # to their own end, with 0.
        verdict = _host_timeout(found, f"exit code {code}")
        if found.fatal:
            verdict.evidence.append(f"faulthandler wrote its stacks at {safe(found.fatal)!r}")
        return verdict
    if code == 0:
        return Verdict("in order", "It ended in order, with exit code 0.")
    evidence = [word] if word else []
    event = next((each for each in reversed(found.unhandled) if _whose(each) == "main"), None)
    if event is not None:
        before = max(0, found.reference_ns - event.time_ns)
        said = f"{age(before)} before its end an exception left its main thread"
        if before <= _JUST:
            text = f"Unhandled exception: {raised(event)} (exit code {code})."
            return Verdict("unhandled exception", text, [f"{said}{raised_at(event)}", *evidence])
        evidence.append(
            f"{said}: {raised(event)}{raised_at(event)}; too long before to be the cause"
        )
    elif not found.unhandled:
        evidence.append("no unhandled exception was recorded before its end")
    if found.producer.state == "dead":
        evidence.append("it did not detach, as a process does that runs its exit handlers")
    if found.producer.label == "gunicorn worker" and code in _GUNICORN_STOPS:
        evidence.append(f"gunicorn stops the service at exit code {code}: {_GUNICORN_STOPS[code]}")
    if found.fatal:
        evidence.append(f"faulthandler wrote its stacks at {safe(found.fatal)!r}")
    return Verdict("exit code", f"It ended by itself, with exit code {code}.", evidence)


def _raised_elsewhere(found: Finding, verdict: Verdict) -> list[str]:
    """Unhandled exceptions shortly before the end that are not the cause by themselves."""
    said = []
    for event in reversed(found.unhandled):
        before = found.reference_ns - event.time_ns
        whose = _whose(event)
        if before > _JUST or (whose == "main" and verdict.kind in KINDS[4:6]):
            continue
        where = {"thread": "a thread", "task": "a task", "main": "the main thread"}.get(whose)
        said.append(
            f"{age(before)} before its end an exception left {where or 'what it was in'}: "
            f"{raised(event)}{raised_at(event)}"
        )
    return said[:2]


def _whose(event: Event) -> str:
    return str(event.args.get("unhandled"))


def raised(event: Event) -> str:
    """An exception event in words: its type and message."""
    message = " ".join(str(event.args.get("message") or "").split())
    if len(message) > _MESSAGE:
        message = f"{message[: _MESSAGE - 1]}…"
    return safe(f"{event.name}: {message}" if message else event.name)


def raised_at(event: Event) -> str:
    """Where an exception event says that it was raised, to go on with; "" if it does not."""
    where = event.args.get("where")
    if not isinstance(where, list) or not where:
        return ""
    return f", raised at {safe(str(where[0])[:_MESSAGE])}"


def place(frame: Frame) -> str:
    """A call in words."""
    return f"`{safe(frame.function)}` ({safe(frame.place)})"


def span_said(found: Finding, span: OpenSpan) -> str:
    """An open span in words, with its age and thread."""
    named = span_named(span.name, span.args, _ARGUMENTS)
    thread = thread_said(span.thread_name, span.thread)
    return f"`{named}` for {age(found.age_ns(span))} in {thread}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
