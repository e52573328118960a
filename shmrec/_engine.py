"""The one place that chooses the engine: the twin that records a producer's events.

Runs in producers. ``SHMREC_ENGINE=python|native`` asks for one and fails loudly, with the
cause, if it cannot serve; without it the best one that can is taken, quietly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Protocol

from shmrec.errors import EngineError
from shmrec.events import Kind
from shmrec.extension import EXTENSION, REFUSAL

__all__ = ["NAMES", "Engine", "choose", "refusal"]

NAMES: Final = ("native", "python")
"""The engines, best first."""


class Scope(Protocol):
    """A span as a context manager; `id` is its number once entered."""

    @property
    def id(self) -> int: ...

    def __enter__(self) -> Scope: ...

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None: ...


class Engine(Protocol):
    """What every twin does; `writer.Writer` is the specification."""

    revive: Callable[[], bool] | None

    @property
    def bound(self) -> bool: ...

    def bind(
        self,
        view: Any,
        words: Any,
        *,
        entry: int,
        ring: int,
        slot_size: int,
        slots: int,
        fenced: bool = True,
    ) -> None: ...

    def unbind(self) -> bool: ...

    def rewinds(self, fd: int, start: int, /) -> None: ...

    def forget(self) -> None: ...

    def lose(self, cause: str, count: int = 1) -> None: ...

    def instant(self, name: str, /, **args: Any) -> None: ...

    def begin(self, name: str, /, **args: Any) -> int: ...

    def end(self, span: int, /, **args: Any) -> None: ...

    def span(self, name: str, /, **args: Any) -> Scope: ...

    def counter(self, name: str, value: Any, /) -> None: ...

    def record(self, kind: Kind, name: str, args: dict[str, Any]) -> None: ...


def choose(wanted: str | None = None) -> tuple[str, Callable[..., Engine]]:
    """The engine's name and its writer class; `EngineError` if `wanted` cannot serve.

    `wanted` defaults to ``SHMREC_ENGINE``; empty means any.
    """
    asked = os.environ.get("SHMREC_ENGINE", "") if wanted is None else wanted
    if asked and asked not in NAMES:
        raise EngineError(
            f"SHMREC_ENGINE={asked}: there is no such engine; unset it or choose "
            f"{' or '.join(NAMES)}"
        )
    if asked == "native" and REFUSAL:
        raise EngineError(f"SHMREC_ENGINE=native: the native engine cannot serve: {REFUSAL}")
    if EXTENSION is not None and asked != "python":
        return "native", EXTENSION.Writer
    from shmrec.writer import Writer

    return "python", Writer


def refusal(name: str) -> str:
    """Why the engine of that name cannot serve in this process, or ""."""
    return REFUSAL if name == "native" else ""
