"""A part of a file in memory, with a page behind it that nobody can write.

Runs in producers, which have faulthandler write there through ``/proc/self/mem``: a write that
comes to the guard page ends, and nothing beyond is touched. The kernel lets such writes pass the
protection of private pages, so the guard is a page of a shared mapping.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

from shmrec.extension import EXTENSION

__all__ = ["map_guarded", "unmap_guarded"]

_FAILED: Final = (1 << 64) - 1


def map_guarded(fd: int, offset: int, size: int) -> int:
    """The address of `size` bytes of the file from `offset` on, both whole pages.

    Raises `OSError` if the kernel refuses or there is no way to ask it.
    """
    if EXTENSION is not None:
        mapped: int = EXTENSION.map_guarded(fd, offset, size)
        return mapped
    libc = _libc()
    base = libc.mmap(None, size + mmap.PAGESIZE, 0, mmap.MAP_SHARED, fd, offset)
    if base in (None, _FAILED):
        raise OSError("cannot map the stack area")
    if libc.mprotect(base, size, mmap.PROT_READ | mmap.PROT_WRITE):
        libc.munmap(base, size + mmap.PAGESIZE)
        raise OSError("cannot unlock the stack area")
    return int(base)


def unmap_guarded(address: int, size: int) -> None:
    """Undo `map_guarded`."""
    if EXTENSION is not None:
        EXTENSION.unmap_guarded(address, size)
    else:
        _libc().munmap(address, size + mmap.PAGESIZE)


def _libc() -> Any:
    # Imported here: a process that only imports shmrec should not pay for ctypes.
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        libc.mmap.restype = pointer
        libc.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_long)
        libc.mprotect.argtypes = (pointer, size, number)
        libc.munmap.argtypes = (pointer, size)
    except (AttributeError, ImportError) as error:
        raise OSError("ctypes is not there") from error
    return libc
