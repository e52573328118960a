"""What a case of starvation stands on: a place, a tally, and how thorough it is to be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.stress.apart import Mount, apart
from tools.stress.tally import Tally

__all__ = ["Case", "Ground"]

UNFORESEEN: Final = ("Traceback", "unexpected:", "Error in sys", "Exception ignored")
"""What nobody should have to read who only has no memory, disk or descriptor left."""
_LINE_LIMIT: Final = 600


@dataclass
class Ground:
    """Where a case runs. `quick`: a sample of it, for the suite."""

    tally: Tally
    place: Path
    quick: bool = False

    def hold(self, condition: object, what: str) -> bool:
        """Count a check, and fail in those words unless it holds; whether it does."""
        self.tally.count("checks")
        if not condition:
            self.tally.fail(what)
        return bool(condition)

    def one_line(self, told: str | list[str], part: str, where: str) -> bool:
        """Somebody was told once, on one line that can be understood, and it says `part`."""
        lines = [told] if isinstance(told, str) else told
        clear = (
            len(lines) == 1
            and part in lines[0]
            and "\n" not in lines[0]
            and len(lines[0]) <= _LINE_LIMIT
            and not any(each in lines[0] for each in UNFORESEEN)
        )
        return self.hold(clear, f"{where}: not one line that says {part!r}, but {lines}")

    def quiet(self, log: Path, where: str) -> None:
        """Nothing unforeseen was said there."""
        text = log.read_text("utf-8", "replace") if log.exists() else ""
        found = [line for line in text.splitlines() if any(each in line for each in UNFORESEEN)]
        self.hold(not found, f"{where}: {' / '.join(text.splitlines()[-4:])[:800]}")

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty directory of one's own, removed afterwards."""
        with tempfile.TemporaryDirectory(dir=self.place) as made:
            yield Path(made)

    def within(self, case: Callable[[Ground], None], *mounts: Mount) -> None:
        """Run the case where those are mounted, in a process of its own, and count what it did."""

        def counted() -> tuple[dict[str, int], list[str]]:
            ground = Ground(Tally(self.tally.trial, self.tally.seed), self.place, self.quick)
            case(ground)
            return dict(ground.tally.counts), ground.tally.failures

        counts, failures = apart(counted, mounts)
        for what, times in counts.items():
            self.tally.count(what, times)
        # They were printed when they were found.
        self.tally.failures += failures


Case = Callable[[Ground], None]
