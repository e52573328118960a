"""werkzeug's test application, as published, with views that fail; as WSGI and as ASGI (`asgi`).

Runs in gunicorn's workers. A view fails in a function of its own, which a report is to name.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

from werkzeug.testapp import test_app

from tests.integrations.asgi_lifespan import live

PATIENCE_SECONDS = 60.0
_GROWTH = 1 << 20


def read_nowhere() -> None:
    ctypes.string_at(0)


def give_up() -> None:
    os.abort()


def hold_the_gil() -> None:
    # A loop in C that neither lets the GIL go nor looks for signals, and never ends.
    deque(count(), maxlen=0)


def loop_for_long() -> None:
    say_that_it_is_in()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        pass


def sleep_for_long() -> None:
    say_that_it_is_in()
    time.sleep(PATIENCE_SECONDS)


def leave() -> None:
    os._exit(3)


def fail_in_a_thread() -> None:
    def fails() -> None:
        raise ValueError("nobody handles this")

    thread = threading.Thread(target=fails, name="helper")
    thread.start()
    thread.join()
    wait_to_be_let_out()


def take_all_memory() -> None:
    # Once it has been put into a cgroup that has too little.
    wait_to_be_let_out()
    kept = []
    while True:
        kept.append(os.urandom(_GROWTH))


def say_that_it_is_in() -> Path:
    gates = Path(os.environ["GATES"])
    (gates / "in-view").touch()
    return gates


def wait_to_be_let_out() -> None:
    gates = say_that_it_is_in()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (gates / "out-view").exists() and time.monotonic() < deadline:
        time.sleep(0.005)


VIEWS: dict[str, Callable[[], None]] = {
    "/segv": read_nowhere,
    "/abort": give_up,
    "/gil": hold_the_gil,
    "/loop": loop_for_long,
    "/sleep": sleep_for_long,
    "/leave": leave,
    "/thread": fail_in_a_thread,
    "/memory": take_all_memory,
    "/wait": wait_to_be_let_out,
}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    view = VIEWS.get(environ["PATH_INFO"])
    if view is not None:
        view()
    return test_app(environ, start_response)


async def asgi(
    scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    if scope["path"] == "/await":
        say_that_it_is_in()
        await asyncio.sleep(PATIENCE_SECONDS)
    view = VIEWS.get(scope["path"])
    if view is not None:
        view()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
