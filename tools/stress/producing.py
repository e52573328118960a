"""A producer of the random trial: says a sequence that can be checked, flat out, until it dies.

    python -m tools.stress.producing RECORDING BOOKS SEED

Each thread numbers its events from 0, without a gap, and keeps account of them in the process's
book (`books`). It forks, also while its threads record; children and grandchildren record at once,
in rings and books of their own. It leaves in order, ends without a word, or is killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import shmrec
from shmrec import recorder
from tools.stress.books import THREADS, Book

__all__ = ["NUMBER", "thread_name"]

NUMBER: Final = "n"
"""The argument that carries an event's number; a counter's value does; a plain end has none."""
_DEEP: Final = 120
_BIG: Final = 3500
_GENERATIONS: Final = 2
_LIFE_SECONDS: Final = (0.2, 6.0)
_PATIENCE_SECONDS: Final = 3.0
_NICE: Final = 5


def thread_name(thread: int) -> str:
    """What thread k of a producer is called in its events."""
    return f"t{thread}"


class Voice:
    """One thread's sequence."""

    def __init__(self, book: Book, thread: int, chance: random.Random, handed: list[int]) -> None:
        self._words = book.words
        self._begun, self._returned = book.row(thread)
        self._chance = chance
        self._handed = handed
        self._open: list[int] = []
        self._depth = chance.choice((0, 2, 5, _DEEP))
        self._counter = f"count-{thread}"
        self.n = 0

    def _say(self, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        self._words[self._begun] = self.n + 1
        result = call(*args, **more)
        self.n += 1
        self._words[self._returned] = self.n
        return result

    def first(self) -> bool:
        """Say the first event, with which a forked child gets its ring; whether it did."""
        self._words[self._begun] = 1
        shmrec.instant("first", n=0)
        if not recorder.default.attached:
            return False
        self.n = 1
        self._words[self._returned] = 1
        return True

    def speak(self) -> None:
        """Say one event of some kind."""
        chance = self._chance.random()
        if chance < 0.3:
            self._say(shmrec.instant, "tick", n=self.n)
        elif chance < 0.4:
            self._say(shmrec.instant, "more", n=self.n, path="/some/where", values=[1, 2.5, None])
        elif chance < 0.42:
            pad = "x" * self._chance.randrange(500)
            self._say(shmrec.instant, "big", n=self.n, pads=[pad] * (_BIG // 500))
        elif chance < 0.45:
            self._say(shmrec.instant, f"name-{self._chance.randrange(300)}", n=self.n)
        elif chance < 0.6:
            self._say(shmrec.counter, self._counter, self.n)
        elif chance < 0.61:
            self._say(recorder.default.exception, ValueError("no"), n=self.n)
        elif chance < 0.8 and len(self._open) < self._depth:
            self._open.append(self._say(shmrec.begin, "work", n=self.n, by="somebody"))
        elif chance < 0.81:
            # For another thread to end.
            self._handed.append(self._say(shmrec.begin, "handed", n=self.n))
        elif chance < 0.82 and self._handed:
            with contextlib.suppress(IndexError):
                self._say(shmrec.end, self._handed.pop(), n=self.n)
        elif self._open:
            # Mostly the innermost; spans may overlap.
            at = -1 if chance < 0.98 else self._chance.randrange(len(self._open))
            span = self._open.pop(at)
            if chance < 0.95:
                self._say(shmrec.end, span, n=self.n)
            else:
                self._say(shmrec.end, span)
        else:
            self._say(shmrec.instant, "tick", n=self.n)


class Life:
    """One process's: what it does besides speaking, and how it ends."""

    def __init__(self, folder: Path, seed: str, depth: int) -> None:
        self._folder = folder
        self._seed = seed
        self._depth = depth
        self._chance = random.Random(seed)
        self._book = Book(folder, depth)
        self._handed: list[int] = []
        self._threads = 1
        self._over = False
        self._pause = self._chance.choice((0.0, 0.0, 0.002, 0.02))
        threading.current_thread().name = thread_name(0)
        self._voice = self._another(0)

    def _another(self, thread: int) -> Voice:
        return Voice(self._book, thread, random.Random(f"{self._seed}/{thread}"), self._handed)

    def run(self) -> None:
        """Speak until the end, which may be of any kind; never returns."""
        began = time.monotonic()
        while not self._voice.first():
            if not recorder.default.joined or time.monotonic() - began > _PATIENCE_SECONDS:
                os._exit(0)
            time.sleep(0.01)
        ends = began + self._chance.uniform(*_LIFE_SECONDS)
        while time.monotonic() < ends:
            for _ in range(self._chance.randrange(400)):
                self._voice.speak()
            if not recorder.default.attached:
                # The recording was stopped.
                os._exit(0)
            self._do_something()
            if self._pause:
                time.sleep(self._pause)
        self._end()

    def _do_something(self) -> None:
        chance = self._chance.random()
        if chance < 0.02 and self._threads < THREADS - 1:
            self._start_thread()
        elif chance < 0.025 and self._depth < _GENERATIONS:
            self._fork()
        elif chance < 0.04:
            time.sleep(self._chance.random() / 20)

    def _start_thread(self) -> None:
        voice, events = self._another(self._threads), self._chance.randrange(20_000)
        threading.Thread(
            target=self._speak, args=(voice, events), name=thread_name(self._threads), daemon=True
        ).start()
        self._threads += 1

    def _speak(self, voice: Voice, events: int) -> None:
        for _ in range(events):
            if self._over:
                break
            voice.speak()

    def _fork(self) -> None:
        if os.fork() == 0:
            seed = f"{self._seed}>{self._chance.random()}"
            Life(self._folder, seed, self._depth + 1).run()

    def _end(self) -> None:
        kind = self._chance.choice(("detach", "detach", "exit", "fail", "kill"))
        if kind == "detach":
            # All that was begun has returned before it leaves.
            self._over = True
            for thread in threading.enumerate():
                if thread is not threading.current_thread():
                    thread.join()
        if kind in ("detach", "exit"):
            self._book.leave()
        if kind == "detach":
            shmrec.detach()
        elif kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3 if kind == "fail" else 0)


def main(recording: str, folder: str, seed: str) -> None:
    """Join the recording and live."""
    # The trial has to keep up with many of these.
    os.nice(_NICE)
    # Nobody waits for the children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    shmrec.attach(recording, label=f"producer {seed}")
    if recorder.default.attached:
        Life(Path(folder), seed, 0).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
