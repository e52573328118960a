"""The kernel's text files, of this machine or of another's ``/proc``.

Runs in the command-line tools. Whatever a file holds, nothing here raises, and nothing costs
more than a bound: what cannot be read or understood is empty or None.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["content", "hidepid", "table", "to_mask", "to_number"]

PROC: Final = "/proc"
_READ_AT_MOST: Final = 1 << 18
_NUMBER: Final = re.compile(r"[0-9]{1,19}\Z", re.ASCII)
_MASK: Final = re.compile(r"[0-9a-fA-F]{1,32}\Z", re.ASCII)


def content(path: Path) -> str:
    """What the file holds, up to a bound; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_READ_AT_MOST).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def table(text: str) -> dict[str, str]:
    """Lines of a name and a value, as ``/proc`` has them with and without a colon."""
    pairs = (line.split(None, 1) for line in text.splitlines())
    return {pair[0].rstrip(":"): pair[1].strip() for pair in pairs if len(pair) == 2}


def to_number(text: str | None) -> int | None:
    """A number as the kernel writes it, if it is one."""
    return int(text) if text is not None and _NUMBER.match(text) else None


def to_mask(text: str | None) -> int:
    """A set of bits as the kernel writes it, in hexadecimal; 0 if it is none."""
    return int(text, 16) if text is not None and _MASK.match(text) else 0


def hidepid(proc: Path) -> str:
    """The option of the newest mount at `proc`; "0" where there is none, see proc(5)."""
    found = "0"
    for line in content(proc / "self" / "mountinfo").splitlines():
        mount, _, options = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) > 4 and fields[4] == PROC:
            given = re.search(r"(?:\A|[ ,])hidepid=([^, ]*)", options)
            found = given[1] if given else "0"
    return found
