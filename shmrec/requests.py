"""Request slots: how any process asks the recording's collector for something.

Both halves side by side. `ask` runs in producers and tools, `pending` and `answer` in the
collector. A slot is claimed under the segment's lock, by a ticket that is never used twice;
it is free again when its answer has been read, or its requester has gone. The semaphore only
wakes the collector; without it a request waits for the next tick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from shmrec import fence, process
from shmrec.errors import (
    CollectorError,
    RequestFailedError,
    SnapshotActiveError,
    SuppressedError,
)
from shmrec.layout import ANSWER_BYTES, REASON_BYTES, REQUEST, REQUESTS, WORD, Status, Verb
from shmrec.segment import PLAUSIBLE, Segment
from shmrec.wakeup import wake

__all__ = ["Request", "answer", "ask", "pending", "tell"]

_POLL_FIRST_SECONDS: Final = 0.0002
_POLL_LAST_SECONDS: Final = 0.02
_POLL_SHARE: Final = 1 / 32
"""How long to sleep, as a share of how long the answer has taken already: so much later, at
most, is it seen. Doubling the sleep would see it up to twice as late."""
_LOCK_SECONDS: Final = 2.0
_SILENCE_SECONDS: Final = 2.0


class Request(NamedTuple):
    """A request as the collector sees it, checked. `argument` are the verb's two words.

    `abandoned`: who made it waits for no answer, or is there no more.
    """

    slot: int
    ticket: int
    verb: int
    pid: int
    reason: str
    argument: tuple[int, int]
    abandoned: bool = False


def _words(segment: Segment, slot: int) -> tuple[Any, int]:
    return segment.words, segment.geometry.request(slot) // WORD


def _word(name: str) -> int:
    return REQUEST.word(name)


def _claim(
    segment: Segment,
    verb: int,
    reason: str,
    argument: tuple[int, int],
    timeout: float = _LOCK_SECONDS,
) -> tuple[int, int] | None:
    """A slot and ticket, published; None if all are in use."""
    raw = reason.encode("utf-8", "replace")[:REASON_BYTES]
    with segment.locked(timeout):
        for slot in range(REQUESTS):
            words, base = _words(segment, slot)
            asked = words[base + _word("asked")]
            answered = words[base + _word("answered")]
            if asked != answered:
                continue
            released = words[base + _word("released")]
            requester = words[base + _word("pid")], words[base + _word("start_ticks")]
            if asked != released and process.alive(*requester):
                continue
            words[base + _word("verb")] = verb
            words[base + _word("pid")] = os.getpid()
            words[base + _word("start_ticks")] = process.start_ticks(os.getpid())
            words[base + _word("argument")] = argument[0]
            words[base + _word("argument2")] = argument[1]
            words[base + _word("reason_size")] = len(raw)
            where = REQUEST.bytes_at("reason", base * WORD)
            segment.view[where.start : where.start + len(raw)] = raw
            # A ticket of the clock: unique even where a scribbler reset the words.
            ticket = max((asked & PLAUSIBLE) + 1, time.monotonic_ns())
            words[base + _word("released")] = asked
            fence.release()
            words[base + _word("asked")] = ticket
            return slot, ticket
    return None


def tell(
    segment: Segment,
    wakeup: Any,
    verb: int,
    *,
    reason: str = "",
    argument: tuple[int, int] = (0, 0),
    timeout: float = _LOCK_SECONDS,
) -> bool:
    """Send word that needs no answer; False if every slot is in use.

    `timeout` in seconds is for the segment's lock; raises `LockedError` when it is over.
    """
    claimed = _claim(segment, verb, reason, argument, timeout)
    if claimed is None:
        return False
    slot, ticket = claimed
    words, base = _words(segment, slot)
    words[base + _word("released")] = ticket
    wake(wakeup)
    return True


def ask(
    segment: Segment,
    wakeup: Any,
    verb: int,
    *,
    reason: str = "",
    argument: tuple[int, int] = (0, 0),
    timeout: float,
    sleep: Callable[[float], None] | None = None,
) -> str:
    """Ask and wait for the answer, at most `timeout` seconds, those for the lock among them.

    Raises `SnapshotActiveError` if every slot is in use, `RequestFailedError` with the
    collector's words if it could not, `SuppressedError` if a limit forbade it, `CollectorError`
    if there is no collector, it died, or it does not answer in time.
    """
    if segment.collector() is None:
        raise CollectorError(
            f"recording {segment.name!r} has no collector: start it again with `shmrec-collect "
            f"{segment.name}`, or read the memory as it is with `shmrec-dump recover "
            f"{segment.name}`"
        )
    began = looked = time.monotonic()
    deadline = began + timeout
    claimed = _claim(segment, verb, reason, argument, min(timeout, _LOCK_SECONDS))
    if claimed is None:
        raise SnapshotActiveError(
            f"{REQUESTS} requests to the collector of {segment.name!r} are under way: use the "
            "result of one of those"
        )
    slot, ticket = claimed
    words, base = _words(segment, slot)
    wake(wakeup)
    try:
        while words[base + _word("answered")] != ticket:
            now = time.monotonic()
            if now > looked + 0.5:
                looked = now
                if segment.collector() is None and words[base + _word("answered")] != ticket:
                    raise CollectorError(
                        f"the collector of {segment.name!r} died before it answered: start it "
                        "again, its recording is intact"
                    )
            if now > deadline:
                raise CollectorError(_no_answer(segment, timeout))
            pause = max(_POLL_FIRST_SECONDS, (now - began) * _POLL_SHARE)
            # Looked up now: gevent may have replaced it since.
            (sleep or time.sleep)(min(pause, _POLL_LAST_SECONDS))
        fence.acquire()
        status = words[base + _word("status")]
        size = min(words[base + _word("answer_size")], ANSWER_BYTES)
        where = REQUEST.bytes_at("answer", base * WORD).start
        text = bytes(segment.view[where : where + size]).decode("utf-8", "surrogateescape")
    finally:
        words[base + _word("released")] = ticket
    if status == Status.DONE:
        return text
    # Whoever records should not pay for what a failure is told with.
    from shmrec.phrases import safe

    refused = SuppressedError if status == Status.SUPPRESSED else RequestFailedError
    raise refused(safe(text))


def _no_answer(segment: Segment, timeout: float) -> str:
    silence = (time.monotonic_ns() - (segment.word("heartbeat_ns") & PLAUSIBLE)) / 1e9
    # It says so once a second, but for when it waits for a disk or for somebody's stacks.
    why = (
        f"its last sign of life is {silence:.0f} s old: it is stopped (fg, or kill -CONT, wakes "
        "it), or the disk of its snapshots is slow"
        if silence > _SILENCE_SECONDS
        else "it is at work: wait longer (a longer timeout)"
    )
    return (
        f"the collector of {segment.name!r}, pid {segment.word('collector_pid')}, did not answer "
        f"within {timeout:g} s; {why}"
    )


def pending(segment: Segment) -> list[Request]:
    """The requests that wait for an answer, whoever made them."""
    found = []
    for slot in range(REQUESTS):
        words, base = _words(segment, slot)
        ticket = words[base + _word("asked")]
        if ticket == words[base + _word("answered")]:
            continue
        fence.acquire()
        size = min(words[base + _word("reason_size")], REASON_BYTES)
        where = REQUEST.bytes_at("reason", base * WORD).start
        pid, started = words[base + _word("pid")], words[base + _word("start_ticks")]
        found.append(
            Request(
                slot,
                ticket,
                words[base + _word("verb")],
                pid,
                bytes(segment.view[where : where + size]).decode("utf-8", "replace"),
                (words[base + _word("argument")], words[base + _word("argument2")]),
                words[base + _word("released")] == ticket or not process.alive(pid, started),
            )
        )
    return found


def answer(segment: Segment, request: Request, text: str, status: int = Status.DONE) -> None:
    """Answer one request; `text` is cut to the slot's room."""
    raw = text.encode("utf-8", "surrogateescape")[:ANSWER_BYTES]
    words, base = _words(segment, request.slot)
    where = REQUEST.bytes_at("answer", base * WORD).start
    segment.view[where : where + len(raw)] = raw
    words[base + _word("answer_size")] = len(raw)
    words[base + _word("status")] = status
    fence.release()
    words[base + _word("answered")] = request.ticket  # step: answer


SNAPSHOT_VERBS: Final = (Verb.SNAPSHOT, Verb.TRANSFER)
