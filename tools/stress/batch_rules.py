"""What the batches of one producer must be, byte by byte and one after the other.

Part of the validator: it shares the tables of `events` and `layout` with shmrec and none of its
readers. It runs in a trial, over what `validator` took out of a snapshot.

Invariants that it holds the batches to:

- A batch is whole events and nothing else; it holds as many as its header says. A name has a
  number before it is used, numbers count from 0, and a thread speaks before anything is said.
- Batches with consecutive numbers go on from each other: events without a hole, times and
  generations that never go back, and a preamble that is the spans open at that moment, exactly.
- A span begins once. Its end has its begin before it or in a preamble, under the same name, and
  lasted as long as the times of the two say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

from shmrec import events, layout
from shmrec.events import BEGIN, COUNTER, END, NAME, OPEN, THREAD, Kind
from shmrec.layout import SlotFlag

__all__ = ["Batch", "History", "Said", "Span"]

_KINDS: Final = {kind.number: kind for kind in events.KINDS}
_PAYLOAD_MOST: Final = layout.SLOT_SIZE - layout.SLOT.size
_FLAGS: Final = SlotFlag.SEALED | SlotFlag.END_OF_GENERATION | SlotFlag.PARTIAL_PREAMBLE


class Broken(Exception):
    """The rest of a batch cannot be understood; the message says from where on, and why."""


class Batch(NamedTuple):
    """A batch as the file has it."""

    number: int
    generation: int
    start_ns: int
    first: int
    declared: int
    flags: int
    payload: bytes


class Said(NamedTuple):
    """A counted event. `span` is 0, `value` and `duration_ns` are None where there is none."""

    time_ns: int
    kind: str
    name: str
    thread: int
    thread_name: str
    span: int
    args: dict[str, Any]
    value: Any
    duration_ns: int | None
    generation: int


class Span(NamedTuple):
    """A span that has begun."""

    name: str
    start_ns: int
    thread: int
    thread_name: str
    args: dict[str, Any]


@dataclass
class History:
    """One producer's batches, given to `take` in the order of the file.

    `shaken` says that a signal handler raised in the middle of recording, or that memory ran out:
    then an event may be there whose span nobody knows to be open. `nested` says that events were
    recorded inside other records, whose ends know less well when they began.
    """

    wrong: Callable[[str], None]
    shaken: bool = False
    nested: bool = False
    events: list[Said] = field(default_factory=list)
    open: dict[int, Span] = field(default_factory=dict)
    whole: bool = False
    """Whether `open` is all that is open, rather than what is known of it."""
    _last: Batch | None = None
    _last_ns: int = 0
    _begun: set[int] = field(default_factory=set)

    def take(self, batch: Batch) -> None:
        """The next batch, held against itself and against the one before it."""
        place = f"batch {batch.number}"
        self._check_header(batch, place)
        self._check_place(batch, place)
        try:
            _Reading(self, batch, place).run()
        except Broken as broken:
            self.wrong(f"{place}: {broken}")
            self.whole = False
        self._last = batch

    def _check_header(self, batch: Batch, place: str) -> None:
        if batch.number < 1 or batch.generation < 1 or batch.start_ns < 1 or batch.first < 0:
            self.wrong(f"{place}: number, generation, start or first event is out of range")
        if batch.flags & ~_FLAGS:
            self.wrong(f"{place}: unknown flags {batch.flags:#x}")
        if batch.flags & SlotFlag.END_OF_GENERATION and not batch.flags & SlotFlag.SEALED:
            self.wrong(f"{place}: ends its generation and is not sealed")
        if len(batch.payload) > _PAYLOAD_MOST:
            self.wrong(f"{place}: {len(batch.payload)} bytes do not fit into a slot")

    def _check_place(self, batch: Batch, place: str) -> None:
        last = self._last
        if last is None:
            # Whoever has attached has nothing open; of anybody else the preamble tells.
            self.whole = batch.first == 0
            return
        ends = last.first + last.declared
        if batch.number <= last.number:
            self.wrong(f"{place}: comes after batch {last.number}")
        if batch.generation < last.generation:
            self.wrong(f"{place}: generation {batch.generation} after {last.generation}")
        if batch.start_ns < self._last_ns:
            self.wrong(f"{place}: begins {self._last_ns - batch.start_ns} ns before the last event")
        if batch.first < ends:
            self.wrong(f"{place}: its first event is number {batch.first}, {ends} came before it")
        if not last.flags & SlotFlag.SEALED:
            self.wrong(f"batch {last.number}: a newer one is there and it is not sealed")
        if batch.number != last.number + 1:
            self.whole = False
            self.open = {}
            return
        if batch.first > ends:
            self.wrong(f"{place}: {batch.first - ends} events are missing before it")
        said = bool(last.flags & SlotFlag.END_OF_GENERATION)
        newer = batch.generation > last.generation
        if said != newer and not (said and self.shaken):
            self.wrong(f"batch {last.number}: its flags hide whether its generation ended")


class _Reading:
    """One batch's events."""

    def __init__(self, history: History, batch: Batch, place: str) -> None:
        self._history = history
        self._batch = batch
        self._place = place
        self._now = batch.start_ns
        self._names: list[str] = []
        self._thread: tuple[int, str] | None = None
        self._preamble: dict[int, Span] = {}
        self._counted = 0

    def run(self) -> None:
        batch, history = self._batch, self._history
        for kind, delta, fields in self._values():
            if not kind.counted and delta:
                raise Broken(f"time passes at a {kind.name}")
            self._now += delta
            if kind is NAME:
                self._introduce(*fields)
            elif kind is THREAD:
                self._thread = _whole(fields[0], "a thread's id"), self._name(fields[1])
            elif kind is OPEN:
                self._open(*fields)
            else:
                if not self._counted:
                    self._settle_preamble()
                self._counted += 1
                self._event(kind, fields)
        if not self._counted and batch.payload:
            self._settle_preamble()
        if self._counted != batch.declared:
            history.wrong(f"{self._place}: {self._counted} events, {batch.declared} were declared")
        history._last_ns = self._now

    def _values(self) -> Iterator[tuple[Kind, int, list[Any]]]:
        payload = self._batch.payload
        unpacker = msgpack.Unpacker(max_buffer_size=max(1, len(payload)))
        unpacker.feed(payload)
        while (at := unpacker.tell()) < len(payload):
            try:
                value = unpacker.unpack()
            except msgpack.OutOfData:
                raise Broken(f"ends in the middle of the event at byte {at}") from None
            except (ValueError, msgpack.UnpackException) as error:
                raise Broken(f"byte {at}: {type(error).__name__}: {error}") from error
            if type(value) is not list or len(value) < 2 or type(value[0]) is not int:
                raise Broken(f"byte {at}: not an event")
            kind = _KINDS.get(value[0])
            if kind is None:
                raise Broken(f"byte {at}: unknown kind {value[0]}")
            most = len(kind.fields)
            least = sum(not name.startswith("[") for name in kind.fields)
            if not least <= len(value) - 2 <= most:
                raise Broken(f"byte {at}: {len(value) - 2} fields of a {kind.name}")
            yield kind, _whole(value[1], "a time"), value[2:]

    def _name(self, number: Any) -> str:
        if type(number) is not int or not 0 <= number < len(self._names):
            raise Broken(f"name {number!r} is used before it is given")
        return self._names[number]

    def _introduce(self, number: Any, text: Any) -> None:
        if type(number) is not int or number != len(self._names):
            raise Broken(f"name number {number!r} comes after {len(self._names)} others")
        if type(text) is not str or len(text) > events.NAME_LIMIT:
            raise Broken(f"name {number} is no text, or too long a one")
        if len(text) < events.NAME_LIMIT and text in self._names:
            # Longer ones are cut, and may be alike then.
            raise Broken(f"name {text!r} is given two numbers")
        self._names.append(text)

    def _speaker(self) -> tuple[int, str]:
        if self._thread is None:
            raise Broken("something is said before a thread speaks")
        return self._thread

    def _open(self, name: Any, span: Any, age: Any, args: Any = None) -> None:
        if self._counted:
            raise Broken("a preamble goes on behind the first event")
        begun = self._now - _whole(age, "an age")
        known = Span(self._name(name), begun, *self._speaker(), _arguments(args))
        if _whole(span, "a span's id") in self._preamble:
            raise Broken(f"span {span} is twice in the preamble")
        self._preamble[span] = known

    def _settle_preamble(self) -> None:
        """Hold the preamble against the spans that the batches before it left open."""
        history, found = self._history, self._preamble
        partial = bool(self._batch.flags & SlotFlag.PARTIAL_PREAMBLE)
        if history.whole and not history.shaken:
            for span, known in found.items():
                if history.open.get(span) != known:
                    told = f"{known}, where {history.open.get(span)} was open"
                    history.wrong(f"{self._place}: its preamble has span {span} as {told}")
            missing = sorted(history.open.keys() - found.keys())
            if bool(missing) != partial:
                flagged = "is" if partial else "is not"
                history.wrong(
                    f"{self._place}: {len(missing)} open spans are not in its preamble "
                    f"({missing[:3]}), and it {flagged} flagged partial"
                )
        if not partial:
            history.open = dict(found)
            history.whole = True
        elif not history.whole:
            history.open |= found

    def _event(self, kind: Kind, fields: list[Any]) -> None:
        name = self._name(fields[0])
        thread, thread_name = self._speaker()
        span, value, duration = 0, None, None
        args: dict[str, Any] = {}
        if kind is COUNTER:
            value = fields[1]
        elif kind is BEGIN:
            span, args = _whole(fields[1], "a span's id"), _arguments(*fields[2:])
            self._begin(span, Span(name, self._now, thread, thread_name, args))
        elif kind is END:
            duration, span = _whole(fields[1], "a duration"), _whole(fields[2], "a span's id")
            args = _arguments(*fields[3:])
            self._end(span, name, duration)
        else:
            args = _arguments(*fields[1:])
        self._history.events.append(
            Said(
                self._now, kind.name, name, thread, thread_name, span, args, value, duration,
                self._batch.generation,
            )
        )  # fmt: skip

    def _begin(self, number: int, span: Span) -> None:
        history = self._history
        if number < 1 or number in history._begun or number in history.open:
            history.wrong(f"{self._place}: span {number} begins, and not for the first time")
        history._begun.add(number)
        history.open[number] = span

    def _end(self, number: int, name: str, duration: int) -> None:
        history = self._history
        begun = history.open.pop(number, None)
        if begun is None:
            if history.whole and not history.shaken:
                history.wrong(f"{self._place}: span {number} ends and was not open")
            return
        if begun.name != name:
            history.wrong(f"{self._place}: span {number} began as {begun.name!r}, ends as {name!r}")
        if self._now - begun.start_ns != duration and not history.nested:
            lasted = self._now - begun.start_ns
            history.wrong(f"{self._place}: span {number} took {lasted} ns, it says {duration}")


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise Broken(f"{what} is {value!r}")
    return value


def _arguments(given: Any = None) -> dict[str, Any]:
    if given is None:
        return {}
    if type(given) is not dict or not all(type(key) is str for key in given):
        raise Broken("arguments are not a map of texts to values")
    return given
