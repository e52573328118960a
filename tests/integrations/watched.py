"""A service's recording as tests watch it: who is in it, and what its snapshots say."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import shmrec
from shmrec import process
from shmrec.entry import Entry
from shmrec.errors import ShmrecError
from shmrec.layout import Verb
from shmrec.requests import ask
from shmrec.segment import open_segment
from shmrec.wakeup import open_wakeup
from tests.conftest import WAIT_SECONDS, snapshots, wait_until
from tests.recordings import rings

MASTER = "gunicorn master"
WORKER = "gunicorn worker"


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    return bool(process.signals(pid).caught & process.signal_bit(number))


class Watched:
    """A recording and the folder of its snapshots; remembers every process that was in it."""

    def __init__(self, recording: str, store: Path) -> None:
        self.recording = recording
        self.store = store
        self._seen: dict[int, int] = {}

    def entries(self) -> list[Entry]:
        """Everybody who has a place in the recording."""
        try:
            with open_segment(self.recording, writable=False) as segment:
                found = [reader.entry() for reader in rings(segment)]
        except ShmrecError:
            return []
        self._seen.update(
            {entry.pid: entry.start_ticks for entry in found if entry.pid != os.getpid()}
        )
        return found

    def attached(self, label: str) -> list[int]:
        return [
            entry.pid
            for entry in self.entries()
            if entry.attached
            and entry.label == label
            and process.alive(entry.pid, entry.start_ticks)
        ]

    def workers(self) -> list[int]:
        """The workers that are up: a signal that meets one which still has its master's handlers,
        as shows in SIGCHLD, is lost."""
        return [
            pid
            for pid in self.attached(WORKER)
            if catches(pid, signal.SIGABRT) and not catches(pid, signal.SIGCHLD)
        ]

    def inside(self) -> int:
        """The one worker that has an open request."""
        found = [
            producer.pid
            for producer in self.now().producers
            if [span for span in producer.open_spans if span.name == "request"]
        ]
        (victim,) = found
        return victim

    def collector(self) -> int:
        with open_segment(self.recording, writable=False) as segment:
            pid = segment.collector() or 0
            if pid:
                self._seen[pid] = segment.word("collector_start")
            return pid

    def word(self, name: str) -> int:
        """A word of the recording's control block."""
        with open_segment(self.recording, writable=False) as segment:
            return segment.word(name)

    def snapshots(self, part: str = "") -> list[Path]:
        return snapshots(self.store, part)

    def snapshot(self, part: str) -> shmrec.Snapshot:
        """The first snapshot whose file name holds `part`, waited for."""
        wait_until(lambda: self.snapshots(part))
        return shmrec.read(self.snapshots(part)[0])

    def now(self) -> shmrec.Snapshot:
        """A snapshot of this moment."""
        with open_segment(self.recording) as segment:
            wakeup = open_wakeup(segment)
            return shmrec.read(ask(segment, wakeup, Verb.SNAPSHOT, timeout=WAIT_SECONDS))

    def wait_for(self, name: str, **args: object) -> None:
        """Wait until the event has been recorded, once."""

        def recorded() -> bool:
            found = [event for event in self.now() if event.name == name and event.args == args]
            assert len(found) <= 1
            return bool(found)

        wait_until(recorded)
