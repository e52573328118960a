"""``shmrec-dump doctor``: what shmrec finds on this machine, and what it lacks.

Runs on a person's behalf, where a program records or is about to. It looks and changes
nothing: no recording is made, no directory. What shmrec needs and does not find is a problem;
what only makes its reports poorer is a hint.
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

from shmrec import _engine, fence, recorder
from shmrec._version import __version__
from shmrec.commands import checks
from shmrec.commands.jsonform import dumps
from shmrec.commands.parameters import directory_option, json_option
from shmrec.commands.places import (
    directory_hints,
    memory,
    memory_problems,
    snapshot_directory,
)
from shmrec.commands.screen import Part, Screen
from shmrec.commands.wording import counted, safe, size
from shmrec.layout import LAYOUT_ID
from shmrec.naming import DIRECTORY

_MADV_WIPEONFORK: Final = 18
_CLOCK_SOURCE: Final = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_SLOW_CLOCKS: Final = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")
"""Those that user space cannot read by itself."""
_LABEL_WIDTH: Final = 20
# The machines whose order of stores the python engine may rely on.
_STRONGLY_ORDERED: Final = ("x86_64", "amd64", "i686", "i386")

_EPILOG: Final = """\b
Exit status: 0 if all that is needed works, else 1. Hints tell what reports will lack.

\b
Examples:
  shmrec-dump doctor
  shmrec-dump doctor --json | jq -r .engine.name
  shmrec-dump doctor --json | jq -r '.hints[]'
"""


@click.command("doctor", epilog=_EPILOG)
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Say which engine serves and why not the other, and whether this machine has what it takes.

    What is wrong is one line each, a problem or a hint, with what it costs and what to do.
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
        "memory": memory(),
        "directory": snapshot_directory(directory),
    }
    looks = checks.checks()
    found |= {each.key: each.value for each in looks}
    found["problems"] = list(_problems(found))
    found["hints"] = [*_hints(found), *(hint for each in looks for hint in each.hints)]
    if as_json:
        click.echo(dumps(found))
    else:
        _print(found, looks)
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
    yield from memory_problems(found["memory"])
    if found["directory"]["problem"]:
        yield found["directory"]["problem"]


def _hints(found: dict[str, Any]) -> Iterator[str]:
    """What works without, and what that costs."""
    if not found["membarrier"]:
        yield (
            "membarrier is refused: only a snapshot's second flush proves that it is complete, and "
            "--flushes 1 proves nothing: let the security profile allow membarrier(2)"
        )
    if not found["pidfd"]:
        yield (
            "pidfds are refused: a death is noticed up to a second late, and its status may be "
            "lost: use Linux 5.3, and let the security profile allow pidfd_open(2)"
        )
    if not found["wipe_on_fork"]:
        yield (
            "memory cannot be wiped on fork: only forks made through Python are noticed, not "
            "those of C libraries: use Linux 4.14"
        )
    source = found["clock"]["source"]
    if source in _SLOW_CLOCKS:
        yield (
            f"the clock source is {source}: every event waits for a system call and a slow device: "
            f"write tsc or kvm-clock to {_CLOCK_SOURCE}, if the kernel offers it"
        )
    yield from directory_hints(found["directory"])


def _print(found: dict[str, Any], looks: list[checks.Check]) -> None:
    screen = Screen()
    engine, room, folder = found["engine"], found["memory"], found["directory"]

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
    row("membarrier", "yes" if found["membarrier"] else "no")
    row("pidfd", "yes" if found["pidfd"] else "no")
    row("wiped on fork", "yes" if found["wipe_on_fork"] else "no")
    clock = found["clock"]
    source = f", source {safe(clock['source'])}" if clock["source"] else ""
    row("clock", f"{safe(clock['name'])}, {clock['resolution_ns']} ns{source}")
    if room["size"] is None:
        row("shared memory", ("none", "bad"))
    else:
        left = f"{size(room['free'])} of {size(room['size'])} free in {DIRECTORY}"
        row("shared memory", left)
        fit = f"{room['rings_that_fit']} of {room['rings']} rings of {size(room['ring_size'])}"
        row("room for", fit)
    state = counted(folder["snapshots"], "snapshot") + f", {size(folder['size'])}"
    row("snapshots", f"{safe(folder['path'])}: {state if folder['exists'] else 'not made yet'}")
    for each in looks:
        row(each.label, each.text)
    screen.line()
    for hint in found["hints"]:
        screen.line((f"hint: {safe(hint)}", "dim"))
    if not found["problems"]:
        screen.line(("All that is needed works.", "good"))
    for problem in found["problems"]:
        screen.line(("problem", "bad"), f": {safe(problem)}")
