"""The events of a batch, many at a time: the decoder of who reads all of them.

Runs in tools, over snapshot files. `decoder` is the specification. This is its twin for the
batches that a writer writes: it keeps no open spans, and takes a run of events in one loop that
accepts nothing but the usual shapes. Whatever else it meets, it takes no stand on: `decoder`
reads the batch again, from its beginning, and what that says is what counts.

Invariant: the events and the damage are those of `decoder.decode`, whatever the bytes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, repeat
from operator import itemgetter
from typing import Any, Final

import msgpack

from shmrec import events
from shmrec.decoder import MALFORMED, Damage, Event, decode, ends_whole

__all__ = ["WHOLE", "Runs"]

WHOLE: Final = 1 << 16
"""More events than a slot has bytes for."""

# As plain names they are compared in one step. Small numbers are one object each in CPython, so
# that `is` also tells 3 from 3.0 and 1 from True; where it fails to, `decoder` is asked.
_NAME, _THREAD, _OPEN, _INSTANT, _BEGIN, _END, _COUNTER, _EXCEPTION, _LOG = (
    kind.number for kind in events.KINDS
)
_IS_INSTANT, _IS_BEGIN, _IS_END, _IS_COUNTER, _IS_EXCEPTION, _IS_LOG = (
    kind.name for kind in events.KINDS if kind.counted
)
_NAMED: Final = {_INSTANT: _IS_INSTANT, _EXCEPTION: _IS_EXCEPTION, _LOG: _IS_LOG}
_args = itemgetter(Event._fields.index("args"))


class Runs:
    """What a batch's bytes say, in lists of one to `size` events: iterate, once.

    When the iteration is over, `damage` says why decoding stopped early, or is "". Never raises
    for what the bytes hold.
    """

    def __init__(
        self,
        payload: bytes,
        *,
        start_ns: int,
        generation: int,
        flags: int = 0,
        pid: int = 0,
        label: str = "",
        producer: int = 0,
        size: int = WHOLE,
    ) -> None:
        self._payload = payload
        self._start = start_ns
        self._generation = generation
        self._flags = flags
        self._whose = pid, label, producer
        self._size = size
        self.damage = ""

    def __iter__(self) -> Iterator[list[Event]]:
        given = 0
        usual = self._usual()
        while True:
            try:
                run = next(usual, None)
            except MALFORMED:
                break
            if run is None:
                return
            if run:
                given += len(run)
                yield run
        pid, label, producer = self._whose
        decoded = decode(
            self._payload,
            start_ns=self._start,
            generation=self._generation,
            flags=self._flags,
            pid=pid,
            label=label,
            producer=producer,
        )
        rest = islice(decoded, given, None)
        while run := list(islice(rest, self._size)):
            yield run
        self.damage = decoded.damage

    def _usual(self) -> Iterator[list[Event]]:
        """Raises one of `MALFORMED` at anything unusual; what it gave before that stands."""
        # All that the loop looks at is local, and whatever holds for many is checked for many.
        new, event = tuple.__new__, Event
        whole, table, text = int, dict, str
        instant, begin, end, counter, exception, log = (
            _INSTANT, _BEGIN, _END, _COUNTER, _EXCEPTION, _LOG,
        )  # fmt: skip
        generation = self._generation
        pid, label, producer = self._whose
        time_ns = self._start
        names: dict[Any, str] = {}
        thread, thread_name = 0, ""
        args: Any
        unpacker = msgpack.Unpacker(
            use_list=True,
            strict_map_key=False,
            unicode_errors="replace",
            max_buffer_size=len(self._payload) + 1,
        )
        unpacker.feed(self._payload)
        while True:
            rows: list[tuple[Any, ...]] = []
            add = rows.append
            item: Any = None
            for item in islice(unpacker, self._size):
                if type(item) is not list:
                    raise Damage
                number = item[0]
                if number is instant or number is exception or number is log:
                    if len(item) == 4:
                        _, delta, name, args = item
                        if type(args) is not table:
                            raise Damage
                    else:
                        _, delta, name = item
                        args = {}
                    if type(delta) is not whole:
                        raise Damage
                    time_ns += delta
                    kind = _NAMED[number]
                    add(
                        (
                            time_ns, kind, names[name], thread, thread_name, generation,
                            0, args, None, None, pid, label, producer,
                        )
                    )  # fmt: skip
                elif number is end:
                    if len(item) == 6:
                        _, delta, name, duration, span, args = item
                        if type(args) is not table:
                            raise Damage
                    else:
                        _, delta, name, duration, span = item
                        args = {}
                    if (
                        type(delta) is not whole
                        or type(span) is not whole
                        or type(duration) is not whole
                    ):
                        raise Damage
                    time_ns += delta
                    add(
                        (
                            time_ns, _IS_END, names[name], thread, thread_name, generation,
                            span, args, None, duration, pid, label, producer,
                        )
                    )  # fmt: skip
                elif number is begin:
                    if len(item) == 5:
                        _, delta, name, span, args = item
                        if type(args) is not table:
                            raise Damage
                    else:
                        _, delta, name, span = item
                        args = {}
                    if type(delta) is not whole or type(span) is not whole:
                        raise Damage
                    time_ns += delta
                    add(
                        (
                            time_ns, _IS_BEGIN, names[name], thread, thread_name, generation,
                            span, args, None, None, pid, label, producer,
                        )
                    )  # fmt: skip
                elif number is counter:
                    _, delta, name, value = item
                    if type(delta) is not whole:
                        raise Damage
                    time_ns += delta
                    add(
                        (
                            time_ns, _IS_COUNTER, names[name], thread, thread_name, generation,
                            0, {}, value, None, pid, label, producer,
                        )
                    )  # fmt: skip
                elif number is _NAME:
                    _, delta, name, value = item
                    if type(delta) is not whole or type(value) is not text:
                        raise Damage
                    time_ns += delta
                    names[name] = value
                elif number is _THREAD:
                    _, delta, thread, name = item
                    if type(delta) is not whole or type(thread) is not whole:
                        raise Damage
                    time_ns += delta
                    thread_name = names[name]
                elif number is _OPEN:
                    time_ns += self._opened(item, names)
                else:
                    raise Damage
            if item is None:
                break
            # Keys are few and come again and again: the set of them is small.
            keys = set(chain.from_iterable(map(_args, rows)))
            if any(type(key) is not text for key in keys):
                raise Damage
            yield list(map(new, repeat(event), rows))
        if not ends_whole(unpacker):
            raise Damage

    @staticmethod
    def _opened(item: list[Any], names: dict[Any, str]) -> int:
        """The time that an OPEN adds, if it is well-formed."""
        if not 5 <= len(item) <= 6 or (len(item) == 6 and type(item[5]) is not dict):
            raise Damage
        if any(type(item[at]) is not int for at in (1, 3, 4)):
            raise Damage
        names[item[2]]
        delta: int = item[1]
        return delta
