"""A producer that is stopped at a step: what it records, and what it tells of it.

Runs in processes forked by `step_driver`, in the folder of an instrumented build. It records a
sequence that can be checked, events numbered from 0, and tells through a pipe of every call that
has returned. One call, the victim, is the one in which it is stopped; there are victims of every
kind of call, in every state of the ring.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tools.stress.stepping import load_stops

STOPS: Final = load_stops()

from shmrec.layout import ENTRY, SIZE_MASK, SLOT, WORD  # noqa: E402
from shmrec.recorder import Recorder  # noqa: E402
from shmrec.segment import Segment, open_segment  # noqa: E402

__all__ = ["CALLS", "STATES", "Message", "Part", "produce"]

STATES: Final = ("fresh", "middle", "full", "wrapping", "generation")
"""fresh: nothing recorded; middle: in the middle of a batch; full: the event opens the next batch;
wrapping: so it does, in a slot that was used; generation: so it does, being of a newer one."""
CALLS: Final = ("instant", "begin", "end", "counter", "attach", "rejoin", "detach")
"""attach: taking a ring; rejoin: a forked child's first event, which takes one too."""
MORE: Final = 5
"""Events that are recorded each time that more are asked for."""
_PAD: Final = 600
_SMALL: Final = 100

RETURNED, RAISED, MISSED, STARTED, READY, DONE, FAILED, NOTED = range(8)
_MESSAGE: Final = struct.Struct("<iiH")
MESSAGE_SIZE: Final = _MESSAGE.size


class Message(NamedTuple):
    """One word of a producer: `what` is RETURNED and so on, `number` the event's."""

    pid: int
    number: int
    what: int

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        return cls(*_MESSAGE.unpack(raw))


class Interruption(Exception):
    """What the signal handler raises."""


class Part(NamedTuple):
    """What one producer is to do. `stop` -1: nothing; -2: note the stops that are passed."""

    call: str
    state: str
    stop: int = -1
    occurrence: int = 1
    signal: int = 0
    handler: str = ""
    """raise, record or fork: what the handler of SIGUSR1 does."""


def produce(name: str, part: Part, tell_fd: int, orders_fd: int) -> None:
    """The whole life of a producer; to be called in a forked child, which ends with it."""
    code = 1
    try:
        _Producer(name, part, tell_fd, orders_fd).live()
        code = 0
    except BaseException as error:
        os.write(2, f"producer {os.getpid()} {part}: {error!r}\n".encode())
    finally:
        os._exit(code)


