"""A thread's stack as lines of text: newest call first, the application's set apart.

Runs in the command-line tools. Calls of the application are marked with ``>``; of a library's
many, in a summary, those that lead nowhere are summed up by the libraries' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from shmrec.commands.screen import Part
from shmrec.commands.wording import counted, safe, some
from shmrec.stack_text import Frame, ThreadStack

__all__ = ["call", "stack_lines"]

_WIDE: Final = 32
_LIBRARY_RUN: Final = 2
_APPLICATION_RUN: Final = 6
_LIBRARIES_NAMED: Final = 4


def call(frame: Frame) -> str:
    """A call in a line with other things."""
    return f"{safe(frame.function)}  {safe(frame.place)}"


def stack_lines(stack: ThreadStack, most: int = 0) -> list[list[Part]]:
    """The lines; with `most`, so many at most, and libraries' calls summed up.

    There is always one line, which may say that there is no call.
    """
    if not stack.frames:
        return [[("  no call of Python code", "dim")]]
    frames = list(_condensed(stack.frames)) if most else list(stack.frames)
    shown = frames[:most] if most else frames
    calls = [frame for frame in shown if isinstance(frame, Frame)]
    wide = min(_WIDE, max((len(safe(frame.function)) for frame in calls), default=0))
    lines = [_line(frame, wide) for frame in shown]
    hidden = sum(1 if isinstance(each, Frame) else len(each) for each in frames[len(shown) :])
    if hidden:
        lines.append([(f"  and {counted(hidden, 'older call')}", "dim")])
    if stack.cut:
        lines.append([("  and older calls, which were not written", "dim")])
    if stack.garbage_collecting:
        lines.insert(0, [("  collecting garbage, called by", "warn")])
    return lines


def _condensed(frames: Sequence[Frame]) -> Iterator[Frame | list[Frame]]:
    """The calls that tell most, and lists of those between them.

    Where none is the application's, it may well be installed as a library: nothing is summed up.
    """
    if all(frame.library for frame in frames):
        yield from frames
        return
    for library, run in groupby(frames, key=lambda frame: frame.library):
        calls = list(run)
        keep = _LIBRARY_RUN if library else _APPLICATION_RUN
        if len(calls) <= keep + 1:
            yield from calls
        else:
            yield from calls[: keep - 1]
            yield calls[keep - 1 : -1] if not library else calls[keep - 1 :]
            if not library:
                yield calls[-1]


def _line(frame: Frame | list[Frame], wide: int) -> list[Part]:
    if isinstance(frame, list):
        number = counted(len(frame), "call")
        if not frame[0].library:
            return [(f"  {number} of the application between", "dim")]
        names = some(dict.fromkeys(map(_library, frame)), _LIBRARIES_NAMED)
        return [(f"  {number} in {names}", "dim")]
    function = f"{safe(frame.function):<{wide}}"
    if frame.library:
        return [(f"  {function}  {safe(frame.place)}", "dim")]
    return [("> ", "bad"), (function, "strong"), f"  {safe(frame.place)}"]


def _library(frame: Frame) -> str:
    if frame.file.startswith("<frozen "):
        return safe(frame.file[len("<frozen ") : -1].partition(".")[0])
    return safe(re.split(r"[/\\]", frame.place.rpartition(":")[0])[0].removesuffix(".py"))
