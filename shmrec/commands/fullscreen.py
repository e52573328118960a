"""A terminal taken as a whole for a while: its second screen, keys as they are pressed, its size.

Runs in ``shmrec-dump top``. However it ends, by a key, an error or a signal that a process can
hear, the terminal is as it was before: its first screen, its cursor, its line editing. Ctrl-Z gives
it back until the process goes on. Signals only leave word, and are dealt with where nothing is
half drawn.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

__all__ = ["Fullscreen", "Left", "missing"]

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_ESCAPE: Final = 0.05
"""Seconds in which what follows Esc in an arrow key's bytes is there."""
_SIZE_SECONDS: Final = 0.25
"""How often the size is looked at besides."""
_AT_ONCE: Final = 1024
_KEYS: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1bOC": "right",
    "\x1bOD": "left",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1bOH": "home",
    "\x1bOF": "end",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x15": "clear",
}
_PRESSED: Final = re.compile("\x1b(?:\\[[0-9;?]*[ -/]*[@-~]|O[@-~])?|[^\x1b]", re.DOTALL)


class Left(Exception):
    """It is to end, because of that signal; `signal.SIGHUP` where the terminal has gone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def missing() -> str:
    """What standard input and output lack of a terminal; "" if nothing."""
    for stream, what in ((sys.stdout, "standard output"), (sys.stdin, "standard input")):
        if stream is None or not stream.isatty():
            return f"{what} is no terminal"
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return "the terminal cannot move its cursor (see TERM)"
    return ""


def keys(text: str) -> list[str]:
    """What was pressed: characters, and names of the other keys; those unknown are left out."""
    found = []
    for pressed in _PRESSED.findall(text):
        key = _KEYS.get(pressed, pressed)
        if len(pressed) == 1 or pressed in _KEYS:
            found.append(key)
    return found


class Fullscreen:
    """The terminal of standard input and output; a context manager."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._console = Console(
            file=sys.stdout,
            color_system=None if os.environ.get("NO_COLOR") else "auto",
            markup=False,
            emoji=False,
            highlight=False,
            # Of a shell that exports them they are those of when it began.
            _environ={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")},
        )
        self._live: Live | None = None
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._word = 0
        self._suspend = False
        self._drawn = (0, 0)
        self._wakeup: tuple[int, int] = (-1, -1)
        self._woken = -1

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        width, height = self._console.size
        return width, height

    def __enter__(self) -> Fullscreen:
        self._before = termios.tcgetattr(self._input)
        self._wakeup = os.pipe()
        for end in self._wakeup:
            os.set_blocking(end, False)
        self._woken = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        for number in (*_ENDING, signal.SIGWINCH, signal.SIGTSTP):
            self._handlers[number] = signal.signal(number, self._hear)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A terminal that has gone needs nothing any more.
        with contextlib.suppress(OSError, termios.error):
            self._give_back()
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for end in self._wakeup:
            os.close(end)

    def wake(self) -> None:
        """Have `pressed` return; from another thread."""
        with contextlib.suppress(OSError):
            os.write(self._wakeup[1], b"\0")

    def draw(self, lines: Sequence[Text], size: tuple[int, int]) -> None:
        """Show those lines, made for that size. Raises `Left` if the terminal has gone."""
        assert self._live is not None
        self._drawn = size
        try:
            self._live.update(Group(*lines), refresh=True)
        except OSError as error:
            raise Left(signal.SIGHUP) from error

    def pressed(self, seconds: float) -> list[str]:
        """The keys pressed, as soon as there are any; none when that time is over, or at a wake.

        Also none when the size has changed. Raises `Left`.
        """
        self._obey()
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            # A change of size that came while it was drawn is seen though its signal was early:
            # the kernel sends that before the new size can be read.
            ready, _, _ = select.select(
                [self._input, self._wakeup[0]], [], [], min(max(0.0, left), _SIZE_SECONDS)
            )
            if ready or left <= 0 or self.size != self._drawn:
                break
        if self._wakeup[0] in ready:
            with contextlib.suppress(OSError):
                os.read(self._wakeup[0], _AT_ONCE)
        self._obey()
        return keys(self._read()) if self._input in ready else []

    def _read(self) -> str:
        text = ""
        while True:
            try:
                data = os.read(self._input, _AT_ONCE)
            except OSError:
                data = b""
            if not data:
                raise Left(signal.SIGHUP)
            text += self._decoder.decode(data)
            # The bytes of one key may come in two pieces.
            if not text.endswith(("\x1b", "\x1b[", "\x1bO")):
                return text
            if not select.select([self._input], [], [], _ESCAPE)[0]:
                return text

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number in _ENDING:
            self._word = self._word or number
        elif number == signal.SIGTSTP:
            self._suspend = True

    def _obey(self) -> None:
        if self._word:
            raise Left(self._word)
        if self._suspend:
            self._suspend = False
            with self._given_back():
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTSTP)
                signal.signal(signal.SIGTSTP, self._hear)

    @contextlib.contextmanager
    def _given_back(self) -> Iterator[None]:
        self._give_back()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> None:
        tty.setcbreak(self._input)
        # Drawn when it is told to, and by this thread only.
        self._live = Live(
            Text(),
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _give_back(self) -> None:
        try:
            if self._live is not None:
                self._live.stop()
                self._live = None
        finally:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)
