"""A producer whose memory is watched: many names, threads and spans, in parts.

Run as a program, with a recording's name or "" for the same work recorded nowhere, the number
of events, and the number of parts. It says each stage on a line of its own, and goes on when it
is answered with one. It imports nothing that would hide what shmrec itself takes.
"""

from __future__ import annotations

import sys

BARE = "bare"
IMPORTED = "imported"
WARM = "warm"
ATTACHED = "attached"
_NAMES = 5_000
_THREADS = 8
_OPEN_SPANS = 50
_EVENTS_A_TURN = 4


def stage(name: str) -> None:
    """Say that it is reached, and wait until somebody has looked."""
    print(name, flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody watches any more")


def main() -> None:
    """The stages, one after the other."""
    recording, events, parts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    import threading

    stage(BARE)
    import shmrec

    stage(IMPORTED)
    names = [f"some name of the application {number}" for number in range(_NAMES)]

    def record(recorder: shmrec.Recorder, first: int, turns: int) -> None:
        spans = [recorder.begin(names[(first + depth) % _NAMES]) for depth in range(_OPEN_SPANS)]
        for number in range(first, first + turns):
            name = names[number % _NAMES]
            recorder.instant(name, n=number, path="/x")
            with recorder.span(name, n=number):
                recorder.counter(name, number)
        for span in reversed(spans):
            recorder.end(span)

    def work(recorder: shmrec.Recorder) -> None:
        turns = events // parts // _THREADS // _EVENTS_A_TURN
        threads = [
            threading.Thread(
                target=record,
                args=(recorder, number * _NAMES // _THREADS, turns),
                name=f"thread {number}",
            )
            for number in range(_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # What threads and loops themselves take is there before anything is recorded.
    nowhere = shmrec.Recorder()
    for _ in range(parts):
        work(nowhere)
    stage(WARM)
    recorder = shmrec.attach(recording, label="bench", required=True) if recording else nowhere
    stage(ATTACHED)
    for part in range(1, parts + 1):
        work(recorder)
        stage(f"part {part}")


if __name__ == "__main__":
    main()
