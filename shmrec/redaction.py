"""Which values and names are removed from what was recorded, and what stands in their place.

Runs in tools, under `scrubbing`, which does it to a file. Patterns are a person's; the names and
values that they are held against are hostile: nothing here goes deeper than `_DEPTH`, and what
cannot be looked into is removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final

__all__ = ["DEFAULT_PATTERNS", "MARK", "Patterns", "Rules", "Values", "argument_name"]

DEFAULT_PATTERNS: Final = (
    "path",
    "query",
    "remote_addr",
    "header:*",
    "message",
    "said",
    "reason",
    "*password*",
    "*secret*",
    "*token*",
    "*cookie*",
    "*authorization*",
    "*api_key*",
)
"""What integrations record of people and their requests, and what is secret by its name.

`said` is what an event loop says of a failure; `reason` is also that of the snapshot."""

MARK: Final = "[scrubbed]"
"""What stands where a text was."""

_DEPTH: Final = 32
"""Containers inside each other that are looked into; what is deeper is removed."""


@dataclass(frozen=True)
class Rules:
    """What is to be removed: values of arguments, and names, that match shell patterns.

    Case does not matter. `args` match the names of arguments, and the keys of maps inside of
    them; `names` those of events, spans, counters, threads, loggers, exceptions and processes.
    """

    args: tuple[str, ...] = DEFAULT_PATTERNS
    names: tuple[str, ...] = ()
    stacks: bool = False

    def described(self) -> str:
        """The rules as a note in the file."""
        found = f"scrubbed: values of {', '.join(self.args)}"
        if self.names:
            found += f"; names {', '.join(self.names)}"
        return f"{found}; all stacks" if self.stacks else found


class Patterns:
    """Shell patterns, whatever the case."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        lowered = [(pattern.lower(), pattern) for pattern in self.patterns]
        self.any = bool(lowered)

        # Names are few and come again and again.
        @lru_cache(maxsize=4096)
        def match(name: str) -> str | None:
            name = name.lower()
            return next((given for low, given in lowered if fnmatchcase(name, low)), None)

        self.match = match

    def found(self, name: str, counts: Counter[str]) -> bool:
        """Whether the name matches; counted."""
        pattern = self.match(name)
        if pattern is not None:
            counts[pattern] += 1
        return pattern is not None

    def replaced(self, name: str, counts: Counter[str], short: bool = False) -> str:
        """The name, or what stands in its place."""
        if not self.found(name, counts):
            return name
        return MARK[: 1 if name else 0] if short else MARK


class Values:
    """Values of one batch's arguments."""

    def __init__(self, patterns: Patterns, short: bool, counts: Counter[str]) -> None:
        self._patterns = patterns
        self._text = "" if short else MARK
        self._short = short
        self._counts = counts

    def of(self, key: Any, value: Any, depth: int) -> Any:
        """The value, without what is in it under names that match."""
        if self._patterns.found(_named(key), self._counts):
            return self._marker(value)
        return self._inside(value, depth)

    def _inside(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is not dict and kind is not list:
            return value
        if depth > _DEPTH:
            return self._marker(value)
        if kind is list:
            return [self._inside(item, depth + 1) for item in value]
        return {name: self.of(name, item, depth + 1) for name, item in value.items()}

    def _marker(self, value: Any) -> Any:
        """Something of the same kind, so that whoever reads it finds what he expects."""
        if value is None:
            return None
        if isinstance(value, (bool, int, float)):
            return type(value)(0)
        if type(value) is bytes:
            return self._text.encode()
        if type(value) is list:
            return [] if self._short else [MARK]
        if type(value) is dict:
            return {} if self._short else {MARK: MARK}
        return self._text


def _named(key: Any) -> str:
    """A map's key as a name to be matched, whatever it is."""
    return key.decode("utf-8", "replace") if type(key) is bytes else argument_name(key)


def argument_name(key: Any) -> str:
    """An argument's name as the decoder has it."""
    return key if type(key) is str else str(key)
