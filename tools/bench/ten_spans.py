"""httpbin inside ten blocks a request: spans (`recorded`), or blocks that do nothing (`plain`).

Loaded by the workers of the services that `web_service` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from httpbin import app

import shmrec

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Nothing:
    """What stands in for a span where nothing records."""

    __slots__ = ()

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_NOTHING = _Nothing()


def _nothing(name: str, /, **args: Any) -> _Nothing:
    return _NOTHING


def _inside_ten(block: Callable[..., AbstractContextManager[Any]]) -> _Application:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with (
            block("authenticate", user=17),
            block("authorise", role="reader"),
            block("open session", store="memory"),
            block("look up tenant", tenant=4),
            block("choose language", language="en"),
            block("begin transaction", number=1),
            block("query", table="orders", rows=20),
            block("query", table="customers", rows=1),
            block("render", template="order.html"),
            block("compress", level=6),
        ):
            answer: Iterable[bytes] = app(environ, start_response)
            return answer

    return application


recorded = _inside_ten(shmrec.span)
plain = _inside_ten(_nothing)
