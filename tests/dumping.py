"""For the tests of ``shmrec-dump``: running it, a recording to look at, files made by hand."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack
import pytest

from shmrec import events, process
from shmrec.commands.dump import main
from shmrec.file_writer import FileWriter
from shmrec.manifest import Header, Producer
from shmrec.ring import Batch, Head
from shmrec.segment import open_segment

from .conftest import (
    WAIT_SECONDS,
    Script,
    end_recording,
    kill_collector,
    noticed,
    snapshots,
    wait_until,
)

DUMP = (sys.executable, "-m", "shmrec.commands.dump")

HOSTILE = "\x1b]0;owned\x07\x1b[31m[bold red]x[/] \u202e\r\n"
"""A terminal escape, rich's markup, a direction override, line ends."""

SCENE = """
import os, signal, sys, time, shmrec

name, directory, hostile = sys.argv[1:]
recorder = shmrec.FlightRecorder(name, directory=directory)
recorder.start()
recorder.recorder.relabel("master")

def worker(number):
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        os.read(read, 1)
        return pid
    shmrec.attach(label=f"worker {number}")
    shmrec.instant("cache.miss", key=f"k{number}", blob=b"\\xff\\x00", ratio=float("nan"))
    shmrec.counter("queue", number)
    with shmrec.span("warm-up"):
        pass
    shmrec.begin("request", method="GET", path=f"/slow/{number}")
    shmrec.begin("query " + hostile, **{"sql" + hostile: hostile})
    try:
        raise ValueError(hostile)
    except ValueError as error:
        shmrec.exception(error)
    os.write(write, b"x")
    os.close(write)
    time.sleep(300)
    os._exit(1)

workers = [worker(number) for number in range(3)]
left = os.fork()
if not left:
    shmrec.attach(label="left")
    shmrec.instant("hello")
    shmrec.detach()
    os._exit(0)
os.waitpid(left, 0)
shmrec.instant("scene.ready")
print(*workers, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
for pid in workers:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
recorder.stop()
"""


def dump(
    *args: object,
    check: int | None = 0,
    env: dict[str, str] | None = None,
    said: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``shmrec-dump`` and check its status.

    As a process if it gets an environment or something on its standard input, else in here,
    which is ten times as fast.
    """
    if env is None and said is None:
        done = _in_here([str(arg) for arg in args])
    else:
        done = subprocess.run(
            [*DUMP, *map(str, args)],
            input=said,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS * 2,
            env=environment(env),
        )
    assert "Traceback" not in done.stderr, done.stderr
    if check is not None:
        assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done


def _in_here(args: list[str]) -> subprocess.CompletedProcess[str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with (
        mock.patch.object(sys, "argv", ["shmrec-dump", *args]),
        mock.patch.dict(os.environ, environment(), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main()
    shown = []
    for stream in (out, err):
        stream.flush()
        buffer = stream.buffer
        assert isinstance(buffer, io.BytesIO)
        shown.append(buffer.getvalue().decode())
    assert isinstance(left.value.code, int)
    return subprocess.CompletedProcess(args, left.value.code, *shown)


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """This environment, but for what would change what a tool prints."""
    dropped = (
        "NO_COLOR",
        "FORCE_COLOR",
        "TTY_COMPATIBLE",
        "COLUMNS",
        "LINES",
        "SHMREC_DIR",
        "LESS",
    )
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    # Nobody is there to turn pages.
    return {**kept, "PAGER": "cat", **(more or {})}


def dump_json(*args: object, check: int = 0) -> Any:
    """The one JSON object that the tool prints."""
    return json.loads(dump(*args, "--json", check=check).stdout)


def failure(*args: object, check: int = 1, env: dict[str, str] | None = None) -> str:
    """The one line with which the tool fails."""
    done = dump(*args, check=check, env=env)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("shmrec-dump: ")
    return lines[0]


def on_terminal(
    *args: object, columns: int = 80, env: dict[str, str] | None = None, check: int = 0
) -> str:
    """What the tool prints on a terminal of so many columns."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    running = subprocess.Popen(
        [*DUMP, *map(str, args)],
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment({"TERM": "xterm-256color", **(env or {})}),
    )
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(main, 65536):
            shown += chunk
    os.close(main)
    assert running.wait(WAIT_SECONDS) == check, shown
    return shown.decode().replace("\r\n", "\n")


class Scene:
    """A recording: a master, three workers inside of spans, one process that has left."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.script = Script(SCENE, name, str(directory), HOSTILE)
        self.workers: list[int] = []

    def ready(self) -> Scene:
        self.workers = [int(pid) for pid in self.script.line().split()]
        return self

    def do(self, line: str) -> None:
        """Have the master run a line."""
        self.script.say(line)
        assert self.script.line() == "done"

    def collector(self) -> int:
        """The pid of the collector, which there is."""
        with open_segment(self.name, writable=False) as segment:
            pid = segment.collector()
        assert pid is not None
        return pid

    def kill_collector(self) -> None:
        """SIGKILL it; it has ended afterwards."""
        with open_segment(self.name, writable=False) as segment:
            kill_collector(segment)

    def kill_everything(self) -> None:
        """SIGKILL, the collector first, so that it notices nothing; all have ended afterwards."""
        self.kill_collector()
        self.script.kill()
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)
        self.script.wait()
        wait_until(lambda: not any(process.alive(pid, 0) for pid in self.workers))

    def close(self) -> None:
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.script.close()
        end_recording(self.name)


def crash(name: str, directory: Path) -> tuple[Path, list[int]]:
    """A snapshot of the scene with worker 1 killed, and the workers' pids."""
    scene = Scene(name, directory)
    try:
        scene.ready()
        noticed(name)
        scene.do("os.kill(workers[1], signal.SIGKILL); os.waitpid(workers.pop(1), 0)")
        wait_until(lambda: snapshots(directory, "death"))
        return snapshots(directory, "death")[0], scene.workers
    finally:
        scene.close()


def batch(*happenings: list[Any], number: int = 1, generation: int = 1, start_ns: int = 0) -> Batch:
    """A batch of events as the wire has them, their names being the texts themselves."""
    packed, count = b"", 0
    names: dict[str, int] = {}
    for kind, delta, *fields in happenings:
        if kind != events.NAME.number:
            place = 1 if kind == events.THREAD.number else 0
            name = fields[place]
            if name not in names:
                names[name] = len(names)
                packed += msgpack.packb([events.NAME.number, 0, names[name], name])
            fields[place] = names[name]
        packed += msgpack.packb([kind, delta, *fields])
        count += events.KINDS[kind].counted
    head = Head(number, generation, start_ns, len(packed), count, 0, 0, 0)
    return Batch(head, packed)


def write_file(path: Path, header: Header, producers: list[tuple[Producer, list[Batch]]]) -> Path:
    """A snapshot file of what one pleases, the producers' stacks included."""
    with open(path, "wb") as file:
        writer = FileWriter(file)
        writer.header(header)
        for producer, batches in producers:
            writer.producer(producer)
            for each in batches:
                writer.batch(producer.index, each)
            for stack in producer.stacks:
                writer.stack(producer.index, stack)
        writer.trailer()
    return path


@contextlib.contextmanager
def a_scene(name: str, directory: Path) -> Iterator[Scene]:
    scene = Scene(name, directory)
    try:
        yield scene.ready()
    finally:
        scene.close()
