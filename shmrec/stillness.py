"""Which threads have not moved between two dumps of a process's stacks.

Runs in tools. Compares what faulthandler wrote, thread by thread: a thread whose frames are the
same to the line has not moved, or has come back to the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shmrec.manifest import Stack
from shmrec.stack_text import Frame, parse

__all__ = ["Stillness", "find_stillness"]


@dataclass(frozen=True)
class Stillness:
    """A thread that is in both dumps.

    `ident` is as Python has it, `thread` the kernel's id, 0 if it is not known. `frames` are those
    of the later dump, the newest call first, `earlier` those of the one before.
    """

    ident: int
    thread: int
    frames: tuple[Frame, ...]
    earlier: tuple[Frame, ...]

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


def _threads(stack: Stack) -> dict[tuple[int, int], tuple[Frame, ...]]:
    """Each thread's frames, by its ident and the kernel's id; of several dumps the newest's."""
    threads = [thread for dump in parse(stack.text)[-1:] for thread in dump.threads]
    if stack.cut:
        # The last one lacks some of its frames.
        del threads[-1:]
    return {
        (thread.ident, stack.idents.get(thread.ident, 0)): tuple(thread.frames)
        for thread in threads
    }
