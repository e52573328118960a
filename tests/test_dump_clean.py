"""``shmrec-dump clean``: what goes, what never goes, and that it asks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmrec import process, segment, store
from shmrec.snapshot import read

from .conftest import leftovers, snapshots, wait_until
from .dumping import Scene, a_scene, dump, failure

DAY = 86_400


@pytest.fixture(autouse=True)
def only_this_test(recording_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool runs in here, and sees no recordings but this test's."""
    monkeypatch.setattr(
        "shmrec.live.names", lambda: [n for n in segment.names() if n == recording_name]
    )


def aged(directory: Path, days: float, reason: str = "requested") -> Path:
    """A snapshot file of that age, going by its name."""
    wall_ns = int((time.time() - days * DAY) * 1e9)
    path = directory / next(store.file_names("web", reason, wall_ns))
    path.write_bytes(b"x")
    os.utime(path, ns=(wall_ns, wall_ns))
    return path
