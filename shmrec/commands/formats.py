"""The formats of ``shmrec-dump export``: each module of `shmrec.exports` is one, found by its name.

Runs in ``shmrec-dump``.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

from shmrec import exports
from shmrec.exporting import Out, Source

__all__ = ["Format", "by_suffix", "described", "format_named", "names"]


@dataclass(frozen=True)
class Format:
    """A format by its name; what else it says is in its module, see `exporting`."""

    name: str
    module: ModuleType

    @property
    def help(self) -> str:
        return str(self.module.HELP)

    @property
    def suffixes(self) -> tuple[str, ...]:
        return tuple(self.module.SUFFIXES)

    @property
    def binary(self) -> bool:
        return bool(self.module.BINARY)

    @property
    def companion(self) -> str:
        """The end of the name of the file that holds the second part; "" if there is none."""
        return str(getattr(self.module, "COMPANION", ""))

    def export(self, source: Source, out: Out) -> None:
        self.module.export(source, out)

    def export_companion(self, source: Source, out: Out) -> None:
        self.module.export_companion(source, out)

    def companion_of(self, output: Path) -> Path:
        """The second part's file beside `output`."""
        name = output.name
        end = next((each for each in self.suffixes if name.lower().endswith(each)), "")
        return output.with_name(f"{name[: len(name) - len(end)]}{self.companion}")


@cache
def names() -> tuple[str, ...]:
    """What formats there are."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(exports.__path__)))


@cache
def format_named(name: str) -> Format:
    """The format of that name, which is one of `names`."""
    return Format(name, importlib.import_module(f"{exports.__name__}.{name}"))


def by_suffix(output: Path) -> Format | None:
    """The format that a file's name means by its end, the longest that is known."""
    ends = [(len(end), end, name) for name in names() for end in format_named(name).suffixes]
    for _, end, name in sorted(ends, reverse=True):
        if output.name.lower().endswith(end):
            return format_named(name)
    return None


_INDENT: Final = 2


def described() -> str:
    """The formats, a line each, for a help text."""
    found = [format_named(name) for name in names()]
    wide = max(len(each.name) for each in found)
    ends = [each.suffixes[0] for each in found]
    end_wide = max(map(len, ends))
    return "\n".join(
        f"{' ' * _INDENT}{each.name:<{wide}}  {end:<{end_wide}}  {each.help}"
        for each, end in zip(found, ends, strict=True)
    )
