"""The demo's incident: a service under load, a worker killed, a report that names the request.

Runs in the environment that ``tools/demo`` makes. The service is httpbin, as published; nothing
in it knows of shmrec. Whatever happens, nothing is left behind but the snapshot.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from shmrec.store import default_directory

RECORDING = f"demo-{os.getpid()}"
APPLICATION = "httpbin:app"
WORKERS = 4
LOAD_THREADS = 4
LOAD_REQUESTS = 5_000
LOAD_PATHS = ("/get?token=secret", "/headers", "/uuid", "/status/404", "/bytes/4096", "/html")
SLOW_PATH = "/delay/9"
HEAD_START_SECONDS = 2.0
PATIENCE_SECONDS = 30.0
PARENT_DEATH_SIGNAL = 1
"""For prctl(2)."""

_T = TypeVar("_T")


class DemoError(Exception):
    """The demo did not go as it should; the message says where."""


def say(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr, flush=True)


def wait_for(what: str, look: Callable[[], _T | None], timeout: float = PATIENCE_SECONDS) -> _T:
    """What `look` finds, looked for until it is found."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)


def dump(*arguments: str) -> str:
    """What shmrec-dump prints."""
    tool = Path(sys.executable).parent / "shmrec-dump"
    told = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if told.returncode:
        raise DemoError(f"shmrec-dump {' '.join(arguments)}: {told.stderr.strip()}")
    return told.stdout


# The service and its users.


@contextlib.contextmanager
def service(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """gunicorn, with the hooks as its configuration; stopped in order at the end."""
    command = [sys.executable, "-m", "gunicorn", "-c", "python:shmrec.integrations.gunicorn"]
    command += ["--workers", str(WORKERS), "--threads", "2", "--bind", "127.0.0.1:0", APPLICATION]
    say("$ " + " ".join(["gunicorn", *command[3:]]))
    libc = ctypes.CDLL(None)
    with open(log, "wb") as output:
        master = subprocess.Popen(
            command,
            cwd=log.parent,
            env={**os.environ, "SHMREC_RECORDING": RECORDING},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the demo, which then stops the service.
            start_new_session=True,
            # Where the demo is killed nobody else would stop it.
            preexec_fn=lambda: libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGQUIT),
        )
    try:
        yield master
    finally:
        # Before it listens it knows no signals, and would leave the recording behind.
        with contextlib.suppress(DemoError):
            wait_for("gunicorn listens", lambda: port(master, log))
        stop(master)


def stop(master: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        master.send_signal(signal.SIGQUIT)
        try:
            master.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            say("gunicorn does not stop, killing it and its workers")
            os.killpg(master.pid, signal.SIGKILL)
            master.wait()


def port(master: subprocess.Popen[bytes], log: Path) -> int | None:
    if master.poll() is not None:
        raise DemoError(f"gunicorn ended with status {master.returncode}")
    found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text("utf-8"))
    return int(found[1]) if found else None


def ask(address: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", address, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        connection.getresponse().read()


@contextlib.contextmanager
def load(address: int) -> Iterator[None]:
    """Users who ask one thing after another, until the end of the block."""
    over = threading.Event()

    def use() -> None:
        for path in itertools.islice(itertools.cycle(LOAD_PATHS), LOAD_REQUESTS):
            if over.is_set():
                return
            ask(address, path)

    users = [threading.Thread(target=use, daemon=True) for _ in range(LOAD_THREADS)]
    for user in users:
        user.start()
    try:
        yield
    finally:
        over.set()
        for user in users:
            user.join(PATIENCE_SECONDS)


# The incident.


def live() -> list[dict[str, Any]]:
    """The recording's processes at this moment, as ``shmrec-dump ps --json`` has them."""
    producers: list[dict[str, Any]] = json.loads(dump("ps", RECORDING, "--json"))["producers"]
    return producers


def all_up() -> bool:
    with contextlib.suppress(DemoError):
        labels = [producer["label"] for producer in live()]
        return labels.count("gunicorn worker") == WORKERS
    return False


def inside_slow_request() -> int | None:
    """The pid of the worker that is in the middle of the slow request."""
    for producer in live():
        for span in producer["open_spans"]:
            if span["args"].get("path") == SLOW_PATH:
                return int(producer["pid"])
    return None


def death_snapshot() -> Path | None:
    found = default_directory().glob(f"{RECORDING}-*-death-*.shmrec")
    return next(iter(sorted(found)), None)


def incident(folder: Path, meanwhile: Callable[[], None] | None = None) -> tuple[int, Path]:
    """Let it happen; the victim's pid, and the snapshot that nobody asked for.

    `meanwhile` is called when the victim is inside the slow request.
    """
    log = folder / "gunicorn.log"
    try:
        with service(log) as master:
            address = wait_for("gunicorn listens", lambda: port(master, log))
            wait_for(f"all {WORKERS} workers are recorded", all_up)
            say(f"{WORKERS} workers serve httpbin on port {address}, {LOAD_THREADS} users load it")
            with load(address):
                time.sleep(HEAD_START_SECONDS)
                slow = threading.Thread(target=ask, args=(address, SLOW_PATH), daemon=True)
                slow.start()
                victim = wait_for(f"a worker is inside {SLOW_PATH}", inside_slow_request)
                time.sleep(1.0)
                if meanwhile is not None:
                    meanwhile()
                say(f"$ kill -9 {victim}    (it is inside GET {SLOW_PATH})")
                os.kill(victim, signal.SIGKILL)
                snapshot = wait_for("the death snapshot", death_snapshot)
                say(f"the collector wrote {snapshot}")
            return victim, snapshot
    except DemoError:
        sys.stderr.write(log.read_text("utf-8") if log.exists() else "")
        raise


def show(snapshot: Path) -> None:
    """Write what people look at, and say how."""
    page, trace = snapshot.with_suffix(".html"), snapshot.with_suffix(".pftrace")
    say(f"$ shmrec-dump report {snapshot} -o {page}")
    dump("report", str(snapshot), "-o", str(page))
    say(f"$ shmrec-dump export {snapshot} -o {trace}")
    dump("export", str(snapshot), "-o", str(trace))
    say(f"the report, for any browser: {page.as_uri()}")
    say(f"the trace, for Perfetto: open https://ui.perfetto.dev and drop {trace} into it")
    say("(the trace is read in the browser and sent nowhere)")


def terminate(*_: object) -> NoReturn:
    sys.exit("demo: terminated")


def main() -> None:
    signal.signal(signal.SIGTERM, terminate)
    try:
        with tempfile.TemporaryDirectory(prefix="shmrec-demo-") as folder:
            victim, snapshot = incident(Path(folder))
        say(f"$ shmrec-dump info {snapshot}")
        report = dump("info", str(snapshot))
        print(report, end="", flush=True)
        missing = [what for what in (SLOW_PATH, str(victim), "signal 9") if what not in report]
        if missing:
            raise DemoError(f"the report does not name {' and '.join(missing)}")
        say(f"the killed request was named; see more: shmrec-dump events {snapshot}")
        show(snapshot)
    except DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted")


if __name__ == "__main__":
    main()
