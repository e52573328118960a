"""What a soak saw, drawn: private memory of each process over time, and what is counted.

Needs matplotlib, of the extra `stress`, and only if something is to be drawn.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tools.stress.holdings import Holdings
from tools.stress.tally import Impossible

_LIBRARY = "matplotlib"
_SIZE = 9, 9
_POINTS = 60
_STYLES = "-", "--", ":"


class Drawn(Protocol):
    """A process with what it was seen to hold, as a soak has it."""

    name: str
    times: list[float]
    seen: list[Holdings]


class Shared(Protocol):
    """What the recording took."""

    times: list[float]
    memory: list[int]


def check() -> None:
    """Raise `Impossible` unless something can be drawn here."""
    if importlib.util.find_spec(_LIBRARY) is None:
        raise Impossible(f"--plot needs {_LIBRARY}: install shmrec[stress], or do without --plot")


def draw(path: Path, title: str, lives: Iterable[Drawn], shared: Shared) -> None:
    """Draw it, in the format that the file's name says."""
    check()
    matplotlib: Any = importlib.import_module(_LIBRARY)
    # No display, no date, and the same names every time: the file changes with the samples only.
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "shmrec"
    plots: Any = importlib.import_module(f"{_LIBRARY}.pyplot")
    figure, (memory, counts) = plots.subplots(
        2, 1, sharex=True, figsize=_SIZE, height_ratios=(3, 1)
    )
    for life, style in zip(lives, itertools.cycle(_STYLES), strict=False):
        values = [each.private / 1024 for each in life.seen]
        memory.plot(*_thinned(life.times, values), style, label=life.name, linewidth=1)
        files = [each.descriptors for each in life.seen]
        counts.plot(*_thinned(life.times, files), style, linewidth=1)
    taken = [each / 1024 for each in shared.memory]
    memory.plot(*_thinned(shared.times, taken), "k-", label="the recording itself, shared")
    memory.set_title(f"shmrec soak: {title}")
    memory.set_ylabel("private memory, MiB")
    memory.set_ylim(bottom=0)
    memory.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    counts.set_ylabel("descriptors")
    counts.set_ylim(bottom=0)
    counts.set_xlabel("minutes")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if _svg(path) else {})
    plots.close(figure)


def _svg(path: Path) -> bool:
    return path.suffix.lower() == ".svg"


def _thinned(times: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Few enough points to be read, and to be kept in a repository; in minutes."""
    step = max(1, len(times) // _POINTS)
    return [each / 60 for each in times[::step]], list(values[::step])
