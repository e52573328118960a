"""Having a signal ignored, from any thread: Python's own way is the main thread's alone.

Runs in producers, before faulthandler listens to a real-time signal: the default action, which
it would put back when it is told to stop, ends the process.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from shmrec.extension import EXTENSION

__all__ = ["ignore_signal"]


def ignore_signal(number: int) -> None:
    """Ignore the signal `number` from now on, where there is a way to have that."""
    try:
        signal.signal(number, signal.SIG_IGN)
    except ValueError:
        # Not the main thread.
        with contextlib.suppress(AttributeError, ImportError, OSError):
            if EXTENSION is not None:
                EXTENSION.ignore_signal(number)
            else:
                _signal()(number, int(signal.SIG_IGN))


def _signal() -> Any:
    # Imported here: a process that only imports shmrec should not pay for ctypes.
    import ctypes

    function = ctypes.CDLL(None).signal
    function.restype, function.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return function
