"""How the tools say things: what `phrases` says, and times, losses, causes.

Runs in the command-line tools. Whatever was recorded is hostile: text from here never holds
a control character, an unfinished escape sequence or a direction override.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from shmrec.manifest import Producer
from shmrec.phrases import (
    LOST,
    MAIN_THREAD,
    age,
    arguments,
    counted,
    safe,
    size,
    some,
    span_named,
    thread_said,
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

_SECOND: Final = 1_000_000_000


@lru_cache(maxsize=64)
def _calendar(seconds: int) -> tuple[str, str] | None:
    """The date and the time of day in UTC; None for what no calendar holds."""
    try:
        shown = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None
    return shown.date().isoformat(), shown.time().isoformat("seconds")


def wall(wall_ns: int) -> str | None:
    """ISO 8601 in UTC with microseconds; None for what no calendar holds."""
    found = _calendar(wall_ns // _SECOND)
    if found is None:
        return None
    return f"{found[0]}T{found[1]}.{wall_ns % _SECOND // 1_000:06}Z"


def moment(wall_ns: int) -> str:
    """A date and time of day in UTC, to the second."""
    found = _calendar(wall_ns // _SECOND)
    return f"{found[0]} {found[1]} UTC" if found is not None else "at an unknown time"


def clock(wall_ns: int) -> str:
    """A time of day in UTC with microseconds, as ``--since`` and ``--until`` take it."""
    found = _calendar(wall_ns // _SECOND)
    return f"{found[1]}.{wall_ns % _SECOND // 1_000:06}" if found is not None else "--:--:--.------"


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
