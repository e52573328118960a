"""What a process holds of the machine, and what a recording does: counted from outside.

Read from ``/proc`` and ``/dev/shm`` by the process that runs a trial. Nothing here opens the
recording's memory: a recording that is over is looked at as well.
"""

from __future__ import annotations

import os
import stat as stat_module
from pathlib import Path
from typing import NamedTuple

from shmrec import process
from shmrec.layout import NAME_PREFIX

SHARED = Path("/dev/shm")
_BLOCK = 512


class Holdings(NamedTuple):
    """Memory in KiB: resident and nobody else's (`private`), all resident, and its share of it.

    `semaphores` are those of recordings that it has mapped, `mappings` all mappings.
    """

    private: int
    resident: int
    share: int
    descriptors: int
    threads: int
    mappings: int
    semaphores: int


def held(pid: int) -> Holdings | None:
    """What the process holds now; None if it has gone."""
    folder = Path(f"/proc/{pid}")
    try:
        status = _fields(folder / "status")
        rollup = _fields(folder / "smaps_rollup")
        maps = (folder / "maps").read_text(errors="replace").splitlines()
        descriptors = len(os.listdir(folder / "fd"))
    except OSError:
        return None
    if "RssAnon" not in status:
        # A zombie has nothing left.
        return None
    return Holdings(
        private=status["RssAnon"],
        resident=status["VmRSS"],
        share=rollup.get("Pss", 0),
        descriptors=descriptors,
        threads=status["Threads"],
        mappings=len(maps),
        semaphores=sum(f"/sem.{NAME_PREFIX}" in line for line in maps),
    )


def _fields(path: Path) -> dict[str, int]:
    """The numbers in a file of lines "key: number unit"."""
    found = {}
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            found[key] = int(words[0])
    return found


def objects_of(name: str) -> list[str]:
    """What ``/dev/shm`` has of the recording: its memory and its semaphore."""
    wanted = {f"{NAME_PREFIX}{name}", f"sem.{NAME_PREFIX}{name}"}
    return sorted(wanted & set(os.listdir(SHARED)))


def memory_of(name: str) -> int:
    """KiB of memory that the recording's segment takes; 0 if it has gone."""
    try:
        return (SHARED / f"{NAME_PREFIX}{name}").stat().st_blocks * _BLOCK >> 10
    except OSError:
        return 0


def zombies_of(parent: int) -> list[int]:
    """Its children that have ended and that it has not reaped."""
    found = []
    for child in children_of(parent):
        seen = process.stat(child)
        if seen is not None and seen.state == "Z":
            found.append(child)
    return found


def children_of(parent: int) -> list[int]:
    """Its children, those of all its threads; none if it has gone."""
    found: list[int] = []
    for task in process.tasks(parent):
        try:
            text = Path(f"/proc/{parent}/task/{task}/children").read_text()
        except OSError:
            continue
        found += map(int, text.split())
    return found


def descriptors_of(pid: int) -> list[str]:
    """Where the process's descriptors lead, those of recordings and of memory among them."""
    found = []
    folder = Path(f"/proc/{pid}/fd")
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        try:
            place = os.readlink(folder / name)
            kind = os.stat(folder / name).st_mode
        except OSError:
            continue
        found.append("pipe" if stat_module.S_ISFIFO(kind) else place)
    return sorted(found)


def ours_of(pid: int) -> list[str]:
    """The descriptors that are shmrec's: of recordings, and of the process's own memory."""
    own = f"/{pid}/mem"
    return [place for place in descriptors_of(pid) if NAME_PREFIX in place or place.endswith(own)]


def remove(name: str) -> None:
    """Take away what ``/dev/shm`` still has of a recording that nobody serves any more."""
    for left in objects_of(name):
        (SHARED / left).unlink(missing_ok=True)
