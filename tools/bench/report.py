"""One measured figure, and the table of all of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRIZE = "prize"
OK = "ok"
MISSED = "missed"
NOT_MEASURED = "not measured"


class NotMeasuredError(Exception):
    """What a figure needs is not on this machine; the message says what."""


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

    `value` is for reading: only the ratios compare between runs; it is None where `notes` say
    why there is none. `judged` is the figure that the target is about, a ratio or the value
    itself, None where a floor that it needs could not be measured. `prize` is a better figure
    than `target`.
    """

    measurement: str
    case: str
    value: float | None
    unit: str
    ratios: dict[str, float] = field(default_factory=dict)
    judged: float | None = None
    target: float | None = None
    target_text: str = ""
    prize: float | None = None
    prize_text: str = ""
    notes: str = ""
    details: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One of the words above, or "" where nothing was promised."""
        if self.value is None:
            return NOT_MEASURED
        if self.target is None:
            return ""
        if self.judged is None:
            return NOT_MEASURED
        if self.prize is not None and self.judged <= self.prize:
            return PRIZE
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
            "prize": self.prize,
            "prize_text": self.prize_text,
            "verdict": self.verdict,
            "notes": self.notes,
            "details": list(self.details),
        }


_COLUMNS = (
    "case",
    "figure",
    "ratio to floors of this run",
    "target",
    "prize",
    "verdict",
    "notes",
)


def _rows(results: list[Result]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for result in results:
        ratios = ", ".join(f"{_short(ratio)}x {floor}" for floor, ratio in result.ratios.items())
        rows.append(
            (
                f"{result.measurement}: {result.case}",
                "-" if result.value is None else f"{_short(result.value)} {result.unit}",
                ratios,
                result.target_text,
                result.prize_text,
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
    verdicts = [result.verdict for result in results if result.target is not None]
    counts = [f"{verdicts.count(each)} {each}" for each in (PRIZE, OK, MISSED, NOT_MEASURED)]
    print(f"{seconds:g} s; targets: {', '.join(counts)}")


_COLOURS = {PRIZE: "bold green", OK: "green", MISSED: "bold red", NOT_MEASURED: "yellow"}


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
    measurement = ""
    for case, *cells, verdict, notes in rows:
        if measurement and not case.startswith(measurement):
            table.add_section()
        measurement = case.partition(":")[0] + ":"
        colour = _COLOURS.get(verdict)
        shown = f"[{colour}]{verdict}[/]" if colour else ""
        table.add_row(escape(case), *map(escape, cells), shown, escape(notes))
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
