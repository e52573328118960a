"""Asking a recording's collector for a snapshot, for who wants to see its path.

Runs in ``shmrec-dump snapshot`` and ``top``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from shmrec import requests, store
from shmrec.commands.wording import safe
from shmrec.errors import CollectorError, ShmrecError
from shmrec.layout import Stacks, Verb
from shmrec.segment import Segment, open_segment
from shmrec.wakeup import open_wakeup

__all__ = ["Asked", "ask_for_snapshot", "checked_path"]

_TIMEOUT: Final = 30.0
_SHOWN: Final = 200


def ask_for_snapshot(
    segment: Segment,
    *,
    reason: str,
    verb: int = Verb.SNAPSHOT,
    stacks: tuple[int, int] = (Stacks.NONE, 0),
    timeout: float = _TIMEOUT,
    tick: Callable[[], object] = lambda: None,
) -> str:
    """The collector's answer; `tick` is called again and again until it comes.

    Raises what `requests.ask` does.
    """

    def sleep(seconds: float) -> None:
        tick()
        time.sleep(seconds)

    return requests.ask(
        segment,
        open_wakeup(segment),
        verb,
        reason=reason,
        argument=stacks,
        timeout=timeout,
        sleep=sleep,
    )


def checked_path(answer: str) -> str:
    """The path of a snapshot that the collector answered, in memory that others write too."""
    if not os.path.isabs(answer) or not store.is_name(os.path.basename(answer)):
        raise CollectorError(f"the collector answered {answer[:_SHOWN]!r}: no path of a snapshot")
    return answer


class Asked:
    """A snapshot that is asked for meanwhile, by a thread; `done` is called when it is there.

    `said` is a sentence then, and `failed` whether it is of a failure.
    """

    def __init__(self, name: str, path: str | None, reason: str, done: Callable[[], None]) -> None:
        self.said = ""
        self.failed = False
        self._of = name, path
        self._reason = reason
        self._done = done
        # Whoever leaves does not wait for it: the collector takes it all the same.
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        try:
            with open_segment(*self._of) as segment:
                taken = checked_path(ask_for_snapshot(segment, reason=self._reason))
            said = f"snapshot: {safe(taken)}"
        except (ShmrecError, OSError) as error:
            self.failed = True
            said = f"no snapshot: {safe(error)}"
        self.said = said
        self._done()
