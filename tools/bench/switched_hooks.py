"""A configuration of gunicorn whose hooks a request can switch, for `web_service`.

``/switch/off`` puts gunicorn's own default hooks of a request in their place, ``/switch/on``
ours, and ``/switch/unrecorded`` ours with recording calls that do nothing. So one worker can
be compared with itself: two workers differ by more than the hooks cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shmrec.integrations import gunicorn
from shmrec.integrations.gunicorn import (
    on_exit,
    on_reload,
    on_starting,
    post_fork,
    post_request,
    pre_fork,
    pre_request,
)
from shmrec.integrations.gunicorn_requests import RequestSpans

__all__ = [
    "on_exit",
    "on_reload",
    "on_starting",
    "post_fork",
    "post_request",
    "post_worker_init",
    "pre_fork",
    "pre_request",
]

HOOKS = ("pre_request", "post_request")
PREFIX = "/switch/"
OFF = "off"
ON = "on"
UNRECORDED = "unrecorded"


class Unrecorded:
    """A recorder whose calls do nothing, so that what remains is the hooks' own."""

    attached = True

    def begin(self, name: str, /, **args: Any) -> int:
        return 1

    def end(self, span: int, /, **args: Any) -> None:
        pass


def post_worker_init(worker: Any) -> None:
    """Let requests to `PREFIX` reach the switch, all others the application."""
    application = worker.wsgi
    settings = worker.cfg.settings
    nowhere: Any = Unrecorded()
    spans = {ON: gunicorn._spans, UNRECORDED: RequestSpans(nowhere)}

    def switch(wanted: str) -> None:
        for name in HOOKS:
            setting = settings[name]
            setting.set(setting.default if wanted == OFF else getattr(gunicorn, name))
        gunicorn._spans = spans.get(wanted)

    def switchable(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(PREFIX):
            switch(path.removeprefix(PREFIX))
            start_response("200 OK", [("Content-Length", "0")])
            return []
        answer: Iterable[bytes] = application(environ, start_response)
        return answer

    worker.wsgi = switchable
