"""Where targets put the files that they have read: one folder for a process, gone at its end."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

__all__ = ["workplace"]


def workplace() -> Path:
    """This process's folder, in memory where ``SHMREC_FUZZ_DIR`` says one that is."""
    return _made(os.getpid())


@lru_cache(maxsize=1)
def _made(pid: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="shmrec-fuzz-", dir=os.environ.get("SHMREC_FUZZ_DIR")))
    atexit.register(_remove, folder, pid)
    return folder


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
