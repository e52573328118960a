"""The native engine's writers, for tests that are about them.

For tests of the extension itself: unlike `arena`'s, these writers have the real clock, and so
take the paths that an application's do.
"""

from __future__ import annotations

import os
from typing import Any

from shmrec.extension import EXTENSION

from .arena import Arena

SANITIZED = bool(os.environ.get("SHMREC_SANITIZED"))
"""Whether this is the sanitizers' run, which `tools/sanitize` makes: everything takes longer."""


def a_writer(arena: Arena, **options: Any) -> Any:
    """A writer with the real clock, in the arena's ring."""
    assert EXTENSION is not None
    writer = EXTENSION.Writer(**options)
    rebind(writer, arena)
    return writer


def rebind(writer: Any, arena: Arena, **other: Any) -> None:
    places = {
        "entry": arena.entry,
        "ring": arena.geometry.ring(0),
        "slot_size": arena.geometry.slot_size,
        "slots": arena.geometry.slots,
    }
    writer.bind(arena.view, arena.words, **{**places, **other})
