"""A memory cgroup of the real machine, for tests of the kernel's kills for want of memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from .conftest import wait_until

_MOUNT: Final = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def little_memory(limit: int) -> Iterator[Path]:
    """The folder of a cgroup with so many bytes and no swap, of version 1 or 2.

    Skips the test where none can be made. Whoever was put in has ended when this ends.
    """
    first = (_MOUNT / "memory").is_dir()
    group = (_MOUNT / "memory" if first else _MOUNT) / f"shmrec-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    # Not every kernel accounts for swap.
    with contextlib.suppress(OSError):
        swap, most = ("memory.memsw.limit_in_bytes", limit) if first else ("memory.swap.max", 0)
        (group / swap).write_text(str(most))
    yield group

    def removed() -> bool:
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    wait_until(removed)
