"""gunicorn in the trial "life": under load, its workers replaced all the time, itself as well.

Runs in the trial's process, which is the client. The services join the case's recording, so that
its collector is the one whose time is compressed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from shmrec import process
from shmrec.errors import ShmrecError
from shmrec.ring import readers
from shmrec.segment import open_segment
from tools.stress import holdings
from tools.stress.ended import end
from tools.stress.life_stage import PATIENCE_SECONDS, Stage
from tools.stress.tally import Impossible

_ROOT = Path(__file__).resolve().parents[2]
_MASTER = "gunicorn master"
_WORKER = "gunicorn worker"
_WORKERS = 3
_CLIENTS = 3
_MAX_REQUESTS = 10
_PAUSE = 0.02
_BETWEEN = 0.5
_KINDS = (("sync",), ("gthread", "--threads=2"), ("gevent",))


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(str(self._path))


class _Service:
    """A gunicorn and its clients; `masters` are those that live, the oldest first."""

    def __init__(self, stage: Stage, *options: str) -> None:
        try:
            import gunicorn  # noqa: F401
        except ImportError as error:
            raise Impossible("gunicorn is missing: install shmrec[test]") from error
        self.stage = stage
        self.socket = stage.folder / f"s{time.monotonic_ns()}"
        self.answers = 0
        self._seen: dict[int, int] = {}
        self._over = threading.Event()
        self._clients: list[threading.Thread] = []
        with open(stage.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn"),
                    *("-c", "python:shmrec.integrations.gunicorn"),
                    *("-w", str(_WORKERS), "--graceful-timeout", "10", "--log-level", "warning"),
                    *("-b", f"unix:{self.socket}", *options, "tools.stress.life_app:app"),
                ],
                cwd=stage.folder,
                env={
                    **os.environ,
                    "SHMREC_RECORDING": stage.name,
                    "LIFE_ACCOUNTS": str(stage.accounts),
                    "PYTHONPATH": str(_ROOT),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> _Service:
        self.stage.wait(self._serves, lambda: f"gunicorn does not serve: {self.stage.words()}")
        return self

    def load(self) -> None:
        """Have clients ask all the time."""
        for _ in range(_CLIENTS):
            self._clients.append(threading.Thread(target=self._load))
            self._clients[-1].start()

    def unload(self) -> None:
        """Have them stop."""
        self._over.set()
        for each in self._clients:
            each.join()
        self._clients.clear()

    def workers_ever(self) -> int:
        """How many processes have ever joined the recording."""
        with open_segment(self.stage.name, writable=False) as segment:
            return sum(reader.incarnation() for reader in readers(segment))

    def __exit__(self, *_: object) -> None:
        self.unload()
        self.attached(_MASTER)
        for pid, started in self._seen.items():
            if process.alive(pid, started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        end(self.process)

    def _serves(self) -> bool:
        return self.process.poll() is not None or self.get() is not None

    def get(self) -> str | None:
        """Who answers; None if the connection broke, as it may when its worker leaves."""
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(_Connection(self.socket)) as connection,
        ):
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        return None

    def _load(self) -> None:
        while not self._over.is_set():
            if self.get() is None:
                time.sleep(_PAUSE)
            else:
                self.answers += 1

    def attached(self, label: str) -> list[int]:
        """The live processes of that label, the longest attached first."""
        try:
            with open_segment(self.stage.name, writable=False) as segment:
                entries = [reader.entry() for reader in readers(segment) if reader.incarnation()]
        except ShmrecError:
            return []
        there = [
            entry
            for entry in entries
            if entry.attached
            and entry.label in (_MASTER, _WORKER)
            and process.alive(entry.pid, entry.start_ticks)
        ]
        self._seen.update({entry.pid: entry.start_ticks for entry in there})
        there.sort(key=lambda entry: entry.attached_ns)
        return [entry.pid for entry in there if entry.label == label]

    def until(self, condition: Callable[[], object], what: str) -> bool:
        """Wait for it, as `Stage.wait` does."""
        return self.stage.wait(condition, lambda: f"gunicorn: {what}: {self.stage.words()}")

    def end(self, master: int) -> None:
        """End the service, and wait until nobody of it is left."""
        self.unload()
        # A signal that meets a worker on its way up is lost: it has its master's handlers yet.
        _settled(self, "its workers do not come")
        os.kill(master, signal.SIGTERM)
        if master == self.process.pid and self.process.wait(PATIENCE_SECONDS):
            self.stage.fail(f"gunicorn ended with {self.process.returncode}")
        self.until(
            lambda: not any(process.alive(pid, started) for pid, started in self._seen.items()),
            "somebody of it is left",
        )
        self.stage.tally.count("requests", self.answers)


def max_requests(stage: Stage, seconds: float) -> None:
    """Workers that leave after every ten requests, under load, while snapshots are taken."""
    stage.keep_asking()
    for kind, *options in _KINDS:
        limit = f"--max-requests={_MAX_REQUESTS}"
        with _Service(stage, "-k", kind, *options, limit) as service:
            _settled(service, "its workers do not come")
            before, workers = holdings.ours_of(service.process.pid), service.workers_ever()
            service.load()
            time.sleep(seconds / len(_KINDS))
            service.unload()
            _settled(service, "its workers do not come back")
            # gunicorn has descriptors and a thread of its own that come later.
            after = holdings.ours_of(service.process.pid)
            if before != after:
                stage.fail(f"gunicorn {kind}'s master has {after} open, and had {before}")
            came = service.workers_ever() - workers
            stage.tally.count("workers replaced", came)
            if came < _WORKERS:
                stage.fail(f"gunicorn {kind}: only {came} workers for {service.answers} requests")
            service.end(service.process.pid)
    _nobody_died(stage)


def reloads(stage: Stage, seconds: float) -> None:
    """HUP and USR2 in turns, under load, while snapshots are taken."""
    stage.keep_asking()
    deadline = time.monotonic() + seconds
    with _Service(stage, "-k", "gthread", "--threads=2") as service:
        service.load()
        master = service.process.pid
        turn = 0
        while time.monotonic() < deadline or turn < 2:
            going = _reload(service, master) if turn % 2 == 0 else _upgrade(service, master)
            if going is None:
                break
            master = going
            turn += 1
        service.end(master)
    _nobody_died(stage)


def _full(service: _Service) -> bool:
    return len(service.attached(_WORKER)) == _WORKERS


def _settled(service: _Service, what: str) -> bool:
    """Wait until there are as many workers as there should be, which hear a signal."""
    return service.until(lambda: _full(service) and _ready(service), what)


def _ready(service: _Service) -> bool:
    """Whether all workers have handlers of their own, as shows in that of SIGCHLD."""
    child, abort = process.signal_bit(signal.SIGCHLD), process.signal_bit(signal.SIGABRT)
    masks = [process.signals(pid).caught for pid in service.attached(_WORKER)]
    return all(caught & abort and not caught & child for caught in masks)


def _reload(service: _Service, master: int) -> int | None:
    if not _settled(service, "its workers do not come"):
        return None
    before = set(service.attached(_WORKER))
    os.kill(master, signal.SIGHUP)
    if not service.until(
        lambda: not before & set(service.attached(_WORKER)) and _full(service),
        "its workers are not replaced",
    ):
        return None
    service.stage.tally.count("reloads")
    return master


def _upgrade(service: _Service, master: int) -> int | None:
    """The next master, once the old one has gone."""
    if not _settled(service, "its workers do not come"):
        return None
    os.kill(master, signal.SIGUSR2)
    both = 2 * _WORKERS
    if not service.until(
        lambda: (
            len(service.attached(_MASTER)) == 2
            and len(service.attached(_WORKER)) == both
            and _ready(service)
        ),
        "no second master comes",
    ):
        return None
    (heir,) = set(service.attached(_MASTER)) - {master}
    time.sleep(_BETWEEN)
    os.kill(master, signal.SIGTERM)
    if master == service.process.pid:
        service.process.wait(PATIENCE_SECONDS)
    if not service.until(
        lambda: service.attached(_MASTER) == [heir] and _full(service), "the old master stays"
    ):
        return None
    service.stage.tally.count("upgrades")
    return heir


def _nobody_died(stage: Stage) -> None:
    deaths = [path.name for path in stage.store.glob("*-death-*")]
    if deaths:
        stage.fail(f"deaths where all left in order: {deaths[:3]}")
