"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import shmrec


def describe(directory: Path) -> dict[str, Any]:
    """Processor, cores, kernel, Python, engine, and where snapshots are written."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "shmrec": f"{shmrec.__version__}, engine {shmrec.engine}",
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
