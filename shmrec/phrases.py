"""How things are said: ages, times, sizes, numbers, lists, arguments.

Runs in whoever reads a snapshot and speaks of it. Whatever was recorded is hostile: text from
here never holds a control character, an unfinished escape sequence or a direction override.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

__all__ = [
    "LOST",
    "MAIN_THREAD",
    "age",
    "arguments",
    "clock",
    "counted",
    "moment",
    "safe",
    "size",
    "some",
    "span_named",
    "thread_said",
    "wall",
]

MAIN_THREAD: Final = "MainThread"
"""What `threading` calls the thread that a process began with."""


_SECOND: Final = 1_000_000_000
_BARE: Final = re.compile(r"[^\s\"'=,;{}\[\]\\]+\Z")
_DEPTH: Final = 6

LOST: Final = {
    "overwritten": "overwritten by newer ones, as a full ring does",
    "reentrant": "made inside another record that never finished",
    "oversized": "larger than a batch",
    "unencodable": "of which no bounded form could be made",
    "interrupted": "cut off by a signal handler that raised",
    "closed": "made after the recording had ended",
    "unmatched": "that would end spans which were not open",
    "no_memory": "for which there was no memory",
}
"""What each cause of a loss means: "N events ...". """


def safe(text: object) -> str:
    """The text with everything that does not print shown as an escape."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in shown
    )


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


def age(ns: int) -> str:
    """A duration as people say it: 250 µs, 12 ms, 4.2 s, 3 min 12 s, 5 h 3 min."""
    if ns < 0:
        return f"-{age(-ns)}"
    seconds = ns / _SECOND
    if ns < 1_000:
        return f"{ns} ns"
    if ns < 999_500:
        return f"{ns / 1e3:.0f} µs"
    if ns < 9_950_000:
        return f"{ns / 1e6:.1f} ms"
    if ns < 999_500_000:
        return f"{ns / 1e6:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


def size(count: int) -> str:
    """Bytes in the largest unit of 1024 that leaves a number."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where that is right."""
    if number == 1:
        return f"{number} {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


def some(words: Iterable[str], most: int = 8) -> str:
    """A list for a sentence, cut where it gets long."""
    found = list(words)
    if len(found) <= most:
        return ", ".join(found)
    return f"{', '.join(found[:most])} and {len(found) - most} more"


def arguments(args: Mapping[str, Any], limit: int = 0) -> str:
    """``key=value`` for each argument; with a `limit`, cut after that many characters."""
    shown = " ".join(f"{safe(key)}={_value(value, 0)}" for key, value in args.items())
    return f"{shown[: limit - 1]}…" if 0 < limit < len(shown) else shown


def span_named(name: str, args: Mapping[str, Any], limit: int = 0, gap: str = " ") -> str:
    """A span by its name and arguments, the latter as `arguments` has them."""
    return f"{safe(name)}{gap}{arguments(args, limit)}".rstrip()


def thread_said(name: str, number: int, ident: int = 0) -> str:
    """A thread by its name, else by its number, else by what Python calls it."""
    if name or number:
        return safe(name) or f"thread {number}"
    return f"the thread with ident {ident:#x}" if ident else "a thread"


def _value(value: Any, depth: int) -> str:
    if isinstance(value, str):
        if _BARE.match(value) and value.isprintable():
            return value
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{safe(quoted)}"'
    if isinstance(value, (list, tuple, dict)) and depth >= _DEPTH:
        return "…"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item, depth + 1) for item in value)}]"
    if isinstance(value, dict):
        inside = (f"{safe(key)}: {_value(item, depth + 1)}" for key, item in value.items())
        return f"{{{', '.join(inside)}}}"
    return safe(value)
