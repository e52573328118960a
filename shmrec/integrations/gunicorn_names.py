"""The name of a gunicorn service's recording, and who records under it already.

Runs in the master, before it joins. A name is derived from the service's, so that it is the
same at the next start; what tells services of one name apart is whether a live master, under
the label that all masters have, is in the recording.
"""

from __future__ import annotations

import os
import re
from typing import Final

from shmrec import process
from shmrec.errors import LayoutMismatchError, NoSuchRecordingError, WrongOwnerError
from shmrec.ring import readers
from shmrec.segment import Segment, open_segment

__all__ = ["LABEL", "choose", "masters", "others", "parent", "service_name"]

LABEL: Final = "gunicorn master"

_PARENT: Final = "GUNICORN_PID"
_NAME_LIMIT: Final = 48
_NAMESAKES: Final = 99


def service_name(service: str) -> str:
    """A recording's name for a service: ``gunicorn-app-app`` for ``app:app``."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", service).strip("-._")
    name = words if words.startswith("gunicorn") else f"gunicorn-{words}"
    return name[:_NAME_LIMIT].rstrip("-._")


def parent() -> int:
    """The master that this one replaces since USR2; 0 if none."""
    return int(os.environ.get(_PARENT) or 0)


def choose(base: str) -> str:
    """The name for this master's recording: that of the master it replaces, if there is one.

    Else the first that no other master records under: a namesake gets ``-2``, and so on.
    """
    names = [base]
    for number in range(2, _NAMESAKES + 1):
        suffix = f"-{number}"
        names.append(base[: _NAME_LIMIT - len(suffix)] + suffix)
    if parent():
        for name in names:
            if parent() in masters(name):
                return name
    return next((name for name in names if not masters(name)), base)


def masters(name: str) -> set[int]:
    """The live masters that record under a name; {-1} where it cannot be ours."""
    try:
        with open_segment(name) as segment:
            return {pid for pid, label in others(segment).items() if label == LABEL}
    except NoSuchRecordingError:
        return set()
    except WrongOwnerError:
        return {-1}
    except LayoutMismatchError:
        # Of another version: the master that we replace may be in it, else it is stale.
        return {-1} if parent() else set()


def others(segment: Segment) -> dict[int, str]:
    """The labels of other processes that are attached now, by pid."""
    if not segment.same_boot():
        return {}
    found = {}
    for reader in readers(segment):
        entry = reader.entry()
        if not entry.attached or entry.pid == os.getpid():
            continue
        if process.alive(entry.pid, entry.start_ticks):
            found[entry.pid] = entry.label
    return found
