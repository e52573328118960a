"""An application whose work gunicorn's dirty workers do, for tests: from gunicorn 25 on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.dirty import get_dirty_client
from gunicorn.dirty.app import DirtyApp

import shmrec


class Task(DirtyApp):
    """Runs in a dirty worker."""

    def work(self, what: str) -> str:
        with shmrec.span("dirty work", what=what):
            if what == "/die":
                os.kill(os.getpid(), signal.SIGKILL)
            return what


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Runs in an ordinary worker."""
    try:
        get_dirty_client().execute(f"{__name__}:Task", "work", environ["PATH_INFO"])
        status = "200 OK"
    except Exception:
        status = "502 Died"
    start_response(status, [("Content-Length", "0")])
    return []
