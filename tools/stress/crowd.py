"""Many processes that record, forked by one program: cheap enough to have hundreds.

Runs as that program, told by lines on its standard input, each ``NUMBER EXPRESSION`` for one of its
children or ``* EXPRESSION`` for all at once; it answers with a JSON object a line, by child. A
second face of the same file, `Crowd`, is for the process of a trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import IO, Any, Final

__all__ = ["Answer", "Crowd"]

Answer = dict[str, Any]
"""Of one child: `value`, `error`, `warned`, and its `pid`."""
_WAIT_SECONDS: Final = 60.0


class Crowd:
    """So many processes. Use as a context manager."""

    def __init__(self, count: int, log: Path) -> None:
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )
        self.pids: list[int] = [int(pid) for pid in self._hear()]

    def _hear(self) -> dict[str, Answer]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the crowd ended with {self._process.wait()}")
        found: dict[str, Answer] = json.loads(line)
        return found

    def do(self, pid: int, expression: str) -> Answer:
        """Have one compute that."""
        return self._said(str(self.pids.index(pid)), expression)[pid]

    def all_do(self, expression: str) -> dict[int, Answer]:
        """Have all who live compute that at the same time; their answers by pid."""
        return self._said("*", expression)

    def _said(self, whom: str, expression: str) -> dict[int, Answer]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{whom} {expression}\n")
        self._process.stdin.flush()
        return {int(pid): answer for pid, answer in self._hear().items()}

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_WAIT_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def _child(commands: IO[str], answers: IO[str]) -> None:
    import shmrec

    warned: list[str] = []
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: warned.append(str(message))

    def forked(events: int) -> list[str]:
        """What a child of this one is warned of while it records."""
        into, out = os.pipe()
        if os.fork() == 0:
            for number in range(events):
                shmrec.instant("of a child", n=number)
            os.write(out, json.dumps(warned).encode())
            os._exit(0)
        os.close(out)
        with open(into) as pipe:
            told: list[str] = json.load(pipe)
        os.wait()
        return told

    for line in commands:
        value, error = None, ""
        try:
            value = eval(line, {"shmrec": shmrec, "os": os, "forked": forked})
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
        answers.write(json.dumps({"value": value, "error": error, "warned": warned}) + "\n")
        answers.flush()
        warned.clear()


def _main(count: int) -> None:
    import shmrec  # noqa: F401  # Loaded once, before the others are forked.

    pipes: list[tuple[int, IO[str], IO[str]]] = []
    for _ in range(count):
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            for _, into, out in pipes:
                into.close()
                out.close()
            os.close(our_out)
            os.close(our_in)
            status = 1
            try:
                with open(their_in) as commands, open(their_out, "w") as answers:
                    _child(commands, answers)
                status = 0
            finally:
                if status:
                    os._exit(status)
            sys.exit(0)
        os.close(their_in)
        os.close(their_out)
        pipes.append((pid, os.fdopen(our_out, "w"), os.fdopen(our_in)))
    print(json.dumps(dict.fromkeys([pid for pid, _, _ in pipes])), flush=True)
    for line in sys.stdin:
        whom, _, expression = line.partition(" ")
        chosen = pipes if whom == "*" else [pipes[int(whom)]]
        said: dict[int, object] = {}
        asked = []
        for pid, into, out in chosen:
            # Those that were killed say nothing.
            with contextlib.suppress(OSError):
                into.write(expression)
                into.flush()
                asked.append((pid, out))
        for pid, out in asked:
            answer = out.readline()
            said[pid] = json.loads(answer) if answer else {"error": "ended", "warned": []}
        print(json.dumps(said), flush=True)
    for _, into, _ in pipes:
        with contextlib.suppress(OSError):
            into.close()
    for pid, _, _ in pipes:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
