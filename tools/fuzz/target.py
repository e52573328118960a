"""What a target is, and which there are: every module beside this one that has a `check`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

__all__ = ["CORPORA", "Target", "corpus", "targets"]

CORPORA: Final = Path(__file__).resolve().parents[2] / "tests" / "corpora"


class Target(Protocol):
    """What a target's module has.

    May also have `MSGPACK`, where the msgpack values of its inputs begin, and `SANITIZED`, true
    if it exercises the native engine and so wants it built with the sanitizers; and
    `thoroughly`, a `check` that takes longer and is for inputs that are kept.
    """

    HELP: str
    LONGEST: int

    def check(self, data: bytes) -> None: ...

    def seeds(self) -> Iterator[tuple[str, bytes]]: ...


def targets() -> dict[str, Target]:
    """By their names."""
    found: dict[str, Target] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        # Looked for in the text: not every module here can be imported everywhere.
        if "\ndef check(data: bytes)" in path.read_text("utf-8"):
            found[path.stem] = importlib.import_module(f"tools.fuzz.{path.stem}")
    return found


def corpus(name: str) -> list[Path]:
    """The target's inputs that are kept, in order."""
    return sorted(path for path in (CORPORA / name).glob("*") if path.is_file())
