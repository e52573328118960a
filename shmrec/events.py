"""The events: one table of kinds.

Producers write them, `decoder` reads them. An event is one msgpack array::

    [kind, delta_ns, field, ...]

`delta_ns` is the time since the previous event of the batch (the first: since the batch's
``start_ns``). The fields are the kind's row; a field in brackets may be absent. ``name``
stands for a number that a NAME event earlier in the same batch has given to a text, so that
every batch decodes without the others.

Invariants:

- Events of one batch are in time order, and batches of one producer too.
- THREAD says whose the events after it are, until the next.
- The preamble, a batch's OPEN events, comes before its first counted event. It names every
  span open when the batch was opened, unless the batch is flagged PARTIAL_PREAMBLE.
- An END carries name and duration, so that its span has a place without its BEGIN.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["KINDS", "Kind", "kind_named"]

NAME_LIMIT: Final = 256
"""Characters of a name; a longer one is cut."""
TEXT_LIMIT: Final = 512
"""Characters of a string argument, bytes of a bytes argument."""
KEY_LIMIT: Final = 64
"""Characters of an argument's name, once arguments take their bounded form."""
ITEMS_LIMIT: Final = 32
"""Items of one container."""
DEPTH_LIMIT: Final = 4
"""Containers inside each other."""
NODES_LIMIT: Final = 128
"""Values in all arguments of an event, counted through all their containers."""
ARGUMENTS_LIMIT: Final = 4096
"""Encoded bytes of an event's arguments; larger ones take their bounded form."""
OPEN_LIMIT: Final = 1 << 14
"""Spans that a writer knows to be open, a power of two; with one more, the older half of them is
forgotten. Who begins spans and ends them not, as where an exception comes between, has a bound."""
PREAMBLE_SHARE: Final = 2
"""A preamble fills at most one part in so many of a batch."""


class Kind(NamedTuple):
    """A row of the table: the number on the wire, and the fields after `delta_ns`."""

    number: int
    name: str
    fields: tuple[str, ...]
    counted: bool
    meaning: str

    def prefix(self, arguments: bool = False) -> bytes:
        """The event's first two bytes: array header and kind."""
        fields = [f for f in self.fields if arguments or not f.startswith("[")]
        return bytes((0x90 | (2 + len(fields)), self.number))


NAME: Final = Kind(0, "name", ("id", "text"), False, "gives a number to a text")
THREAD: Final = Kind(1, "thread", ("id", "name"), False, "the following events' thread")
OPEN: Final = Kind(
    2, "open", ("name", "span", "age_ns", "[args]"), False, "a span open at the batch's start"
)
INSTANT: Final = Kind(3, "instant", ("name", "[args]"), True, "something happened")
BEGIN: Final = Kind(4, "begin", ("name", "span", "[args]"), True, "a span begins")
END: Final = Kind(5, "end", ("name", "duration_ns", "span", "[args]"), True, "a span ends")
COUNTER: Final = Kind(6, "counter", ("name", "value"), True, "a value at a time")
EXCEPTION: Final = Kind(7, "exception", ("name", "[args]"), True, "an exception was seen")
LOG: Final = Kind(8, "log", ("name", "[args]"), True, "a logger of that name said something")

KINDS: Final = (NAME, THREAD, OPEN, INSTANT, BEGIN, END, COUNTER, EXCEPTION, LOG)

_BY_NAME: Final = {kind.name: kind for kind in KINDS}


def kind_named(name: str) -> Kind:
    """The row with that name; KeyError if there is none."""
    return _BY_NAME[name]
