"""The stage of one schedule: a recording, its collector or none, and producers that obey.

Runs in `step_driver`, in the folder of an instrumented build. Everybody is forked from here, and
with the stage everybody is gone, and every trace of the recording.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from shmrec import ledger, naming, process, requests
from shmrec.collector import Collector
from shmrec.layout import Geometry, Verb
from shmrec.segment import Segment, create, open_segment
from shmrec.takeover import Settings, establish, recover
from shmrec.wakeup import open_wakeup, remove_wakeup
from tools.stress import stepped_producer
from tools.stress.sequence import Told
from tools.stress.stepped_producer import MESSAGE_SIZE, Message, Part

__all__ = ["Actor", "Broken", "Stage"]

DEADLINE: Final = 0.03
"""Seconds that a flush waits for a producer here."""
_PATIENCE_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.0002


class Broken(Exception):
    """Something did not come about that has to."""


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it; `Broken` if it does not come about."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise Broken(f"not within {_PATIENCE_SECONDS:g} s: {what}")
        time.sleep(_POLL_SECONDS)


class Actor:
    """A producer as the stage sees it. Of one whose forked child is the victim, `pid` is that."""

    def __init__(self, pid: int, orders: int) -> None:
        self.first = self.pid = pid
        self._orders = orders

    def order(self, letter: bytes) -> None:
        """Have it do something: see `stepped_producer`."""
        os.write(self._orders, letter)

    @property
    def state(self) -> str:
        """The kernel's letter; "" when it is gone."""
        found = process.stat(self.pid)
        return "" if found is None or found.state in "ZX" else found.state

    def close(self) -> None:
        os.close(self._orders)
        for pid in {self.pid, self.first}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.first, 0)


