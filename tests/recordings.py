"""What is in a recording's rings; and a recording whose collector is the test itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from shmrec import requests
from shmrec.decoder import Event, decode
from shmrec.layout import TRIGGERS, Geometry, Status, Verb
from shmrec.requests import Request
from shmrec.ring import RingReader, readers
from shmrec.segment import Segment, create


@contextlib.contextmanager
def unserved(name: str, producers: int = 4) -> Iterator[Segment]:
    """A recording that calls this process its collector; requests stay until somebody answers."""
    with create(
        name, Geometry.of(0, producers), keep_size=0, keep_period_ns=0, collected=True
    ) as made:
        yield made


def rings(segment: Segment) -> list[RingReader]:
    """The rings that somebody has claimed, in their order."""
    return [reader for reader in readers(segment) if reader.incarnation()]


def events_of(reader: RingReader) -> list[Event]:
    """What is in a ring, of a process that is not recording at the moment."""
    found: list[Event] = []
    for head in reader.scan().heads:
        batch = reader.copy(head)
        assert batch is not None
        found += decode(
            batch.payload,
            start_ns=head.start_ns,
            generation=head.generation,
            flags=head.flags,
            open_spans={},
        )
    return found


def recorded(segment: Segment) -> list[Event]:
    """All events, ring by ring."""
    return [event for reader in rings(segment) for event in events_of(reader)]


def words(segment: Segment) -> list[tuple[str, int, str]]:
    """The triggers that wait: kind, process, reason. They are answered."""
    found = []
    for request in requests.pending(segment):
        assert request.verb == Verb.TRIGGER
        kind, pid = request.argument
        found.append((TRIGGERS[kind], pid, request.reason))
        requests.answer(segment, request, "", Status.DONE)
    return found


class Answering:
    """Answers every request as told, from a thread of its own, until closed."""

    def __init__(self, segment: Segment, text: str, status: int = Status.DONE) -> None:
        self.seen: list[Request] = []
        self._segment, self._text, self._status = segment, text, status
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.wait(0.001):
            for request in requests.pending(self._segment):
                self.seen.append(request)
                requests.answer(self._segment, request, self._text, self._status)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
