"""What is recorded of an exception: its type, its message, and where it was raised.

Runs in producers. Nothing of an exception is kept, for its frames would be kept with it: that
it was recorded is noted on itself.

Invariants:

- What an exception's own code raises is recorded, not raised.
- Everything is bounded: the message's characters, and the frames, of which the innermost stay.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from shmrec.values import bounded_text

__all__ = ["called", "describe", "mark", "marked"]

_FRAMES_LIMIT: Final = 16
_MARK: Final = "_shmrec_recorded"


def called(kind: type[BaseException]) -> str:
    """The type's full name, without "builtins"."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def describe(exc: BaseException) -> dict[str, Any]:
    """An exception event's arguments: `message`, and `where`, "file:line function" each.

    The innermost frame comes first.
    """
    import traceback

    try:
        message = bounded_text(str(exc))
    except Exception as error:
        message = f"<str raised {type(error).__name__}>"
    where = traceback.StackSummary.extract(
        traceback.walk_tb(exc.__traceback__), limit=-_FRAMES_LIMIT, lookup_lines=False
    )
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in where]
    return {"message": message, "where": frames[::-1]}


def mark(exc: BaseException, recorder: int) -> None:
    """Note on an exception that this recorder, a number, has recorded it."""
    # No other way lasts as long as the exception: builtin ones have no weak references, and
    # the next one of a loop has the same address. A plain number can be pickled with it.
    with contextlib.suppress(Exception):
        BaseException.__setattr__(exc, _MARK, recorder)


def marked(exc: BaseException, recorder: int) -> bool:
    """Whether that recorder was the last one to record the exception."""
    try:
        return bool(BaseException.__getattribute__(exc, _MARK) == recorder)
    except Exception:
        return False
