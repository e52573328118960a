"""Anything a program may pass as an argument, brought into a bounded msgpack form.

Runs in producers, before the critical section, because ``repr`` may run any code. Values of
msgpack's own types stay as they are while they are small; what is longer is cut and marked
with an ellipsis, what msgpack lacks becomes its ``repr``, and what raises becomes a text that
says so. The result is always of exact builtin types and packs to a bounded size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgpack

from shmrec.events import (
    ARGUMENTS_LIMIT,
    DEPTH_LIMIT,
    ITEMS_LIMIT,
    KEY_LIMIT,
    NAME_LIMIT,
    NODES_LIMIT,
    TEXT_LIMIT,
)

__all__ = ["bounded_arguments", "bounded_text", "error_name", "name_text", "pack", "packed_value"]

REPR_LIMIT: Final = NAME_LIMIT

# Only exact builtin types: no default, no user code, no surprise.
pack: Callable[[Any], bytes] = msgpack.Packer(strict_types=True).pack

_MORE: Final = "…"
_CONTAINERS: Final[tuple[Any, ...]] = (dict, list, tuple, set, frozenset, deque)
_INT_MAX: Final = (1 << 64) - 1
_INT_MIN: Final = -(1 << 63)


def bounded_text(text: str, limit: int = TEXT_LIMIT) -> str:
    """An exact `str` of at most `limit` characters that UTF-8 can encode."""
    cut = str.__getitem__(text, slice(0, limit))
    if str.__len__(text) > limit:
        cut = cut[: limit - 1] + _MORE
    if not cut.isascii():
        cut = cut.encode("utf-8", "backslashreplace").decode("utf-8")
    return cut


def _type_name(value: object) -> str:
    return _type_name_of(type(value))


def _type_name_of(kind: type) -> str:
    try:
        return bounded_text(kind.__name__, REPR_LIMIT)
    except Exception:
        return "object"


def _represent(value: object) -> str:
    try:
        return bounded_text(repr(value), REPR_LIMIT)
    except Exception as error:
        return f"<{_type_name(value)} whose repr raised {_type_name(error)}>"


def _integer(value: int) -> int | str:
    if _INT_MIN <= value <= _INT_MAX:
        return value
    # repr of a huge int is quadratic, and refused by the interpreter past 4,300 digits.
    return f"<int of {int.bit_length(value)} bits>"


class _Bounding:
    """One argument's conversion, with the nodes it may still spend."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def value(self, value: object, depth: int) -> Any:
        self.nodes -= 1
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return bounded_text(value)
        if isinstance(value, int):
            return _integer(int.__index__(value))
        if isinstance(value, float):
            return float.__pos__(value)
        kind = type(value)
        if kind is bytes or kind is bytearray:
            return bytes(value[:TEXT_LIMIT])  # type: ignore[index]
        for container in _CONTAINERS:
            # Subclasses too: the repr of a large one is as long as itself.
            if isinstance(value, container):
                count: int = container.__len__(value)
                if depth >= DEPTH_LIMIT or self.nodes <= 0:
                    return f"<{container.__name__} of {count}>"
                if container is dict:
                    return self.mapping(value, depth + 1)
                return self.sequence(container.__iter__(value), count, depth + 1)
        return _represent(value)

    def sequence(self, items: Any, count: int, depth: int) -> list[Any]:
        result: list[Any] = []
        for item in items:
            if len(result) >= ITEMS_LIMIT or self.nodes <= 0:
                result.append(f"{_MORE} {count - len(result)} more")
                break
            result.append(self.value(item, depth))
        return result

    def mapping(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in dict.items(value):
            if len(result) >= ITEMS_LIMIT or self.nodes <= 0:
                result[_MORE] = f"{dict.__len__(value) - len(result)} more"
                break
            name = bounded_text(key if isinstance(key, str) else _represent(key), KEY_LIMIT)
            result[name] = self.value(item, depth)
        return result


def packed_value(value: object) -> bytes:
    """One value, packed: a scalar in bounded form, or the text of what is none."""
    try:
        result = _Bounding(1).value(value, DEPTH_LIMIT)
    except Exception as error:
        result = f"<changed while being recorded: {_type_name(error)}>"
    return pack(result)


def bounded_arguments(arguments: dict[str, Any]) -> bytes:
    """The arguments packed into at most ARGUMENTS_LIMIT bytes, whatever they are.

    Values are spent on in order; when the whole is still too large the texts give way to
    their first characters, and at last to a note of how many arguments there were. Errors of
    the values' own code are recorded, not raised.
    """
    for nodes in (NODES_LIMIT, ITEMS_LIMIT, 0):
        bounding = _Bounding(nodes)
        try:
            result = bounding.mapping(arguments, 0)
        except Exception as error:
            result = {_MORE: f"<changed while being recorded: {_type_name(error)}>"}
        if nodes == 0:
            result = {_MORE: f"{len(arguments)} arguments too large to record"}
        packed = pack(result)
        if len(packed) <= ARGUMENTS_LIMIT:
            break
    return packed


def name_text(name: object) -> str:
    """A name that is not a `str`, as one; raises what its ``repr`` raises."""
    if isinstance(name, str):
        return str.__str__(name)
    return bounded_text(repr(name), NAME_LIMIT)


def error_name(kind: type[BaseException]) -> str:
    """How an exception's class is called in the end of the span that it passed through."""
    return _type_name_of(kind)
