"""A small application for gunicorn under test, as WSGI (`app`) and as ASGI (`asgi`).

Runs in gunicorn's workers. ``/gate/NAME/STATUS`` says that it is in by making a file
``in-NAME`` in ``$GATES``, and answers when there is a file ``out-NAME``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import shmrec
from tests.integrations.asgi_lifespan import live

POLL_SECONDS = 0.005
PATIENCE_SECONDS = 60.0


# Loaded by the master when it preloads: a worker of another user may not be allowed to read
# where the interpreter has it, and gunicorn needs it to seed the random numbers.
hashlib.sha512()

shmrec.instant("application imported")


def when_initialised(worker: Any) -> None:
    """A hook that a configuration names by an import string."""
    with open("notes", "a") as file:
        file.write(f"initialised {os.getpid()}\n")


def _gate(name: str) -> tuple[Path, float]:
    gates = Path(os.environ["GATES"])
    (gates / f"in-{name}").touch()
    return gates / f"out-{name}", time.monotonic() + PATIENCE_SECONDS


def _act(path: str) -> None:
    if path == "/fail":
        raise ValueError("failed as asked")
    if path == "/die":
        os.kill(os.getpid(), signal.SIGKILL)
    if path == "/leave":
        os._exit(7)


def _status(path: str) -> int:
    return int(path.split("/")[3]) if path.startswith("/gate/") else 200


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    _act(path)
    if path.startswith("/gate/"):
        name = path.split("/")[2]
        out, deadline = _gate(name)
        with shmrec.span("work", gate=name):
            while not out.exists() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
    body = str(os.getpid()).encode()
    start_response(f"{_status(path)} Told", [("Content-Length", str(len(body)))])
    return [body]


_lost: set[asyncio.Task[None]] = set()


async def _lose() -> None:
    raise ValueError("nobody awaits this")


async def asgi(
    scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    path = scope["path"]
    _act(path)
    if path == "/lose":
        _lost.add(task := asyncio.create_task(_lose(), name="lost"))
        task.add_done_callback(_lost.discard)
    if path.startswith("/gate/"):
        out, deadline = _gate(path.split("/")[2])
        while not out.exists() and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
    body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": _status(path), "headers": headers})
    await send({"type": "http.response.body", "body": body})
