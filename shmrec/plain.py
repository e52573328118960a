"""Values and events as JSON has them: what `shmrec-dump events --json` and the exports print.

Runs in whoever prints JSON. Keys of an event may be added, never taken away. Everything is ASCII,
one line an object, and valid JSON whatever was recorded: bytes become ``{"base64": ...}``,
numbers that JSON lacks become their text, depth is bounded.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any, Final, Protocol

from shmrec.decoder import Event
from shmrec.events import BEGIN, END
from shmrec.phrases import wall

__all__ = ["Clock", "doubled", "dumps", "event_object", "plain", "text"]

_DEPTH: Final = 32
_AS_THEY_ARE: Final = frozenset((int, bool, type(None)))
_WHOLE: Final = (1 << 53) - 1
_encode: Final = json.JSONEncoder(allow_nan=False).encode


def dumps(value: Any) -> str:
    """One line of JSON."""
    return _encode(plain(value))


def text(value: object) -> str:
    """The value as a text that UTF-8 has.

    Lone surrogates (undecodable file names) are valid JSON escapes, but not everywhere.
    """
    said = str(value)
    if said.isascii():
        return said
    return said.encode("utf-8", "backslashreplace").decode("utf-8")


def doubled(value: Any) -> Any:
    """What `plain` made, for readers whose numbers are doubles: larger ones become texts."""
    kind = type(value)
    if kind is int:
        return value if -_WHOLE <= value <= _WHOLE else str(value)
    if kind is dict:
        return {key: doubled(item) for key, item in value.items()}
    if kind is list:
        return [doubled(item) for item in value]
    return value


def plain(value: Any, depth: int = 0) -> Any:
    """The value made of what JSON has."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is str:
        return text(value)
    if kind is float:
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if depth >= _DEPTH:
        return "…"
    if kind is dict:
        return {
            text(key): (item if type(item) in _AS_THEY_ARE else plain(item, depth + 1))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    return str(value)


class Clock(Protocol):
    """What tells an event's time by the wall clock: a snapshot, or a recording that goes on."""

    def wall_ns(self, time_ns: int) -> int: ...


def event_object(clock: Clock, event: Event) -> dict[str, Any]:
    """One event. `span` is null where the kind has none."""
    found: dict[str, Any] = {
        "time_ns": event.time_ns,
        "wall": wall(clock.wall_ns(event.time_ns)),
        "pid": event.pid,
        "label": event.label,
        "thread": event.thread,
        "thread_name": event.thread_name,
        "kind": event.kind,
        "name": event.name,
        "span": event.span if event.kind in (BEGIN.name, END.name) else None,
        "args": event.args,
        "generation": event.generation,
    }
    if event.duration_ns is not None:
        found["duration_ns"] = event.duration_ns
    if event.kind == "counter":
        found["value"] = event.value
    return found
