"""Whether two values are the same in every part and every type, however deep they are."""

from __future__ import annotations

from typing import Any

__all__ = ["flat"]


def flat(value: Any) -> list[Any]:
    """The value's parts in order, each with its type: 1, 1.0 and True are not the same here.

    Does not call itself, for hostile values are deeper than Python's calls may be.
    """
    found: list[Any] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        kind = type(part)
        if isinstance(part, (list, tuple)):
            found.append((kind, len(part)))
            waiting.extend(reversed(part))
        elif kind is dict:
            found.append((kind, len(part)))
            for key, item in reversed(part.items()):
                waiting += (item, key)
        else:
            found.append((kind, repr(part)))
    return found
