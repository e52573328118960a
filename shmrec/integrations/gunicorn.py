"""gunicorn under a flight recorder: the hooks, as a configuration and to be chained with one.

::

    gunicorn -c python:shmrec.integrations.gunicorn app:app

or, at the end of a ``gunicorn.conf.py`` that has settings and hooks of its own::

    from shmrec.integrations.gunicorn import install
    install(globals())

Every worker is recorded, the master too; every request is a span; a worker's abnormal death,
or its timeout, causes a snapshot of them all. The application records with ``shmrec.span`` and
the like, without attaching; of an ASGI one, tasks that fail unseen are recorded by themselves.
``SHMREC_RECORDING`` names the recording, by default one is derived from the application's name;
``SHMREC_DIR`` says where snapshots go.

Works with gunicorn 20.1 to 27: sync, gthread and gevent workers, and gunicorn's own ASGI
worker (from 24). Other worker classes, uvicorn's among them, never call `pre_request`; their
workers are recorded without spans of requests. gunicorn's log level must let errors pass, or
the words by which it tells of timeouts are never said.

Invariants:

- Recording never breaks the service: what goes wrong is one warning in gunicorn's log.
- All state is in this module, because a reload executes a configuration file again.
- This module's globals are read as settings: none but the hooks may bear a setting's name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, MutableMapping
from types import EllipsisType
from typing import Any, Final

from shmrec import layout, stacks
from shmrec.integrations.gunicorn_chain import add
from shmrec.integrations.gunicorn_deaths import DeathFilter
from shmrec.integrations.gunicorn_master import MasterRecording, Settings
from shmrec.integrations.gunicorn_requests import RequestSpans, check_fields
from shmrec.triggers import STACKS, check_texts

__all__ = ["install"]

_WORKER: Final = "gunicorn worker"

_recording: Final = MasterRecording()
_filter: DeathFilter | None = None
_fields: tuple[str, ...] = ()
_spans: RequestSpans | None = None
_warned = False
_timeout = 0.0
"""Seconds that the service gives its workers."""


# In the master.


def on_starting(server: Any) -> None:
    """Start the recording, or join it after USR2."""
    global _filter, _timeout
    _timeout = server.cfg.timeout
    if _recording.kept:
        return
    try:
        _recording.start(server.cfg.proc_name, server.cfg.workers)
    except Exception as error:
        _warn(server.log, f"this service is not recorded: {error}")
        return
    if _filter is None:
        _filter = DeathFilter(_worker_ended, _worker_timed_out)
    _filter.install()
    server.log.info(
        "shmrec: recording %r, `shmrec-dump ps %s` shows it", _recording.name, _recording.name
    )


def on_reload(server: Any) -> None:
    """The logger may have been set up anew; what did not start may start now."""
    global _warned
    _warned = False
    if _filter is not None:
        _filter.install()
    _keep(server)
    on_starting(server)


def pre_fork(server: Any, worker: Any) -> None:
    """A worker is about to be made: a good moment to see that it will be recorded."""
    _keep(server)


def on_exit(server: Any) -> None:
    """All workers have gone: leave, and end the recording."""
    try:
        _recording.stop()
    except Exception as error:
        server.log.warning("shmrec: the recording was not ended in order: %s", error)


def _keep(server: Any) -> None:
    try:
        _recording.keep()
    except Exception as error:
        _warn(server.log, f"the service goes on unrecorded: {error}")


def _warn(log: Any, message: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        log.warning("shmrec: %s", message)


def _worker_ended(pid: int, status: int) -> None:
    how = {"signal": status & 0x7F} if status & 0x7F else {"exit_code": status >> 8}
    if _recording.recorder is not None:
        _recording.recorder.instant("worker ended", pid=pid, **how)
    _recording.tell(pid, status)


def _worker_timed_out(pid: int) -> None:
    if _recording.recorder is not None:
        _recording.recorder.instant("worker timeout", pid=pid)
    # The master logs this before it kills: the request is still open in the snapshot.
    _recording.timed_out(pid, _timeout)


# In the processes that it forks.


def post_fork(server: Any, worker: Any) -> None:
    """Join the recording: still with the master's rights, before gevent patches anything."""
    _join(_WORKER)