class _Producer:
    def __init__(self, name: str, part: Part, tell_fd: int, orders_fd: int) -> None:
        self.name = name
        self.part = part
        self.recorder = Recorder()
        self.segment: Segment | None = None
        self.number = 0
        self.span = 0
        self.inside = False
        self.in_handler = 0
        self._tell_fd = tell_fd
        self._orders_fd = orders_fd

    def live(self) -> None:
        part = self.part
        signal.signal(signal.SIGUSR1, self._handle)
        if part.call != "attach":
            self._join()
            self._prepare()
        self._tell(READY)
        while order := os.read(self._orders_fd, 1):
            if order == b"g":
                self._victim()
                self._tell(DONE)
            elif order == b"m":
                for _ in range(MORE):
                    self._record("instant")
                self._tell(DONE)
            elif order == b"j":
                if not self.recorder.attached:
                    self._join()
                self._tell(DONE)
            else:
                break
        self.recorder.detach()

    def _join(self) -> None:
        self.segment = open_segment(self.name)
        self.recorder.join(self.segment, f"n{os.getpid()}", exceptions=False)

    def _tell(self, what: int, number: int = 0) -> None:
        os.write(self._tell_fd, _MESSAGE.pack(os.getpid(), number, what))

    # The sequence.

    def _record(self, call: str, pad: int = 0, name: str = "tick") -> None:
        """The next event of the sequence, told of when its call has returned."""
        number = self.number
        self.number += 1
        args: dict[str, Any] = {"n": number}
        if pad:
            args |= {"pad": "x" * (pad // 2), "more": "y" * (pad // 2)}
        self.inside = True
        try:
            if call == "instant":
                self.recorder.instant(name, **args)
            elif call == "begin":
                self.span = self.recorder.begin(name, **args)
            elif call == "end":
                self.recorder.end(self.span, **args)
            else:
                self.recorder.counter(name, number)
        except Interruption:
            self._tell(RAISED, number)
        else:
            self._tell(RETURNED, number)
        self.inside = False
        for _ in range(self.in_handler):
            self._tell(RETURNED, self.number)
            self.number += 1
        self.in_handler = 0

    def _prepare(self) -> None:
        """Bring the ring into the state."""
        state = self.part.state
        if state == "fresh":
            return
        self._record("begin", name="held")
        self._record("begin", name="work")
        for _ in range(10):
            self._record("instant")
        if state == "wrapping":
            while self._opening() < self._slots() + 2:
                self._record("instant", pad=_PAD)
        if state in ("full", "wrapping"):
            # The victim is padded too, and finds no room.
            while self._room() >= _PAD:
                self._record("instant", pad=_PAD if self._room() > 2 * _PAD + _SMALL else 0)

    def _entry(self) -> int:
        assert self.segment is not None
        index: int = self.recorder._index
        return self.segment.geometry.entry(index)

    def _slots(self) -> int:
        assert self.segment is not None
        return self.segment.geometry.slots

    def _opening(self) -> int:
        assert self.segment is not None
        return self.segment.words[ENTRY.word("opening", self._entry())]

    def _room(self) -> int:
        """Bytes left in the newest batch."""
        assert self.segment is not None
        geometry = self.segment.geometry
        at = geometry.ring(self.recorder._index)
        at += (self._opening() - 1) % geometry.slots * geometry.slot_size
        committed = self.segment.words[(at + SLOT["committed"]) // WORD]
        return geometry.payload_size - (committed & SIZE_MASK)

    # The victim.

    def _victim(self) -> None:
        part = self.part
        call: Callable[[], None]
        if part.call == "attach":
            call = self._attach
        elif part.call == "detach":
            call = self._detach
        elif part.call == "rejoin":
            self._as_a_child()
            return
        else:
            padded = part.state in ("full", "wrapping")
            name = "victim" if part.call in ("begin", "counter") else "tick"

            def call() -> None:
                self._record(part.call, _PAD if padded else 0, name)

        self._stoppable(call)

    def _stoppable(self, call: Callable[[], None]) -> None:
        part = self.part
        if part.stop == -2:
            STOPS.watch()
        elif part.stop >= 0:
            STOPS.arm(part.stop, part.occurrence, part.signal)
        call()
        if part.stop == -2:
            for number in STOPS.noted():
                self._tell(NOTED, number)
        elif part.stop >= 0 and not STOPS.disarm():
            self._tell(FAILED, part.stop)

    def _attach(self) -> None:
        with contextlib.suppress(Interruption):
            self.recorder = Recorder()
            self._join()

    def _detach(self) -> None:
        with contextlib.suppress(Interruption):
            self.recorder.detach()

    def _as_a_child(self) -> None:
        """Fork; the child is the one that is stopped, in its first event."""
        child = os.fork()
        if child:
            self._tell(STARTED, child)
            # Orders are the child's, as long as there is one.
            os.waitpid(child, 0)
            return
        self.number = 0
        self._stoppable(lambda: self._record("instant"))

    def _handle(self, number: int, frame: object) -> None:
        """The application's signal handler."""
        handler = self.part.handler
        if handler == "raise":
            raise Interruption
        if handler == "record":
            known = self.recorder.attached
            self.recorder.instant("handler", n=self.number + self.in_handler)
            if known:
                self.in_handler += 1
            elif self.part.call == "rejoin":
                self._tell(MISSED)
            if not self.inside:
                # Before there was a ring it went nowhere.
                for _ in range(self.in_handler):
                    self._tell(RETURNED, self.number)
                    self.number += 1
                self.in_handler = 0
        elif handler == "fork":
            child = os.fork()
            if child:
                self._tell(STARTED, child)
                os.waitpid(child, 0)
                return
            self.number = 0
            for _ in range(MORE):
                # In the middle of attaching or detaching it is no producer.
                if self.part.call not in ("attach", "detach"):
                    self._record("instant")
            self.recorder.detach()
            os._exit(0)
