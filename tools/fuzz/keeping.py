"""Chooses which inputs are kept in ``tests/corpora``: those that cover what no other does.

Lines of shmrec's Python and the ways between them count, followed without a fuzzer, so that the
choice is the same on every machine. Short inputs come first.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

import shmrec
from tools.fuzz.target import CORPORA, Target, corpus

__all__ = ["chosen", "keep"]

_PACKAGE: Final = str(Path(shmrec.__file__).parent)
_MOST_BYTES: Final = 192 << 10
"""Of one target's corpus."""
_LONGEST: Final = 8 << 10
"""A longer input is not kept: it can be had again."""

Way = tuple[str, str, int, int]


def keep(name: str, target: Target, found: Path) -> int:
    """Add to the target's corpus those of the inputs in `found` that it lacks; how many."""
    there = corpus(name)
    inputs = {path.name: path.read_bytes() for path in found.iterdir() if path.is_file()}
    inputs = {key: data for key, data in inputs.items() if len(data) <= _LONGEST}
    room = _MOST_BYTES - sum(path.stat().st_size for path in there)
    kept = 0
    for data in chosen(target, [path.read_bytes() for path in there], inputs).values():
        room -= len(data)
        if room < 0:
            break
        (CORPORA / name / f"found-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
        kept += 1
    return kept


def chosen(target: Target, there: Iterable[bytes], inputs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of the inputs, short ones first, that go ways that none before them goes."""
    seen: set[Way] = set()
    # Once unseen: what is done but once in a process is no input's.
    for data in [*there, *there]:
        seen |= _ways(target, data)
    found = {}
    for name, data in sorted(inputs.items(), key=lambda item: (len(item[1]), item[0])):
        ways = _ways(target, data)
        if not ways <= seen:
            seen |= ways
            found[name] = data
    return found


def _ways(target: Target, data: bytes) -> set[Way]:
    """Pairs of lines that follow each other in a call."""
    ways: set[Way] = set()

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            return None
        file, name, last = code.co_filename, code.co_qualname, 0

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "line":
                ways.add((file, name, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        target.check(data)
    finally:
        sys.settrace(before)
    return ways