def post_worker_init(worker: Any) -> None:
    """The application is loaded; see to it that an ASGI one tells its status, and
    failed tasks.

    Since `post_fork` gunicorn has set up its signals: at SIGABRT, by which it ends a worker that
    does not answer, the stacks come first, then its own handler and `worker_abort`.
    """
    try:
        stacks.renew()
    except Exception as error:
        _warn(worker.log, f"no stacks at SIGABRT: {error}")
    app = getattr(worker, "asgi", None)
    if _spans is not None and app is not None:
        worker.asgi = _spans.watch(app)
        _watch_loop(worker)


def _watch_loop(worker: Any) -> None:
    try:
        # No other worker needs it.
        from shmrec.integrations import asyncio

        assert _recording.recorder is not None
        asyncio.install(worker.loop, recorder=_recording.recorder)
    except Exception as error:
        _warn(worker.log, f"its event loop's failures are not recorded: {error!r}")


def worker_abort(worker: Any) -> None:
    """gunicorn ends the worker because it does not answer: at SIGABRT, before it exits.

    Its requests would be ended on the way out, and it would leave in order.
    """
    recorder = _recording.recorder
    if recorder is not None:
        recorder.abandon()


def on_dirty_starting(arbiter: Any) -> None:
    """The arbiter of dirty workers, from gunicorn 25 on, is a child of the master."""
    _join("gunicorn dirty arbiter")


def dirty_worker_init(worker: Any) -> None:
    """In a dirty worker at last: `dirty_post_fork` is called in its arbiter."""
    _join("gunicorn dirty worker")


def _join(label: str) -> None:
    global _spans
    recorder = _recording.recorder
    if recorder is None:
        return
    try:
        recorder.relabel(label)
        _spans = RequestSpans(recorder, _fields) if recorder.attached else None
    except Exception as error:
        print(f"shmrec: process {os.getpid()} is not recorded: {error}", file=sys.stderr)


def pre_request(worker: Any, req: Any) -> None:
    """A request has been read."""
    if _spans is not None:
        try:
            _spans.begin(req)
        except Exception as error:
            _warn(worker.log, f"a request was not recorded: {error!r}")


def post_request(
    worker: Any,
    req: Any,
    environ: Any,
    resp: Any,
    *,
    error: BaseException | EllipsisType | None = ...,
) -> None:
    """A request is over, with the exception that is in flight unless `error` says which."""
    if _spans is not None:
        try:
            _spans.end(req, resp, sys.exception() if error is ... else error)
        except Exception as failure:
            _warn(worker.log, f"a request was not recorded: {failure!r}")


# With a configuration of its own.


def install(
    namespace: MutableMapping[str, Any],
    *,
    recording: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    size: int = layout.DEFAULT_RING_SIZE,
    period: float = 10.0,
    producers: int | None = None,
    path: str | os.PathLike[str] | None = None,
    fields: Iterable[str] = (),
    linger: float = 5.0,
    triggers: Iterable[str] = (),
    stacks: str = STACKS[0],
) -> None:
    """Add the hooks to a configuration's `globals()`, before or after its own ones.

    `recording` names the recording, to be started or joined; `directory` is where snapshots
    go; `size` in bytes per process and `period` in seconds bound what is kept; `producers` is
    how many processes there may be at once, by default as many as the workers need; `path`
    keeps the memory in a file. `fields` are recorded of each request besides method and path:
    ``query``, ``remote_addr``, ``scheme``, ``header:NAME``. The collector ends `linger`
    seconds after the last process. `triggers` are what else causes a snapshot, texts such as
    ``"slow_span request 5s"`` (see `shmrec.triggers`); `stacks` says whose stacks are taken for a
    snapshot that nobody asked for: those of the "suspects", of "all", or of "none". On a reload
    `fields` apply to the new workers; the rest applies at the next start. Raises `ValueError` for
    a field or a trigger that it does not know.
    """
    global _fields
    from gunicorn.config import KNOWN_SETTINGS

    _fields = check_fields(fields)
    texts = check_texts(triggers, stacks)
    _recording.settings = Settings(
        recording, directory, size, period, producers, path, linger, texts, stacks
    )
    validators = {setting.name: setting.validator for setting in KNOWN_SETTINGS}
    for name, ours in _HOOKS.items():
        validator = validators.get(name)
        if validator is not None:
            add(namespace, name, ours, validator)


_HOOKS: Final[dict[str, Callable[..., None]]] = {
    hook.__name__: hook
    for hook in (
        on_starting,
        on_reload,
        on_exit,
        pre_fork,
        post_fork,
        post_worker_init,
        worker_abort,
        on_dirty_starting,
        dirty_worker_init,
        pre_request,
        post_request,
    )
}
