"""A real gunicorn for tests: started in a folder of its own, asked over a unix socket.

What the tests of gunicorn's integration share. Every process that a `Service` starts or causes
is gone after `close`, and so is the recording's memory.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest

from shmrec import process
from shmrec.errors import ShmrecError
from tests.conftest import WAIT_SECONDS, end_recording, wait_until
from tests.integrations.watched import Watched

ROOT = Path(__file__).resolve().parent.parent.parent
HOOKS = "python:shmrec.integrations.gunicorn"
WSGI = "tests.integrations.gunicorn_app:app"
ASGI = "tests.integrations.gunicorn_app:asgi"


def version() -> int:
    """gunicorn's major version; 0 if there is none."""
    try:
        return int(importlib.metadata.version("gunicorn").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def configure(*installs: str, before: str = "") -> str:
    """The text of a configuration file with these calls of `install` at its end."""
    own = textwrap.dedent(before).strip()
    return "\n".join([own, "from shmrec.integrations.gunicorn import install", *installs, ""])


class Start(Protocol):
    """The fixture `start`: a service in a folder of its own, ended with the test."""

    def __call__(
        self,
        *options: str,
        recording: str = ...,
        app: str = ...,
        config: str = ...,
        environment: dict[str, str] | None = ...,
    ) -> Service: ...


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WAIT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_SECONDS)
        self.sock.connect(str(self._path))


class Service(Watched):
    """A gunicorn, its snapshots and its log.

    `config` is what ``-c`` takes, or a configuration's text; `environment` overrides what it
    inherits, "" removes a variable.
    """

    def __init__(
        self,
        folder: Path,
        recording: str,
        *options: str,
        app: str = WSGI,
        config: str = HOOKS,
        environment: dict[str, str] | None = None,
    ) -> None:
        super().__init__(recording, folder / "snapshots")
        self.folder = folder
        self.socket = folder / "s"
        self.answers: dict[str, int | None] = {}
        self._asking: list[threading.Thread] = []
        (folder / "gates").mkdir()
        (folder / "gates").chmod(0o777)
        variables = {name: text for name, text in os.environ.items() if "SHMREC" not in name}
        variables |= {
            "SHMREC_RECORDING": recording,
            "SHMREC_DIR": str(self.store),
            "GATES": str(folder / "gates"),
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        if "\n" in config:
            (folder / "conf.py").write_text(config)
            config = str(folder / "conf.py")
        # Less than the tests wait: gunicorn itself loses a SIGTERM that meets a booting worker.
        patience = ("--graceful-timeout", "10")
        command = [sys.executable, "-m", "gunicorn", "-c", config, *patience, *options]
        with open(folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "-b", f"unix:{self.socket}", app],
                cwd=folder,
                env={name: text for name, text in variables.items() if text},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self.process.pid
        self._seen[self.pid] = process.start_ticks(self.pid)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    # Asking it.

    def ready(self, workers: int = 1) -> Service:
        """Wait until it answers and that many workers have joined."""

        def answers() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"gunicorn ended with {self.process.returncode}:\n{self.log()}")
            return self.up()

        wait_until(answers)
        wait_until(lambda: len(self.workers()) >= workers)
        return self

    def up(self) -> bool:
        return self.get_or_none("/up") == 200

    def get_or_none(self, path: str) -> int | None:
        """The answer's status, or None if the connection broke."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get(path)[0]
        return None

    def get_all(self, paths: Sequence[str]) -> None:
        """Ask for all of them over one connection, if the server keeps it."""
        with contextlib.closing(UnixConnection(self.socket)) as connection:
            for path in paths:
                connection.request("GET", path)
                connection.getresponse().read()

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        with contextlib.closing(UnixConnection(self.socket)) as connection:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()

    def ask(self, path: str, query: str = "") -> None:
        """Ask in a thread, which ends with the service if not before."""

        def run() -> None:
            self.answers[path] = self.get_or_none(path + query)

        self._asking.append(threading.Thread(target=run))
        self._asking[-1].start()

    def enter(self, name: str, status: int = 200, query: str = "") -> str:
        """Ask for a gate in a thread and wait until the request is in it; its path."""
        path = f"/gate/{name}/{status}"
        self.ask(path, query)
        wait_until((self.folder / "gates" / f"in-{name}").exists)
        return path

    def let_out(self, name: str) -> None:
        (self.folder / "gates" / f"out-{name}").touch()

    def children(self) -> list[int]:
        """The master's children, recorded or not."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    # Ending it.

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT_SECONDS)

    def gone(self) -> bool:
        """Whether every process that was ever seen of it has ended."""
        return not any(process.alive(pid, started) for pid, started in self._seen.items())

    def close(self, *, keep: bool = False) -> None:
        """Kill every process of it and, unless `keep`, remove the recording's memory."""
        with contextlib.suppress(ShmrecError):
            self.collector()
        self.entries()
        with contextlib.suppress(OSError):
            for pid in self.children():
                self._seen[pid] = process.start_ticks(pid)
        for pid, started in self._seen.items():
            if process.alive(pid, started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(self.gone)
        if not keep:
            end_recording(self.recording)
        for asking in self._asking:
            asking.join()
