"""The values of a snapshot's frames: which fields they carry, and checking what was read.

Runs in whoever writes or reads a snapshot; `snapshot_file` says what a file is made of.

Invariant: whatever is in a file is hostile until checked here: counts before allocation, types
before use. A field that is not known is skipped, so that later versions may add some.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from shmrec import layout
from shmrec.manifest import FACTS, Cause, Header, Producer, Stack

__all__ = [
    "HEADER_KEYS",
    "PRODUCER_KEYS",
    "STACK_KEYS",
    "VALUE_ERRORS",
    "fill",
    "producer_of",
    "stack_of",
    "unpack",
]

_ITEMS_LIMIT: Final = 1 << 16
VALUE_ERRORS: Final = (ValueError, TypeError, LookupError, msgpack.UnpackException)
"""What the functions here raise for a value that makes no sense."""

HEADER_KEYS: Final = tuple(Header.__dataclass_fields__)
PRODUCER_KEYS: Final = tuple(
    name
    for name in Producer.__dataclass_fields__
    if name
    not in ("cause", "events", "oldest_ns", "newest_ns", "open_spans", "spans_missing", "stacks")
)
STACK_KEYS: Final = tuple(Stack.__dataclass_fields__)
_FACTS_LIMIT: Final = 600


def unpack(packed: bytes) -> Any:
    """A frame's value."""
    return msgpack.unpackb(
        packed,
        max_array_len=_ITEMS_LIMIT,
        max_map_len=_ITEMS_LIMIT,
        strict_map_key=False,
        unicode_errors="replace",
    )


def fill(target: Any, value: Any, keys: tuple[str, ...]) -> None:
    """Take over the known keys whose values have the type of the default."""
    if type(value) is not dict:
        raise ValueError(f"its fields are {type(value).__name__}, not a map")
    for key in keys:
        if key in value:
            if type(value[key]) is not type(getattr(target, key)):
                raise ValueError(f"{key} is {type(value[key]).__name__}")
            setattr(target, key, value[key])


def stack_of(value: Any) -> Stack:
    """The dump that a STACK frame carries."""
    raw = Stack("", 0, "")
    if type(value) is not dict or any(
        type(value.get(key)) is not type(getattr(raw, key)) for key in STACK_KEYS
    ):
        raise ValueError("a stack's fields have wrong types")
    if len(value["text"]) > layout.STACK_SIZE:
        raise ValueError("a stack is larger than its area")
    idents = {
        ident: thread
        for ident, thread in value["idents"].items()
        if type(ident) is type(thread) is int
    }
    return Stack(**{key: value[key] for key in STACK_KEYS} | {"idents": idents})


def _facts(rows: list[Any]) -> list[list[Any]]:
    kinds = [int] * (len(FACTS) - 1) + [str]
    rows = rows[-_FACTS_LIMIT:]
    return [row for row in rows if type(row) is list and list(map(type, row)) == kinds]


def producer_of(value: Any) -> Producer:
    """The producer that a PRODUCER frame carries."""
    producer = Producer()
    fill(producer, value, PRODUCER_KEYS)
    producer.losses = {
        str(cause): count for cause, count in producer.losses.items() if type(count) is int
    }
    producer.damage = [str(note) for note in producer.damage]
    producer.facts = _facts(producer.facts)
    cause = value.get("cause")
    if isinstance(cause, dict):
        signal, code = cause.get("signal"), cause.get("exit_code")
        producer.cause = Cause(
            str(cause.get("text", "unknown")),
            str(cause.get("source", "")),
            signal if isinstance(signal, int) else None,
            code if isinstance(code, int) else None,
        )
    return producer
