"""How the tools say things: what `phrases` says, and times, losses, causes.

Runs in the command-line tools. Whatever was recorded is hostile: text from here never holds
a control character, an unfinished escape sequence or a direction override.
"""

from __future__ import annotations

from shmrec.manifest import Producer
from shmrec.phrases import (
    LOST,
    MAIN_THREAD,
    age,
    arguments,
    clock,
    counted,
    moment,
    safe,
    size,
    some,
    span_named,
    thread_said,
    wall,
)

__all__ = [
    "LOST",
    "MAIN_THREAD",
    "age",
    "arguments",
    "cause",
    "clock",
    "counted",
    "moment",
    "safe",
    "size",
    "some",
    "span_named",
    "thread_said",
    "wall",
    "who",
]


def who(producer: Producer) -> str:
    """A producer in a sentence."""
    label = safe(producer.label)
    return f"pid {producer.pid} ({label})" if label else f"pid {producer.pid}"


def cause(producer: Producer) -> tuple[str, str]:
    """Why a producer ended, and how that is known; both say so where nothing is."""
    known = producer.cause
    if known is not None:
        return safe(known.text), safe(known.source)
    # Its end may have been noticed, and dealt with, before this snapshot was taken.
    seen = "this snapshot does not say" if producer.ended_ns else "nobody watched it end"
    return "unknown", seen