class Stage:
    """Use as a context manager. `live`: with a collector process; else memory is read cold."""

    def __init__(self, name: str, *, live: bool, rings: int, scratch: Path) -> None:
        self.name = name
        self.live = live
        self.directory = Path(tempfile.mkdtemp(dir=scratch))
        self.actors: list[Actor] = []
        self.told: dict[int, Told] = {}
        self.noted: list[int] = []
        self._events: dict[int, list[Message]] = {}
        self._read, self._write = os.pipe()
        self.collector = 0
        if live:
            self.start_collector(rings)
        else:
            create(name, Geometry.of(0, rings), keep_size=1 << 30, keep_period_ns=1 << 60).close()
        self.segment: Segment = open_segment(name)
        self._wakeup = open_wakeup(self.segment)

    def start_collector(
        self,
        rings: int,
        *,
        first: Callable[[], None] = lambda: None,
        serving: Callable[[], None] = lambda: None,
        last: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> bool:
        """A collector process that serves or, whatever came `first`, does not; whether it does.

        It calls `first` before it has the recording, `serving` when it serves, `last` at its end.
        """
        ready, said = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(ready)
                first()
                wanted = Settings(
                    self.name,
                    self.directory,
                    period=1e9,
                    producers=rings,
                    deadline=DEADLINE,
                    death_interval=0.0,
                    **{"size": 0, **settings},
                )
                segment = establish(wanted)
                # What is kept is not what is tried here. A collector remembers what it was.
                segment.set_word("keep_size", 1 << 30)
                collector = Collector(segment, wanted)
                collector.handle_signals()
                os.write(said, b"r")
                serving()
                collector.run()
                last()
                code = 0
            finally:
                os._exit(code)
        os.close(said)
        served = os.read(ready, 1)
        os.close(ready)
        self.collector = pid
        return bool(served)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for actor in self.actors:
            actor.close()
        if self.collector:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.collector, signal.SIGKILL)
                os.waitpid(self.collector, 0)
        remove_wakeup(self.segment)
        self.segment.close()
        naming.remove(self.name)
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self.directory)

    # Producers.

    def start(self, part: Part) -> Actor:
        """A producer that is ready for its first order."""
        orders_read, orders = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(self._read)
            os.close(orders)
            for actor in self.actors:
                os.close(actor._orders)
            stepped_producer.produce(self.name, part, self._write, orders_read)
        os.close(orders_read)
        actor = Actor(pid, orders)
        self.actors.append(actor)
        self.expect(actor, stepped_producer.READY)
        return actor

    def _listen(self, timeout: float = 0.0) -> None:
        while select.select([self._read], [], [], timeout)[0]:
            raw = os.read(self._read, MESSAGE_SIZE * 1024)
            for at in range(0, len(raw), MESSAGE_SIZE):
                self._hear(Message.parse(raw[at : at + MESSAGE_SIZE]))
            timeout = 0.0

    def _hear(self, message: Message) -> None:
        told = self.told.setdefault(message.pid, Told(message.pid))
        if message.what == stepped_producer.RETURNED:
            told.returned.append(message.number)
        elif message.what == stepped_producer.RAISED:
            told.raised.append(message.number)
        elif message.what == stepped_producer.MISSED:
            told.missed += 1
        elif message.what == stepped_producer.NOTED:
            self.noted.append(message.number)
        else:
            self._events.setdefault(message.pid, []).append(message)

    def take(self, actor: Actor, what: int) -> Message | None:
        """A word of that kind that the producer has said, once."""
        said = self._events.get(actor.pid, [])
        for message in said:
            if message.what == what:
                said.remove(message)
                return message
        return None

    def expect(self, actor: Actor, what: int) -> Message:
        """Wait for the word."""
        found: list[Message] = []

        def heard() -> bool:
            self._listen()
            message = self.take(actor, what)
            if message is not None:
                found.append(message)
            elif not actor.state:
                raise Broken(f"producer {actor.pid} ended instead of going on")
            return message is not None

        until(heard, f"word {what} of {actor.pid}")
        return found[0]

    def act(self, actor: Actor, letter: bytes) -> None:
        """An order that is obeyed to its end."""
        actor.order(letter)
        self.expect(actor, stepped_producer.DONE)

    def outcome(self, actor: Actor) -> str:
        """How the victim's call went: gone, stopped or done."""
        found = ""

        def over() -> bool:
            nonlocal found
            # First: what it said before it was stopped is in the pipe by then.
            state = actor.state
            self._listen()
            if not state:
                found = "gone"
            elif state in "Tt":
                found = "stopped"
            elif self.take(actor, stepped_producer.DONE) is not None:
                found = "done"
            return bool(found)

        until(over, f"the end of the call of {actor.pid}")
        return found

    def leave(self, actor: Actor) -> None:
        """Have it detach and end in order."""
        actor.order(b"x")
        until(lambda: not actor.state, f"the end of {actor.pid}")
        if actor.pid != actor.first:
            # Its parent obeys now.
            actor.pid = actor.first
            self.expect(actor, stepped_producer.DONE)
            self.leave(actor)
            return
        os.waitpid(actor.first, 0)

    # The collector's part.

    def advance(self) -> None:
        """Begin another generation."""
        if self.live:
            self.snapshot()
        else:
            ledger.advance(self.segment)

    def snapshot(self) -> Path:
        """By the collector, or cold."""
        if not self.live:
            return recover(self.segment, self.directory)
        return Path(requests.ask(self.segment, self._wakeup, Verb.SNAPSHOT, timeout=20))

    def snapshot_by_signal(self) -> Path:
        """The same without the segment's lock, which somebody may hold."""
        if not self.live:
            return self.snapshot()
        os.kill(self.collector, signal.SIGUSR1)
        until(lambda: any(self.files("signal")), "a snapshot by signal")
        return next(self.files("signal"))

    def files(self, part: str) -> Iterator[Path]:
        """The snapshots with that word in their names."""
        return self.directory.glob(f"*-{part}-*.shmrec")

    def stop_collector(self) -> None:
        """In order; it snapshots the deaths that wait."""
        if self.collector:
            os.kill(self.collector, signal.SIGTERM)
            _, status = os.waitpid(self.collector, 0)
            self.collector = 0
            if status:
                raise Broken(f"the collector ended with wait status {status}")
