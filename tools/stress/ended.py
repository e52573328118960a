"""How a program that was started is ended, when nothing more is wanted of it.

Runs in the process that started it: of a trial, or of the tests.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

__all__ = ["end"]


def end(process: subprocess.Popen[Any]) -> None:
    """End it, whatever it is at, stopped or over; it is reaped, and its pipes are closed."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            # What was still to be written finds nobody.
            with contextlib.suppress(OSError):
                pipe.close()
