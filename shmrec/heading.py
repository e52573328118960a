"""A snapshot's header without the rest of its file, for who looks at many files.

Runs in tools. Costs no more however large the file is, or says it is. What is in it is hostile:
the header is checked as `snapshot_file` does, and what is no header is none.
"""

from __future__ import annotations

import io
import os
from typing import Final

from shmrec import layout
from shmrec.frame_values import HEADER_KEYS, VALUE_ERRORS, fill, unpack
from shmrec.frames import frames
from shmrec.layout import Frame
from shmrec.manifest import Header

__all__ = ["read_header"]

_BYTES: Final = 64 * 1024
"""A header's frame is no larger, but where there were very many notes."""


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """The header, which a file begins with; None if it cannot be had like this. Never raises."""
    header = Header()
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            beginning = file.read(_BYTES)
        if not beginning.startswith(layout.FILE_MAGIC):
            return None
        intact = frames(io.BytesIO(beginning), len(beginning), lambda note: None)
        value = unpack(next(intact, (0, b""))[1])
        if type(value) is not list or len(value) < 2 or value[0] != Frame.HEADER:
            return None
        fill(header, value[1], HEADER_KEYS)
    except (OSError, *VALUE_ERRORS):
        return None
    return header


def _without_waiting(path: str, flags: int) -> int:
    """A pipe of such a name keeps nobody waiting."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
