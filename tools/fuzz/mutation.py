"""Changes inputs that are msgpack by their structure: values, not bytes.

What libFuzzer does to bytes mostly breaks msgpack at once. Half of the time one value of the
input is taken apart, a part of it exchanged, doubled, dropped or put elsewhere, and packed again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import msgpack

from tools.fuzz.sealing import values

__all__ = ["by_structure"]

Mutate = Callable[[bytes, int], bytes]

_AS_IT_IS: Final = "surrogateescape"
_NUMBERS: Final = (0, 1, -1, 127, 128, 255, 256, 1 << 16, 1 << 31, 1 << 32, 1 << 48, 1 << 62)
_LARGEST: Final = ((1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63))
_OTHERS: Final[tuple[Any, ...]] = (
    *_NUMBERS,
    *_LARGEST,
    *(None, True, False, 0.0, -0.5, float("inf"), float("nan"), 1e308),
    *("", "a", "request", "\x1b[31m", "\u202e", "\ud800", "x" * 300, b"", b"\xff", b"x" * 40),
    *([], {}, [[]], {"a": {}}, {1: 2}, {b"k": 1}, {None: 1}, msgpack.ExtType(5, b"x")),
    msgpack.Timestamp(1, 2),
)


def by_structure(data: bytes, longest: int, seed: int, begins: int, mutate: Mutate) -> bytes:
    """Another input like `data`, of at most `longest` bytes; msgpack from `begins` on."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        return mutate(data, longest)
    start, found = data[:begins], list(values(data[begins:]))
    if not found:
        return mutate(data, longest)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(found))
        _change(found, at, chance)
        if not found:
            break
    made = start + b"".join(found)
    return made if len(made) <= longest else mutate(data, longest)


def _change(found: list[bytes], at: int, chance: random.Random) -> None:
    how = chance.randrange(6)
    if how == 0:
        del found[at]
    elif how == 1:
        found.insert(chance.randrange(len(found) + 1), found[at])
    elif how == 2:
        other = chance.randrange(len(found))
        found[at], found[other] = found[other], found[at]
    else:
        try:
            value = msgpack.unpackb(found[at], strict_map_key=False, unicode_errors=_AS_IT_IS)
            found[at] = msgpack.packb(_other(value, chance, 0), unicode_errors=_AS_IT_IS)
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
            # What cannot be taken apart, or put together again, stays.
            return


def _other(value: Any, chance: random.Random, depth: int) -> Any:
    """The value with one part exchanged; at any depth the parts are equally likely."""
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        how = chance.randrange(8)
        if how == 0:
            return value[:at] + value[at + 1 :]
        if how == 1:
            return [*value[:at], chance.choice(_OTHERS), *value[at:]]
        if how == 2:
            return value + value[at:]
        return [*value[:at], _other(value[at], chance, depth + 1), *value[at + 1 :]]
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        how = chance.randrange(8)
        if how == 0:
            return {each: item for each, item in value.items() if each != key}
        if how == 1:
            return {**value, chance.choice(("a", "path", 7, b"k", None, True)): value[key]}
        return {**value, key: _other(value[key], chance, depth + 1)}
    if type(value) is int and chance.random() < 0.6:
        return value + chance.choice((1, -1, 256, 1 << 31, -value, value))
    if isinstance(value, (str, bytes)) and value and chance.random() < 0.4:
        at = chance.randrange(len(value))
        return value[at:] if chance.random() < 0.5 else value[:at] * 2
    return chance.choice(_OTHERS)
