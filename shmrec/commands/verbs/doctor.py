"""``shmrec-dump doctor``: what shmrec finds on this machine, and what it lacks.

Runs on a person's behalf, where a program records or is about to. It looks and changes
nothing: no recording is made, no directory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from shmrec import _engine, fence, recorder, store
from shmrec._version import __version__
from shmrec.commands.jsonform import dumps
from shmrec.commands.parameters import directory_option, json_option
from shmrec.commands.screen import Part, Screen
from shmrec.commands.wording import counted, safe, size
from shmrec.errors import ShmrecError
from shmrec.layout import DEFAULT_PRODUCERS, DEFAULT_RING_SIZE, LAYOUT_ID, Geometry
from shmrec.naming import DIRECTORY

_MADV_WIPEONFORK: Final = 18
_CLOCK_SOURCE: Final = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_LABEL_WIDTH: Final = 20
# The machines whose order of stores the python engine may rely on.
_STRONGLY_ORDERED: Final = ("x86_64", "amd64", "i686", "i386")

_EPILOG: Final = """\b
Exit status: 0 if all that is needed works, else 1.

\b
Examples:
  shmrec-dump doctor
  shmrec-dump doctor --json | jq -r .engine.name
"""


@click.command("doctor", epilog=_EPILOG)
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Say which engine serves and why not the other, and whether this machine has what it takes.

    What is wrong is one line each, with what to do about it.
    """
    found: dict[str, Any] = {
        "shmrec": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": _libc(),
        "machine": platform.machine(),
        "layout_id": f"{LAYOUT_ID:#x}",
        "engine": _engines(),
        "membarrier": fence.register() and fence.barrier(),
        "pidfd": _has_pidfd(),
        "wipe_on_fork": _wipes_on_fork(),
        "clock": _clock(),
        "memory": _memory(),
        "directory": _directory(directory),
    }
    found["problems"] = list(_problems(found))
    if as_json:
        click.echo(dumps(found))
    else:
        _print(found)
    if found["problems"]:
        sys.exit(1)


def _libc() -> str | None:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.confstr("CS_GNU_LIBC_VERSION")
    return None


def _engines() -> dict[str, Any]:
    serves, asked = recorder.default.engine, os.environ.get("SHMREC_ENGINE") or None
    unasked = "SHMREC_ENGINE asks for the other" if asked else "it can serve as well, more slowly"
    if serves == recorder.NO_ENGINE:
        unasked = "SHMREC_ENGINE asks for another"
    others = {name: _engine.refusal(name) or unasked for name in _engine.NAMES if name != serves}
    return {"name": serves, "asked": asked, "others": others}


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return False
    return True


def _wipes_on_fork() -> bool:
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _clock() -> dict[str, Any]:
    info = time.get_clock_info("monotonic")
    source = None
    with contextlib.suppress(OSError):
        source = Path(_CLOCK_SOURCE).read_text("ascii", "replace").strip()
    return {
        "name": info.implementation,
        "resolution_ns": round(info.resolution * 1e9),
        "source": source,
    }


