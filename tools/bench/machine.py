"""What the figures were measured on, as far as it changes them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import shmrec
from tools.bench import engines
from tools.bench.floors import compiler_version

_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_GOVERNORS = Path("/sys/devices/system/cpu")


def describe(directory: Path) -> dict[str, Any]:
    """Processor, cores, kernel, clock, Python, compiler, engines, where snapshots are written."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "clock source": _first_line(_CLOCK) or "unknown",
        "governor": _governor(),
        "python": f"{platform.python_implementation()} {platform.python_version()}, built with "
        f"{platform.python_compiler()}",
        "compiler": compiler_version(),
        "shmrec": f"{shmrec.__version__}, engine by default: {shmrec.engine}",
        **{
            f"{name} engine": f"not available: {reason}" if reason else "available"
            for name, reason in engines.availability().items()
        },
        "snapshots on": _file_system(directory),
        "load before": load,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _governor() -> str:
    """The frequency governors of all processors; a virtual machine mostly shows none."""
    found = {_first_line(path) for path in _GOVERNORS.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(found - {""})) or "none to be seen"


def _file_system(directory: Path) -> str:
    """The type of file system: the deepest mount point that holds the directory."""
    place = directory.resolve()
    best, kind = -1, "unknown"
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return kind
    for line in lines:
        _, point, found, *_ = line.split(" ")
        mount = Path(point.encode().decode("unicode_escape"))
        # Of several mounts on one point the last is the one that shows.
        if place.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), found
    return kind
