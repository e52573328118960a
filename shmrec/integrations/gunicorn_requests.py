"""HTTP requests as spans: one from `pre_request` to `post_request`, never mixed.

Runs in gunicorn's workers. Method and path are recorded, nothing else of a request unless it
was asked for by name: no query string, no header, no body.

Invariants:

- A span is found by its request object's identity: threads, greenlets and tasks overlap, and
  the ASGI worker's request objects allow neither attributes nor weak references.
- A request that never comes to its `post_request` costs one entry until its address is used
  again, and there are never more than `_LIMIT` of these.
- A status is one that was sent, or that gunicorn is known to send; otherwise there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final

from shmrec.recorder import Recorder

__all__ = ["FIELDS", "RequestSpans", "check_fields"]

FIELDS: Final = ("query", "remote_addr", "scheme")
"""What may be recorded of a request besides; and ``header:NAME``."""

_HEADER: Final = "header:"
_LIMIT: Final = 10_000

_Field = Callable[[Any], Any]


def check_fields(fields: Iterable[str]) -> tuple[str, ...]:
    """The fields, or `ValueError` if one is not known."""
    if isinstance(fields, str):
        raise ValueError(f"fields must be a list of names, not {fields!r}")
    wanted = tuple(fields)
    for name in wanted:
        if name not in FIELDS and not (name.startswith(_HEADER) and name != _HEADER):
            raise ValueError(
                f"{name!r} cannot be recorded of a request: use {', '.join(FIELDS)} or header:NAME"
            )
    return wanted


class _Told:
    """What an ASGI application tells of a request on its way."""

    __slots__ = ("error", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        self.error: str | None = None


_current: ContextVar[_Told | None] = ContextVar("shmrec_request", default=None)


class RequestSpans:
    """The requests that a worker is in the middle of."""

    def __init__(self, recorder: Recorder, fields: Iterable[str] = ()) -> None:
        self._begin = recorder.begin
        self._end = recorder.end
        self._fields = {name: _field(name) for name in fields}
        self._open: dict[int, int] = {}
        self._told: dict[int, _Told] = {}
        self._asgi = False

    # Between two requests the processor has forgotten this code: what counts is how much of it
    # a plain request touches, more than what any of it does.

    def begin(self, request: Any) -> None:
        """A request begins."""
        key = id(request)
        opened = self._open
        if key in opened:
            # Its address had another request, which has ended without a word.
            self._abandon(key)
        elif len(opened) >= _LIMIT:
            self._abandon(next(iter(opened)))
        if self._fields:
            extra = self._extra(request)
            span = self._begin("request", method=request.method, path=request.path, **extra)
        else:
            span = self._begin("request", method=request.method, path=request.path)
        if span:
            opened[key] = span
            if self._asgi:
                self._told[key] = told = _Told()
                _current.set(told)

    def _extra(self, request: Any) -> dict[str, Any]:
        found = {name: field(request) for name, field in self._fields.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _abandon(self, key: int) -> None:
        self._told.pop(key, None)
        span = self._open.pop(key, 0)
        if span:
            self._end(span, abandoned=True)

    def end(self, request: Any, response: Any, error: BaseException | None) -> None:
        """A request ends: with a response, with the exception in flight, or with neither."""
        key = id(request)
        span = self._open.pop(key, 0)
        if not span:
            return
        if error is None and response is not None and not self._asgi:
            try:
                status = int(response.status[:3])
            except (TypeError, ValueError):
                pass
            else:
                self._end(span, status=status)
                return
        self._end(span, **self._ending(key, response, error))

    def _ending(self, key: int, response: Any, error: BaseException | None) -> dict[str, int | str]:
        """How any other request has ended."""
        if isinstance(error, StopIteration):
            # How gunicorn's loops end a connection, after an error or without one.
            error = error.__context__
        told = self._told.pop(key, None)
        status = told.status if told is not None else None
        if self._asgi:
            pass
        elif response is not None and (error is None or response.headers_sent):
            status = _number(response.status)
        elif _answered_500(error):
            status = 500
        args: dict[str, int | str] = {}
        if status is not None:
            args["status"] = status
        if error is not None:
            args["error"] = type(error).__name__
        elif told is not None and told.error is not None:
            args["error"] = told.error
        return args

    def watch(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """The ASGI application, its responses' status noted.

        gunicorn makes a response object for `post_request` only if it keeps an access log.
        """
        self._asgi = True

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            told = _current.get() if scope["type"] == "http" else None
            if told is None:
                await app(scope, receive, send)
                return

            async def noting(message: Any) -> None:
                if message["type"] == "http.response.start":
                    told.status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noting)
            except Exception as error:
                told.error = type(error).__name__
                if told.status is None and _answered_500(error):
                    told.status = 500
                raise
            if told.status is None:
                told.status = 500

        return watched


def _answered_500(error: BaseException | None) -> bool:
    """Whether gunicorn answers an exception of the application's with status 500.

    It closes the connection at an OSError, and has other answers for its own exceptions.
    """
    return (
        isinstance(error, Exception)
        and not isinstance(error, OSError)
        and not type(error).__module__.startswith("gunicorn.")
    )


def _number(status: Any) -> int | None:
    """200 for "200 OK"."""
    if isinstance(status, str):
        status = status[:3]
    try:
        return int(status)
    except (TypeError, ValueError):
        return None


def _field(name: str) -> _Field:
    if not name.startswith(_HEADER):
        return _remote_addr if name == "remote_addr" else lambda request: getattr(request, name)
    wanted = name.removeprefix(_HEADER).upper()

    def header(request: Any) -> Any:
        return next((value for key, value in request.headers if key.upper() == wanted), None)

    return header


def _remote_addr(request: Any) -> Any:
    address = getattr(request, "remote_addr", None)
    return address[0] if isinstance(address, tuple) else address or None