def _memory() -> dict[str, Any]:
    """Shared memory, and whether a recording of the default size has room there."""
    geometry = Geometry()
    found: dict[str, Any] = {
        "directory": DIRECTORY,
        "size": None,
        "free": None,
        "writable": os.access(DIRECTORY, os.W_OK | os.X_OK),
        "rings": DEFAULT_PRODUCERS,
        "ring_size": DEFAULT_RING_SIZE,
        "rings_that_fit": 0,
    }
    with contextlib.suppress(OSError):
        there = os.statvfs(DIRECTORY)
        found["size"] = there.f_blocks * there.f_frsize
        found["free"] = there.f_bavail * there.f_frsize
        left = found["free"] - geometry.rings_offset
        found["rings_that_fit"] = min(DEFAULT_PRODUCERS, max(0, left // DEFAULT_RING_SIZE))
    return found


def _directory(directory: Path) -> dict[str, Any]:
    """The directory of snapshots; where it is not there yet, whether it can be made."""
    found: dict[str, Any] = {"path": str(directory), "problem": None}
    found["exists"] = os.path.lexists(directory)
    found["snapshots"] = found["size"] = 0
    place = directory
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        found["problem"] = f"{place} is not a directory: choose another with --dir or SHMREC_DIR"
    elif found["exists"] and directory.is_symlink():
        found["problem"] = f"{directory} is a symbolic link: name the directory itself"
    elif found["exists"] and directory.stat().st_uid != os.geteuid():
        found["problem"] = (
            f"{directory} belongs to user {directory.stat().st_uid}, not {os.geteuid()}: choose "
            "another with --dir or SHMREC_DIR"
        )
    elif not os.access(place, os.W_OK | os.X_OK):
        found["problem"] = (
            f"{place} may not be written to: change its mode, or choose another directory with "
            "--dir or SHMREC_DIR"
        )
    if found["exists"] and place.is_dir():
        with contextlib.suppress(ShmrecError, OSError):
            stored = store.listing(directory)
            found["snapshots"] = len(stored)
            found["size"] = sum(each.size for each in stored)
    return found


def _problems(found: dict[str, Any]) -> Iterator[str]:
    if not found["kernel"].startswith("Linux"):
        yield "only Linux is supported: record there"
    if found["engine"]["name"] == recorder.NO_ENGINE:
        asked = found["engine"]["asked"]
        why = _engine.refusal(asked) if asked in _engine.NAMES else "there is no such engine"
        names = " or ".join(_engine.NAMES)
        yield f"SHMREC_ENGINE={safe(asked)}: {why}; unset it, or choose {names}"
    if found["engine"]["name"] == "python" and found["machine"] not in _STRONGLY_ORDERED:
        yield (
            f"the python engine may not be relied on with a {found['machine']} processor: "
            "install shmrec where there is a C compiler, so that the native one serves"
        )
    memory = found["memory"]
    if memory["size"] is None:
        yield f"there is no {DIRECTORY}: mount a tmpfs there, or record into a file (path=)"
    elif not memory["writable"]:
        yield f"{DIRECTORY} may not be written to: change its mode to 1777"
    elif memory["rings_that_fit"] < memory["rings"]:
        yield (
            f"{DIRECTORY} has room for {memory['rings_that_fit']} of a default recording's "
            f"{memory['rings']} rings of {size(memory['ring_size'])}: enlarge it (docker run "
            "--shm-size=256m), or record with fewer or smaller rings"
        )
    if found["directory"]["problem"]:
        yield found["directory"]["problem"]


def _print(found: dict[str, Any]) -> None:
    screen = Screen()
    engine, memory, folder = found["engine"], found["memory"], found["directory"]

    def row(label: str, *parts: Part) -> None:
        screen.line((label.ljust(_LABEL_WIDTH), "dim"), *parts, hang=_LABEL_WIDTH)

    asked = f", as SHMREC_ENGINE={safe(engine['asked'])} asks" if engine["asked"] else ""
    if engine["name"] == recorder.NO_ENGINE:
        asked = f": SHMREC_ENGINE={safe(engine['asked'])} asks for what cannot serve"
    row("engine", (engine["name"], "good" if engine["name"] == "native" else "warn"), asked)
    for name, why in engine["others"].items():
        row(f"not {name}", safe(why))
    row("shmrec", f"{found['shmrec']}, layout {found['layout_id']}")
    row("python", safe(found["python"]))
    row("kernel", f"{safe(found['kernel'])}, {safe(found['machine'])}")
    row("libc", safe(found["libc"] or "unknown"))
    row("membarrier", "yes" if found["membarrier"] else "no: second flushes prove what it would")
    row("pidfd", "yes" if found["pidfd"] else "no: deaths are looked for in /proc")
    row(
        "wiped on fork",
        "yes" if found["wipe_on_fork"] else "no: only forks made through Python are noticed",
    )
    clock = found["clock"]
    source = f", source {safe(clock['source'])}" if clock["source"] else ""
    row("clock", f"{safe(clock['name'])}, {clock['resolution_ns']} ns{source}")
    if memory["size"] is None:
        row("shared memory", ("none", "bad"))
    else:
        room = f"{size(memory['free'])} of {size(memory['size'])} free in {DIRECTORY}"
        row("shared memory", room)
        fit = (
            f"{memory['rings_that_fit']} of {memory['rings']} rings of {size(memory['ring_size'])}"
        )
        row("room for", fit)
    state = counted(folder["snapshots"], "snapshot") + f", {size(folder['size'])}"
    row("snapshots", f"{safe(folder['path'])}: {state if folder['exists'] else 'not made yet'}")
    screen.line()
    if not found["problems"]:
        screen.line(("All that is needed works.", "good"))
    for problem in found["problems"]:
        screen.line(("problem", "bad"), f": {safe(problem)}")
