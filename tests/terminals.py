"""Real terminals for tests: tmux, which shows what a person would see, and a bare one, which keeps
every byte that was sent to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence

import pytest

from .conftest import WAIT_SECONDS, wait_until
from .dumping import environment

TMUX = shutil.which("tmux")
_numbers = itertools.count(1)

_TAKES_THE_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)

needs_tmux = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")


class Tmux:
    """A terminal of a tmux server of its own, that runs one command."""

    def __init__(
        self,
        *command: str,
        columns: int = 120,
        lines: int = 24,
        env: dict[str, str] | None = None,
    ) -> None:
        self._socket = f"shmrec-test-{os.getpid()}-{next(_numbers)}"
        self._env = environment({"TERM": "xterm-256color", **(env or {})})
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(lines), *command
        )
        self.pid = int(self._tmux("display-message", "-p", "#{pane_pid}"))

    def _tmux(self, *args: str) -> str:
        assert TMUX is not None
        done = subprocess.run(
            [TMUX, "-L", self._socket, *args],
            capture_output=True,
            text=True,
            env=self._env,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Press keys, by tmux's names for them."""
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Press the keys of a text, as they are."""
        self._tmux("send-keys", "-l", text)

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def shown(self, *, styles: bool = False) -> str:
        """What is on the screen; with its `styles` as escape sequences."""
        return self._tmux("capture-pane", "-p", *["-e"] * styles)

    def see(self, *parts: str) -> str:
        """Wait until all of that is on the screen, and return what is."""
        last = ""

        def there() -> bool:
            nonlocal last
            last = self.shown()
            return all(part in last for part in parts)

        try:
            wait_until(there)
        except BaseException:
            print(last)
            raise
        return last

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self._tmux("kill-server")

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Bare:
    """A terminal that shows nothing: `sent` is every byte that the command wrote to it."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 100, env: dict[str, str] | None = None
    ) -> None:
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.side = side
        self.sent = b""
        self.running = subprocess.Popen(
            # Its own, so that what is typed can be a signal.
            [sys.executable, "-c", _TAKES_THE_TERMINAL, *command],
            stdin=side,
            stdout=side,
            stderr=side,
            env=environment({"TERM": "xterm-256color", **(env or {})}),
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._main, 65536):
                self.sent += chunk

    def keys(self, text: str) -> None:
        os.write(self._main, text.encode())

    def see(self, part: str) -> None:
        """Wait until it was sent."""
        wait_until(lambda: part.encode() in self.sent)

    @property
    def modes(self) -> list[object]:
        """What `termios.tcgetattr` says of it."""
        return list(termios.tcgetattr(self.side))

    def wait(self) -> int:
        return self.running.wait(WAIT_SECONDS)

    def close(self) -> None:
        self.running.kill()
        self.running.wait()
        os.close(self.side)
        self._thread.join()
        os.close(self._main)

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
