"""Which thread speaks: its kernel id, its name, and what gevent may have replaced.

Runs in producers, both engines alike, when a thread records for the first time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from shmrec.events import NAME_LIMIT
from shmrec.values import bounded_text

__all__ = ["Speaker", "main_ident", "native"]

listener: Callable[[int, int], None] | None = None
"""Told of a thread's ident and kernel id when it records for the first time."""


def native(name: str) -> Any:
    """A function or class of ``_thread`` as it was before gevent replaced it, if it did."""
    monkey = sys.modules.get("gevent.monkey")
    saved = getattr(monkey, "saved", {}).get("_thread", {})
    return saved.get(name, getattr(__import__("_thread"), name))


_get_native_id: Callable[[], int] = native("get_native_id")
_get_ident: Callable[[], int] = native("get_ident")


def main_ident() -> int:
    """The main thread's ident, or 0 where threading does not know it."""
    main = getattr(sys.modules.get("threading"), "_main_thread", None)
    ident = getattr(main, "ident", None)
    return ident if type(ident) is int else 0


class Speaker:
    """A thread as a writer knows it: its kernel id and its name."""

    __slots__ = ("id", "name")

    def __init__(self) -> None:
        self.id = _get_native_id()
        try:
            # current_thread() would register a dummy for a thread it does not know.
            threading = sys.modules["threading"]
            name = threading._active[threading.get_ident()].name
            self.name = bounded_text(name, NAME_LIMIT) if isinstance(name, str) else ""
        except Exception:
            # A thread that threading does not know, or of a class whose name raises.
            self.name = "MainThread" if self.id == os.getpid() else ""
        if listener is not None:
            listener(_get_ident(), self.id)
