"""Long reports on a terminal, a page at a time, as git and coredumpctl show theirs.

Runs in the command-line tools. The pager is $SHMREC_PAGER, else $PAGER, else less; ``cat`` or
nothing turns it off, so does ``--no-pager``, and output that goes to no terminal has none. less
is told, unless $LESS says something else, to leave colours as they are and to go away by itself
where all fits on the screen. What is paged has been made harmless like any other output.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import click

__all__ = ["paged", "pager_option"]

_F = TypeVar("_F", bound=Callable[..., Any])

_DEFAULT: Final = "less"
_LESS: Final = "FRX"
"""Leave if it fits on a screen; let colours through; leave what was shown on the screen."""
_NOT_FOUND: Final = 127


def pager_option(function: _F) -> _F:
    """``--no-pager``; the verb gets `no_pager` for `paged`."""
    return click.option("--no-pager", is_flag=True, help="Do not page what goes to a terminal.")(
        function
    )


class _Paged(io.TextIOWrapper):
    """What goes to a pager is read on a terminal."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def paged(no_pager: bool) -> Iterator[None]:
    """Standard output through a pager, where there is somebody to turn pages."""
    given = os.environ.get("SHMREC_PAGER", os.environ.get("PAGER", _DEFAULT)).strip()
    if no_pager or not sys.stdout.isatty() or given in ("", "cat") or not _there(given):
        yield
        return
    sys.stdout.flush()
    environment = {"LESS": _LESS, **os.environ}
    running = subprocess.Popen(given, shell=True, stdin=subprocess.PIPE, env=environment)
    assert running.stdin is not None
    terminal = sys.stdout
    # From now on Ctrl-C is for the pager; whoever leaves that ends us by a pipe that nobody reads.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = _Paged(
        running.stdin, encoding=terminal.encoding, errors="backslashreplace", write_through=False
    )
    try:
        yield
    except BrokenPipeError:
        # Whoever leaves the pager has seen enough.
        pass
    finally:
        page, sys.stdout = sys.stdout, terminal
        with contextlib.suppress(BrokenPipeError):
            page.close()
        running.wait()
        signal.signal(signal.SIGINT, before)


def _there(command: str) -> bool:
    """Whether its first word, if it is a plain one, is a program: less may not be installed."""
    word = command.split()[0]
    return shutil.which(word) is not None or "=" in word
