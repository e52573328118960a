"""Two hooks made one, with the arity that gunicorn insists on.

Runs in the master, while a configuration is read. Ours goes first, so that theirs is recorded,
but last where something ends. What theirs raises reaches gunicorn as if ours were not there;
ours raises nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final

__all__ = ["add"]

_MARK: Final = "_shmrec_hook"
_LAST: Final = ("on_exit", "worker_abort")
_TWO_ARGUMENTS: Final = ("pre_fork", "post_fork", "pre_request")

Hook = Callable[..., Any]


def add(
    namespace: MutableMapping[str, Any], name: str, ours: Hook, validator: Callable[[Any], Any]
) -> None:
    """Put our hook into a configuration's globals, once, beside the one that may be there.

    `validator` is gunicorn's own: it makes a function of an import string, and one of four
    arguments of every `post_request`.
    """
    theirs = namespace.get(name)
    if theirs is None:
        namespace[name] = ours
        return
    if theirs is ours or getattr(theirs, _MARK, False):
        return
    try:
        theirs = validator(theirs)
    except Exception:
        return  # gunicorn is about to refuse it, in words of its own.
    hook = _chained(name, ours, theirs)
    setattr(hook, _MARK, True)
    namespace[name] = hook


def _chained(name: str, ours: Hook, theirs: Hook) -> Hook:
    if name == "post_request":

        def request_over(worker: Any, req: Any, environ: Any, resp: Any) -> None:
            # The application's, not what theirs may raise.
            error = sys.exc_info()[1]
            try:
                theirs(worker, req, environ, resp)
            finally:
                ours(worker, req, environ, resp, error=error)

        return request_over
    if name in _LAST:

        def over(ending: Any) -> None:
            try:
                theirs(ending)
            finally:
                ours(ending)

        return over
    if name not in _TWO_ARGUMENTS:

        def one(server: Any) -> None:
            ours(server)
            theirs(server)

        return one

    def both(server: Any, other: Any) -> None:
        ours(server, other)
        theirs(server, other)

    return both
