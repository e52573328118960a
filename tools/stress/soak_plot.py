"""What a soak saw, drawn: private memory of each process over time, and what is counted.

Needs matplotlib, of the extra `stress`, and only if something is to be drawn.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.stress.soak_samples import Samples
from tools.stress.tally import Impossible

_LIBRARY = "matplotlib"
_SIZE = 9, 9
_POINTS = 60
_STYLES = "-", "--", ":"


def check() -> None:
    """Raise `Impossible` unless something can be drawn here."""
    if importlib.util.find_spec(_LIBRARY) is None:
        raise Impossible(f"--plot needs {_LIBRARY}: install shmrec[stress], or do without --plot")


def draw(path: Path, title: str, samples: Samples) -> None:
    """Draw it, in the format that the file's name says."""
    check()
    matplotlib: Any = importlib.import_module(_LIBRARY)
    # No display, no date, and the same names every time: the file changes with the samples only.
    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "shmrec", "svg.fonttype": "none"})
    plots: Any = importlib.import_module(f"{_LIBRARY}.pyplot")
    figure, (memory, counts) = plots.subplots(
        2, 1, sharex=True, figsize=_SIZE, height_ratios=(3, 1)
    )
    drawn = zip(samples.processes.items(), itertools.cycle(_STYLES), strict=False)
    for (name, series), style in drawn:
        values = [each.private / 1024 for each in series.seen]
        memory.plot(*_thinned(series.times, values), style, label=name, linewidth=1)
        files = [each.descriptors for each in series.seen]
        counts.plot(*_thinned(series.times, files), style, linewidth=1)
    taken = [each / 1024 for each in samples.memory]
    memory.plot(*_thinned(samples.times, taken), "k-", label="the recording itself, shared")
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
