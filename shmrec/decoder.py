"""The decoder of a batch's bytes: the other half of `batch`.

Runs in whoever reads: the collector, tools, tests. What it reads is hostile until checked: a
batch never raises, costs memory beyond its own size, or sends the reader in a circle; what
cannot be understood ends the batch, with the reason in `Decoded.damage`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

from shmrec import events
from shmrec.events import BEGIN, COUNTER, END, NAME, OPEN, THREAD
from shmrec.layout import SlotFlag

__all__ = ["Damage", "Decoded", "Event", "OpenSpan", "decode"]

MALFORMED: Final = (ValueError, TypeError, LookupError, OverflowError, msgpack.UnpackException)
"""What reading bytes that no writer writes may raise."""

_NIL: Final = msgpack.packb(None)


class _Fields(NamedTuple):
    time_ns: int
    kind: str
    name: str
    thread: int
    thread_name: str
    generation: int
    span: int
    args: dict[str, Any]
    value: Any
    duration_ns: int | None
    pid: int
    label: str
    producer: int


class Event(_Fields):
    """One recorded event, as a reader sees it.

    `time_ns` is CLOCK_MONOTONIC, `kind` a name from `KINDS`, `thread` the kernel's thread id.
    `span` is 0 where the kind has none; `value` is a counter's; `duration_ns` an end's.
    A tuple, because millions are made: nothing with so many fields is made faster.
    """

    __slots__ = ()

    def __new__(
        cls,
        time_ns: int,
        kind: str,
        name: str,
        thread: int,
        thread_name: str,
        generation: int,
        span: int = 0,
        args: dict[str, Any] | None = None,
        value: Any = None,
        duration_ns: int | None = None,
        pid: int = 0,
        label: str = "",
        producer: int = 0,
    ) -> Event:
        """An event; `args` are a dictionary of its own where none is given."""
        return tuple.__new__(
            cls,
            (
                time_ns,
                kind,
                name,
                thread,
                thread_name,
                generation,
                span,
                {} if args is None else args,
                value,
                duration_ns,
                pid,
                label,
                producer,
            ),
        )


@dataclass(slots=True)
class OpenSpan:
    """A span that had begun and not ended when its producer was last heard of."""

    span: int
    name: str
    thread: int
    thread_name: str
    start_ns: int
    args: dict[str, Any] = field(default_factory=dict)


class Damage(ValueError):
    """A batch whose bytes are not what a writer writes; what came before stands."""


class Decoded:
    """What a batch's bytes say, event by event.

    Iterate to get the counted events in order. `open` holds, at any point of the iteration,
    the spans known to be open; give the set of the producer's previous batch to carry it on.
    `preamble` is what the batch itself said was open when it began, whole once there is an event.
    `damage` says why decoding stopped early, or is "".
    """

    def __init__(
        self,
        payload: bytes | memoryview,
        *,
        start_ns: int,
        generation: int,
        flags: int = 0,
        open_spans: dict[int, OpenSpan] | None = None,
        pid: int = 0,
        label: str = "",
        producer: int = 0,
    ) -> None:
        self._payload = payload
        self._whose = pid, label, producer
        self._time = start_ns
        self._generation = generation
        self.open: dict[int, OpenSpan] = open_spans if open_spans is not None else {}
        self.preamble: list[OpenSpan] = []
        self._whole_preamble = not flags & SlotFlag.PARTIAL_PREAMBLE
        self.damage = ""

    def __iter__(self) -> Iterator[Event]:
        try:
            yield from self._events()
        except MALFORMED as error:
            self.damage = f"undecodable after {self._time} ns: {type(error).__name__}: {error}"

    def _events(self) -> Iterator[Event]:
        unpacker = msgpack.Unpacker(
            use_list=True,
            strict_map_key=False,
            unicode_errors="replace",
            max_buffer_size=len(self._payload) + len(_NIL),
        )
        unpacker.feed(self._payload)
        names: dict[int, str] = {}
        thread, thread_name = 0, ""
        generation = self._generation
        preamble: dict[int, OpenSpan] | None = {} if self._whole_preamble else None
        for item in unpacker:
            if type(item) is not list or len(item) < 2:
                raise Damage("an event is not an array of kind, time and fields")
            number, delta, *fields = item
            if type(number) is not int or type(delta) is not int:
                raise Damage("an event's kind or time is not a number")
            self._time += delta
            if number == NAME.number:
                key, text = fields
                names[key] = _checked(text, str)
                continue
            if number == THREAD.number:
                thread, thread_name = _checked(fields[0], int), names[fields[1]]
                continue
            if number == OPEN.number:
                name, span, age = names[fields[0]], _checked(fields[1], int), fields[2]
                begun = self._time - _checked(age, int)
                args = _arguments(fields, 3)
                opened = OpenSpan(span, name, thread, thread_name, begun, args)
                self.preamble.append(opened)
                if preamble is None:
                    self.open.setdefault(span, opened)
                else:
                    preamble[span] = opened
                continue
            if preamble is not None:
                # The preamble is the truth: spans that ended in a lost batch are not open.
                self.open.clear()
                self.open.update(preamble)
                preamble = None
            span, value, duration = 0, None, None
            args = {}
            if number == BEGIN.number:
                kind, name = BEGIN.name, names[fields[0]]
                span, args = _checked(fields[1], int), _arguments(fields, 2)
                self.open[span] = OpenSpan(span, name, thread, thread_name, self._time, args)
            elif number == END.number:
                kind, name = END.name, names[fields[0]]
                duration = _checked(fields[1], int)
                span, args = _checked(fields[2], int), _arguments(fields, 3)
                self.open.pop(span, None)
            elif number == COUNTER.number:
                kind, name = COUNTER.name, names[fields[0]]
                value = fields[1]
            elif number < len(events.KINDS) and number >= 0:
                kind, name = events.KINDS[number].name, names[fields[0]]
                args = _arguments(fields, 1)
            else:
                raise Damage(f"unknown kind of event {number}")
            yield Event(
                self._time, kind, name, thread, thread_name, generation,
                span, args, value, duration, *self._whose,
            )  # fmt: skip
        if preamble is not None:
            self.open.clear()
            self.open.update(preamble)
        if not ends_whole(unpacker):
            raise Damage("the bytes at the end are not a whole event")


def ends_whole(unpacker: msgpack.Unpacker) -> bool:
    """Whether an unpacker that has nothing more to give has come to the end of a value.

    Its position does not tell: in C, bytes of an incomplete value count as consumed. Where one is
    complete, a nil that is added comes out again.
    """
    unpacker.feed(_NIL)
    try:
        return unpacker.unpack() is None
    except msgpack.OutOfData:
        return False


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Damage(f"a field is {type(value).__name__}, not {kind.__name__}")
    return value


def _arguments(fields: list[Any], index: int) -> dict[str, Any]:
    if len(fields) <= index:
        return {}
    found = _checked(fields[index], dict)
    return found if all(type(key) is str for key in found) else {str(k): found[k] for k in found}


def decode(
    payload: bytes | memoryview,
    *,
    start_ns: int,
    generation: int,
    flags: int = 0,
    open_spans: dict[int, OpenSpan] | None = None,
    pid: int = 0,
    label: str = "",
    producer: int = 0,
) -> Decoded:
    """Read one batch of that producer; see `Decoded`. Never raises for what the bytes hold."""
    return Decoded(
        payload,
        start_ns=start_ns,
        generation=generation,
        flags=flags,
        open_spans=open_spans,
        pid=pid,
        label=label,
        producer=producer,
    )
