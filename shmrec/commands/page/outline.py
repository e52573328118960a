"""What a report prints, kept as blocks that a template makes HTML of.

Runs in ``shmrec-dump report``. Texts are not escaped here: the template does that to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shmrec.commands.screen import Part, Rows

__all__ = ["Block", "Outline", "split"]

Pieces = list[tuple[str, str]]
"""Texts, each with the name of its style or ""."""


@dataclass
class Block:
    """One of: ``heading``, ``line``, ``gap`` (no pieces), ``pairs``, ``copy``, ``table``.

    `rows` are of pairs (name, value) or of a table, whose `headings` say by a ``>`` at their end
    which columns are numbers.
    """

    kind: str
    pieces: Pieces
    indent: int = 0
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[tuple[str, str]]] = ()


class Outline:
    """A surface for reports, whose `blocks` are what was printed."""

    terminal = False

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def heading(self, *parts: Part) -> None:
        """What the blocks below are about."""
        self.blocks.append(Block("heading", split(parts)))

    def line(self, *parts: Part, indent: int = 0, hang: int = 2) -> None:
        """A line of text; without one, a gap."""
        kind = "line" if parts else "gap"
        self.blocks.append(Block(kind, split(parts), indent))

    def pairs(self, rows: Rows, *, indent: int = 0) -> None:
        """Names and values; a name that repeats is kept once."""
        shown, before = [], ""
        for name, value in rows:
            said = name if name != before or name == "asked for by" else ""
            shown.append([(said, ""), *split([value])])
            before = name
        self.blocks.append(Block("pairs", [], indent, rows=shown))

    def stream(self, *parts: Part) -> None:
        """A line to copy."""
        self.blocks.append(Block("copy", split(parts)))

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[Part]], *, indent: int = 0
    ) -> None:
        """Columns."""
        cells = [split(row) for row in rows]
        names = [heading.removesuffix("|") for heading in headings]
        self.blocks.append(Block("table", [], indent, names, cells))


def split(parts: Sequence[Part]) -> Pieces:
    """Every part with its style."""
    return [(part, "") if isinstance(part, str) else part for part in parts]
