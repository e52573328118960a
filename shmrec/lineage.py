"""Which span caused which, where a program says so: the arrows between processes.

Runs in whoever reads a snapshot. The events know no parents; a span's arguments may name one:

- ``parent=`` a span of the same process, as ``begin`` returned it, or ``"PID/SPAN"`` of another
  one, or the 16 hexadecimal digits of another's ``span_id=``;
- ``traceparent=``, or ``header:traceparent=`` as gunicorn's integration records that header: W3C
  Trace Context, whose parent-id is another span's ``span_id=``.

``span_id=`` and ``trace_id=`` are what a span is called outside of shmrec (16 and 32 digits).
What names no span of the snapshot, or is none of this, is an argument like any other.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

__all__ = ["Key", "Lineage", "Named", "named_parent", "span_id", "trace_id"]

PARENT: Final = "parent"
TRACE_PARENTS: Final = ("traceparent", "header:traceparent")
SPAN_ID: Final = "span_id"
TRACE_ID: Final = "trace_id"

_OTHER: Final = re.compile(r"([0-9]{1,10})/([0-9]{1,20})\Z")
_SPAN: Final = re.compile(r"(?!0{16})[0-9a-f]{16}\Z")
_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}\Z")
_W3C: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?\Z"
)
_LINKS: Final = 1 << 17
"""Parents that are looked for; a snapshot that names more shows arrows for the first ones."""

Key = tuple[int, int]
"""A span: its process by its place in the snapshot, and how many of that began before it."""


class Named(NamedTuple):
    """What an argument calls a parent: `span` of process `pid` (0: the same one), or `known_as`."""

    pid: int = 0
    span: int = 0
    known_as: str = ""


def named_parent(args: Mapping[str, Any]) -> Named | None:
    """The parent that a span's arguments name, if they do."""
    value = args.get(PARENT)
    if type(value) is int and value > 0:
        return Named(span=value)
    if type(value) is str:
        other = _OTHER.match(value)
        if other is not None:
            return Named(pid=int(other[1]), span=int(other[2]))
        if _SPAN.match(value):
            return Named(known_as=value)
    found = _trace_context(args)
    return Named(known_as=found[1]) if found is not None else None


def span_id(args: Mapping[str, Any]) -> str:
    """What a span is called outside of shmrec; "" if it does not say."""
    value = args.get(SPAN_ID)
    return value if type(value) is str and _SPAN.match(value) else ""


def trace_id(args: Mapping[str, Any]) -> str:
    """The trace that a span says it belongs to, or ""."""
    value = args.get(TRACE_ID)
    if type(value) is str and _TRACE.match(value):
        return value
    found = _trace_context(args)
    return found[0] if found is not None else ""


def _trace_context(args: Mapping[str, Any]) -> tuple[str, str] | None:
    for name in (PARENT, *TRACE_PARENTS):
        value = args.get(name)
        if type(value) is str:
            found = _W3C.match(value.strip().lower())
            if found is not None:
                return found[1], found[2]
    return None


class Lineage:
    """The parents of a snapshot's spans: filled span by span, then `settle`d once.

    `parents` leads from a span to its parent; `links` gives each pair of two processes a number,
    by the child; `outgoing` lists the numbers by the parent.
    """

    def __init__(self) -> None:
        self.parents: dict[Key, Key] = {}
        self.links: dict[Key, int] = {}
        self.outgoing: dict[Key, list[int]] = {}
        self._wanted: list[tuple[Key, int, Named]] = []
        self._known_as: dict[str, Key] = {}

    def add(self, key: Key, pid: int, args: Mapping[str, Any]) -> None:
        """A span of process `pid` and its arguments."""
        own = span_id(args)
        if own and len(self._known_as) < _LINKS:
            self._known_as.setdefault(own, key)
        named = named_parent(args)
        if named is not None and len(self._wanted) < _LINKS:
            self._wanted.append((key, pid, named))

    def settle(self, histories: Iterable[tuple[int, int, array[int]]]) -> None:
        """Find the parents. Of each process: its place, its pid, its spans' numbers in order."""
        wanted = {
            (named.pid, named.span) if named.pid else (-1 - key[0], named.span)
            for key, _, named in self._wanted
            if named.span
        }
        found: dict[tuple[int, int], Key] = {}
        pids = {whose for whose, _ in wanted}
        for place, pid, spans in histories:
            for whose in {pid, -1 - place} & pids:
                for ordinal, span in enumerate(spans):
                    if (whose, span) in wanted:
                        found.setdefault((whose, span), (place, ordinal))
        for key, _, named in self._wanted:
            if named.known_as:
                parent = self._known_as.get(named.known_as)
            else:
                whose = named.pid if named.pid else -1 - key[0]
                parent = found.get((whose, named.span))
            if parent is None or parent == key:
                continue
            self.parents[key] = parent
            if parent[0] != key[0]:
                self.links[key] = number = len(self.links) + 1
                self.outgoing.setdefault(parent, []).append(number)
        self._wanted.clear()
        self._known_as.clear()
