"""The memory cgroup of a process: its limit, and whom the kernel killed for want of memory.

Runs in the collector. The kernel counts a kill in the victim's own cgroup before it sends the
signal, whichever cgroup's limit, or the machine's, was the reason: whoever reads the count after
a death finds it counted. Sources: the kernel's ``admin-guide/cgroup-v2.rst`` (``memory.events``,
``memory.max``), ``cgroup-v1/memory.rst`` (``memory.oom_control``, ``memory.limit_in_bytes``),
cgroups(7) for ``/proc/PID/cgroup``, proc(5) for ``mountinfo`` and for ``/proc/vmstat``, whose
count, of the whole machine, is the second source where no cgroup tells.

Invariants: a process's path is taken relative to what is mounted, so that cgroup namespaces and
bind mounts lead to the right folder or to none, never to another one; whatever cannot be read is
None or 0, never an error; each text is read up to a bound.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, NamedTuple

__all__ = ["Cgroups", "Group", "Limit", "Machine"]

_READ_BYTES: Final = 1 << 16
_MOUNTS_BYTES: Final = 1 << 20
_DEEPEST: Final = 64
_UNLIMITED: Final = 1 << 62
"""Version 1 says a number near 2 ** 63 where there is no limit."""
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_DELETED: Final = " (deleted)"


class Limit(NamedTuple):
    """A limit in bytes, 0 where there is none, and the file that says so."""

    limit: int
    source: str


class _Files(NamedTuple):
    """The names of one version's files."""

    kills: str
    limit: str
    current: str
    peak: str


_FILES: Final = {
    1: _Files(
        "memory.oom_control",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.max_usage_in_bytes",
    ),
    2: _Files("memory.events", "memory.max", "memory.current", "memory.peak"),
}


@dataclass(frozen=True)
class Machine:
    """All of the machine, as far as its kernel counts for it."""

    source: str

    def kills(self) -> int | None:
        """How many processes have been killed for want of memory since the start."""
        return _counted(_text(self.source), "oom_kill")


@dataclass(frozen=True)
class Group:
    """A memory cgroup: its folder, that of the hierarchy's root, the hierarchy's version."""

    folder: str
    top: str
    version: int

    @property
    def source(self) -> str:
        """The file that counts kills."""
        return f"{self.folder}/{_FILES[self.version].kills}"

    def kills(self) -> int | None:
        """How many of its processes the kernel has killed for want of memory; None if unread."""
        return _counted(_text(self.source), "oom_kill")

    def limit(self) -> Limit:
        """The least limit on it and the groups above it: that of the closest, where some agree."""
        least = Limit(0, "")
        folder = PurePosixPath(self.folder)
        for each in [folder, *folder.parents][:_DEEPEST]:
            source = f"{each}/{_FILES[self.version].limit}"
            found = _number(_text(source))
            if found is not None and found < (least.limit or _UNLIMITED):
                least = Limit(found, source)
            if str(each) == self.top:
                break
        return least

    def current(self) -> int:
        """Bytes in use; 0 if not known."""
        return _number(_text(f"{self.folder}/{_FILES[self.version].current}")) or 0

    def peak(self) -> int:
        """The most bytes that were ever in use; 0 if not known (version 2: Linux 5.19)."""
        return _number(_text(f"{self.folder}/{_FILES[self.version].peak}")) or 0


class _Mount(NamedTuple):
    """A mounted hierarchy: the part of it that is visible, and where."""

    version: int
    root: str
    point: str


class Cgroups:
    """Finds the memory cgroups of processes; `proc` is where procfs is mounted."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc: Final = proc
        self.machine: Final = Machine(f"{proc}/vmstat")
        self._mounts: Final = _mounts(_text(f"{proc}/self/mountinfo", _MOUNTS_BYTES))

    def of(self, pid: int) -> Group | None:
        """The memory cgroup of process `pid`; None where it cannot be seen."""
        # Lines are hierarchy:controllers:path; version 2 is 0::path.
        paths: dict[int, str] = {}
        for line in _text(f"{self._proc}/{pid}/cgroup").splitlines():
            hierarchy, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if "memory" in controllers.split(","):
                paths[1] = path
            elif hierarchy == "0" and not controllers:
                paths[2] = path
        # Where both are mounted, memory belongs to version 1 if that has it at all.
        version = min(paths, default=0)
        for mount in self._mounts:
            folder = _inside(mount, paths[version]) if mount.version == version else None
            # Where memory is not accounted this deep, it is in the closest group above.
            while folder is not None and len(folder) >= len(mount.point):
                group = Group(folder, mount.point, version)
                if os.path.exists(group.source):
                    return group
                folder = os.path.dirname(folder)
        return None


def _mounts(text: str) -> list[_Mount]:
    """The memory hierarchies in a mountinfo file."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        root, point = (_OCTAL.sub(lambda code: chr(int(code[1], 8)), each) for each in fields[3:5])
        if kind[0] == "cgroup2":
            found.append(_Mount(2, root, point))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            found.append(_Mount(1, root, point))
    return found


def _inside(mount: _Mount, path: str) -> str | None:
    """The folder of a hierarchy's `path`; None where the mount does not show it."""
    if not path.startswith("/") or ".." in path.split("/") or path.endswith(_DELETED):
        return None
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(f"{root}/"):
        return None
    folder = f"{mount.point}/{path[len(root) :].strip('/')}".rstrip("/")
    return folder if os.path.isdir(folder) else None


def _text(path: str, most: int = _READ_BYTES) -> str:
    """What the file says, up to `most` bytes; empty where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = b""
            # The kernel gives such files in pieces.
            while len(found) < most and (piece := os.read(fd, most - len(found))):
                found += piece
            return found.decode("utf-8", "surrogateescape")
        finally:
            os.close(fd)
    except OSError:
        return ""


def _number(text: str) -> int | None:
    word = text.strip()
    return int(word) if word.isascii() and word.isdigit() and len(word) < 20 else None


def _counted(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value)
    return None
