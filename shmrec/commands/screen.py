"""Text for people: styled lines and tables on a terminal, the same text plain anywhere else.

Runs in the command-line tools. Nothing is interpreted as markup, and only strings that went
through `wording.safe` may come here. Piped text has no escape sequences, no trailing blanks
and no width that it would be broken at; ``NO_COLOR`` gives the same on a terminal, but for
the width.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final, Protocol

from rich.cells import cell_len
from rich.console import COLOR_SYSTEMS, Console
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

__all__ = ["STYLES", "Part", "Rows", "Screen", "Surface"]

Part = str | tuple[str, str]
"""A piece of text, or one with the name of its style."""
Rows = Sequence[tuple[str, Part]]
"""Names and values."""

STYLES: Final = {
    "bad": Style(color="red", bold=True),
    "warn": Style(color="yellow"),
    "good": Style(color="green"),
    "name": Style(color="cyan"),
    "strong": Style(bold=True),
    "dim": Style(dim=True),
}
_UNBROKEN: Final = 1_000_000
_GAP: Final = 2
"""Blanks between two columns."""
_DEEPER: Final = 2
_WHOLE: Final = 0.6
"""Of the width, what columns may take that are not broken."""
_ROW_ENDS: Final = "\ue000"
"""Stands in a drawn table where a cell on a line of its own goes; no safe text holds it."""


class Surface(Protocol):
    """What reports are printed on: the screen, or a page."""

    terminal: bool

    def heading(self, *parts: Part) -> None:
        """What the lines below are about."""

    def line(self, *parts: Part, indent: int = 0, hang: int = 2) -> None:
        """A line of text; without one, a gap."""

    def pairs(self, rows: Rows, *, indent: int = 0) -> None:
        """Names and values side by side; a name that repeats is shown once."""

    def stream(self, *parts: Part) -> None:
        """A line that is to be copied: unbroken."""

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[Part]], *, indent: int = 0
    ) -> None:
        """Columns, as `Screen.table` has them."""


class _Console(Console):
    """rich's, but for how it ends when its reader goes away: that is `terminal`'s to say."""

    def on_broken_pipe(self) -> None:
        """Called while the `BrokenPipeError` is being handled."""
        raise


class Screen:
    """Standard output."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._console = _Console(
            file=sys.stdout,
            color_system="auto" if not os.environ.get("NO_COLOR") else None,
            width=None if terminal else _UNBROKEN,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self.terminal = terminal
        self._colours = COLOR_SYSTEMS.get(self._console.color_system or "")

    def heading(self, *parts: Part) -> None:
        """A line with a gap before it."""
        self.line()
        self.line(*parts)

    def pairs(self, rows: Rows, *, indent: int = 0) -> None:
        """Names and values side by side; a name that repeats is shown once."""
        wide = max((len(name) for name, _ in rows), default=0)
        before = ""
        for name, value in rows:
            shown = name if name != before or name == "asked for by" else ""
            self.line((f"{shown:<{wide}}", "dim"), "  ", value, indent=indent, hang=wide + 2)
            before = name

    def line(self, *parts: Part, indent: int = 0, hang: int = 2) -> None:
        """A line of text; on a terminal, broken where it ends, with `hang` more blanks."""
        if not parts:
            self.raw("")
        elif not self.terminal:
            self.raw(" " * indent + "".join(self._rendered(part) for part in parts))
        else:
            text = Text()
            for part in parts:
                text.append(part if isinstance(part, str) else part[0], self._style(part))
            # Broken by hand, because every line but the first goes further to the right.
            width = max(20, self._console.width - indent - hang)
            for number, broken in enumerate(text.wrap(self._console, width, overflow="fold")):
                pieces = [
                    piece.style.render(piece.text, color_system=self._colours)
                    if piece.style
                    else piece.text
                    for piece in broken.render(self._console)
                ]
                self.raw(" " * (indent + hang * bool(number)) + "".join(pieces))

    def stream(self, *parts: Part) -> None:
        """One of very many lines: as it is, however long."""
        self.raw("".join(self._rendered(part) for part in parts))

    def raw(self, line: str) -> None:
        """A finished line."""
        sys.stdout.write(f"{line.rstrip()}\n")

    def fits(self, headings: Sequence[str], rows: Sequence[Sequence[Part]], indent: int) -> bool:
        """Whether a table has room for its cells to stay whole."""
        return indent + _natural_width(headings, rows) <= self._console.width

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[Part]], *, indent: int = 0
    ) -> None:
        """Columns; a heading that ends in ``>`` is of numbers, set to the right.

        The last heading may end in ``|``: its cells are never broken. Where they have no room
        beside the others, each has a line of its own below its row.
        """
        alone: list[Part] | None = None
        if headings[-1].endswith("|"):
            headings = [*headings[:-1], headings[-1].removesuffix("|")]
            if not self.fits(headings, rows, indent):
                alone = [row[-1] for row in rows]
                headings, rows = headings[:-1], [row[:-1] for row in rows]
        table = Table(box=None, pad_edge=False, header_style=STYLES["dim"], padding=(0, _GAP, 0, 0))
        unbroken_columns = _unbroken(headings, rows, self._console.width - indent)
        for place, heading in enumerate(headings):
            justify = "right" if heading.endswith(">") else "left"
            table.add_column(
                heading.removesuffix(">"),
                justify=justify,  # type: ignore[arg-type]
                overflow="fold",
                no_wrap=place in unbroken_columns,
            )
        for row in rows:
            cells = [
                Text(cell if isinstance(cell, str) else cell[0], self._style(cell)) for cell in row
            ]
            table.add_row(*cells)
            if alone is not None:
                table.add_row(_ROW_ENDS)
        with self._console.capture() as capture:
            self._console.print(Padding(table, (0, 0, 0, indent)))
        unbroken = iter(alone or ())
        for line in capture.get().removesuffix("\n").split("\n"):
            if _ROW_ENDS in line:
                self.raw(" " * (indent + _DEEPER) + self._rendered(next(unbroken)))
            else:
                self.raw(line)

    def _style(self, part: Part) -> Style:
        return STYLES[part[1]] if isinstance(part, tuple) and part[1] else Style.null()

    def _rendered(self, part: Part) -> str:
        if isinstance(part, str):
            return part
        if self._colours is None:
            return part[0]
        return self._style(part).render(part[0], color_system=self._colours)


def _natural_width(headings: Sequence[str], rows: Sequence[Sequence[Part]]) -> int:
    """The cells that a table takes where nothing is broken."""
    widths = _widths(headings, rows)
    return sum(widths) + _GAP * (len(widths) - 1)


def _unbroken(headings: Sequence[str], rows: Sequence[Sequence[Part]], width: int) -> set[int]:
    """The narrow columns, which stay whole while broad ones can give room."""
    left, found = round(width * _WHOLE), set()
    for column, place in sorted((column, n) for n, column in enumerate(_widths(headings, rows))):
        left -= column + _GAP
        if left < 0:
            break
        found.add(place)
    return found


def _widths(headings: Sequence[str], rows: Sequence[Sequence[Part]]) -> list[int]:
    """The cells that each column takes where nothing is broken."""
    columns = zip([heading.removesuffix(">") for heading in headings], *rows, strict=True)
    return [
        max(cell_len(cell if isinstance(cell, str) else cell[0]) for cell in column)
        for column in columns
    ]
