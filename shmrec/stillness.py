"""Which threads have not moved between two dumps of a process's stacks.

Runs in tools. Compares what faulthandler wrote, thread by thread, as text: a thread whose frames
are the same to the line has not moved, or has come back to the same place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shmrec.manifest import Stack

__all__ = ["Stillness", "find_stillness"]

# faulthandler's heading of a thread; later versions of Python put a name behind the ident.
_THREAD: Final = re.compile(r"(?:Current thread|Thread) 0x([0-9a-fA-F]{1,16})\b")
_FRAME: Final = "  "


@dataclass(frozen=True)
class Stillness:
    """A thread that is in both dumps.

    `ident` is as Python has it, `thread` the kernel's id, 0 if it is not known. `frames` are the
    lines of the later dump, the newest call first, `earlier` those of the one before.
    """

    ident: int
    thread: int
    frames: tuple[str, ...]
    earlier: tuple[str, ...]

    @property
    def moved(self) -> bool:
        """Whether the frames differ."""
        return self.frames != self.earlier


def find_stillness(before: Sequence[Stack], after: Sequence[Stack]) -> list[Stillness]:
    """The threads that are in the newest dump of each, in the order of the later one.

    Empty where one has no dump, or both have the same: that says nothing.
    """
    if not before or not after:
        return []
    then, now = (max(stacks, key=lambda stack: stack.taken_ns) for stacks in (before, after))
    if then.taken_ns == now.taken_ns:
        return []
    earlier = _threads(then)
    return [
        Stillness(ident, thread, frames, earlier[ident, thread])
        for (ident, thread), frames in _threads(now).items()
        if frames and earlier.get((ident, thread))
    ]


def _threads(stack: Stack) -> dict[tuple[int, int], tuple[str, ...]]:
    """Each thread's frames, by its ident and the kernel's id."""
    found: dict[tuple[int, int], tuple[str, ...]] = {}
    frames: list[str] | None = None
    whose = 0, 0
    for line in stack.text.splitlines():
        heading = _THREAD.match(line)
        if heading is not None or not line.startswith(_FRAME):
            if frames is not None:
                found.setdefault(whose, tuple(frames))
            frames = None
        if heading is not None:
            ident = int(heading[1], 16)
            whose, frames = (ident, stack.idents.get(ident, 0)), []
        elif frames is not None:
            frames.append(line.strip())
    # The last thread of a dump that was cut off lacks some of its frames.
    if frames is not None and not stack.cut:
        found.setdefault(whose, tuple(frames))
    return found
