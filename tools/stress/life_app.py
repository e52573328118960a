"""What gunicorn serves in the trial "life": an application that numbers what it answers.

Runs in gunicorn's workers. The file for what is acknowledged is in ``$LIFE_ACCOUNTS``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import shmrec
from tools.stress.numbered import Account

_account = Account(os.environ.get("LIFE_ACCOUNTS", os.devnull), shmrec.instant)
_lock = threading.Lock()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The worker's pid."""
    # One at a time, so that numbers are recorded in their order.
    with shmrec.span("work"), _lock:
        _account.record(2)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
