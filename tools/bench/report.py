"""One measured figure, and the table of all of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK = "ok"
MISSED = "MISSED"


@dataclass(frozen=True)
class Options:
    """How to measure, and where snapshots may be written."""

    directory: Path
    quick: bool
    verbose: bool
    idle_seconds: float


@dataclass(frozen=True)
class Result:
    """A figure with its ratios to floors of the same run; `target` bounds `judged`.

    `value` is for reading: only the ratios compare between runs. `judged` is the figure that
    the target is about, a ratio or the value itself.
    """

    measurement: str
    case: str
    value: float
    unit: str
    ratios: dict[str, float] = field(default_factory=dict)
    judged: float | None = None
    target: float | None = None
    target_text: str = ""
    notes: str = ""
    details: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`OK`, `MISSED`, or "" where nothing was promised."""
        if self.judged is None or self.target is None:
            return ""
        return OK if self.judged <= self.target else MISSED

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "measurement": self.measurement,
            "case": self.case,
            "value": self.value,
            "unit": self.unit,
            "ratios": self.ratios,
            "judged": self.judged,
            "target": self.target,
            "target_text": self.target_text,
            "verdict": self.verdict,
            "notes": self.notes,
            "details": list(self.details),
        }


_COLUMNS = ("case", "figure", "ratio to floors of this run", "target", "", "notes")


def _rows(results: list[Result]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for result in results:
        ratios = ", ".join(f"{_short(ratio)}x {floor}" for floor, ratio in result.ratios.items())
        rows.append(
            (
                f"{result.measurement}: {result.case}",
                f"{_short(result.value)} {result.unit}",
                ratios,
                result.target_text,
                result.verdict,
                result.notes,
            )
        )
    return rows


def _short(number: float) -> str:
    """Three digits that mean something, never an exponent."""
    size = abs(number)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or not size else 4
    return f"{number:,.{decimals}f}"


def show(machine: dict[str, Any], results: list[Result], *, seconds: float) -> None:
    """Print the table: for people on a terminal, plain columns anywhere else."""
    facts = [f"{key}: {value}" for key, value in machine.items()]
    rows = _rows(results)
    if sys.stdout.isatty():
        _show_rich(facts, rows)
    else:
        _show_plain(facts, rows)
    for result in results:
        for line in result.details:
            print(f"{result.measurement}: {result.case}: {line}")
    missed = sum(result.verdict == MISSED for result in results)
    kept = sum(result.verdict == OK for result in results)
    print(f"{seconds:g} s; targets: {kept} ok, {missed} missed")


def _show_rich(facts: list[str], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for fact in facts:
        console.print(escape(fact), style="dim")
    table = Table()
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column == "figure" else "left")
    for *cells, verdict, notes in rows:
        colour = {OK: "green", MISSED: "bold red"}.get(verdict)
        shown = f"[{colour}]{verdict}[/]" if colour else ""
        table.add_row(*map(escape, cells), shown, escape(notes))
    console.print(table)


def _show_plain(facts: list[str], rows: list[tuple[str, ...]]) -> None:
    print("\n".join(facts), end="\n\n")
    whole = [_COLUMNS, *rows]
    widths = [max(len(row[index]) for row in whole) for index in range(len(_COLUMNS))]
    for row in whole:
        padded = [
            cell.rjust(width) if column == "figure" else cell.ljust(width)
            for cell, width, column in zip(row, widths, _COLUMNS, strict=True)
        ]
        print("  ".join(padded).rstrip())
    print()
