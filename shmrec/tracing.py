"""Functions whose every call is a span: plain, async, and generators of both sorts.

Runs in producers. What a function is, is seen from its code, because `inspect` is heavy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from shmrec._engine import Scope

__all__ = ["traced_with"]

_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80
_ASYNC_GENERATOR: Final = 0x200


def traced_with(span: Callable[..., Scope], function: Any, name: str | None) -> Any:
    """The function, each call of it in a `span` of that name, or of its qualified name."""
    title = name or getattr(function, "__qualname__", repr(function))
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)

    if flags & _COROUTINE:

        async def traced_call(*args: Any, **kwargs: Any) -> Any:
            with span(title):
                return await function(*args, **kwargs)

    elif flags & _ASYNC_GENERATOR:

        async def traced_call(*args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
            with span(title):
                generator = function(*args, **kwargs)
                try:
                    item = await anext(generator)
                    while True:
                        try:
                            sent = yield item
                        except Exception as error:
                            item = await generator.athrow(error)
                        else:
                            item = await generator.asend(sent)
                except StopAsyncIteration:
                    return
                finally:
                    await generator.aclose()

    elif flags & _GENERATOR:

        def traced_call(*args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
            with span(title):
                return (yield from function(*args, **kwargs))

    else:

        def traced_call(*args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
            with span(title):
                return function(*args, **kwargs)

    return functools.wraps(function)(traced_call)
