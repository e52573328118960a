"""The snapshot file's checksum, as fast as this installation computes it.

Runs in the collector and in `recover`, never in a producer, which imports nothing that it can
do without. CRC-32 as in ``zlib.crc32``, whoever computes it: the file is the same.

isal, where it is installed (``shmrec[fast]``), takes about an eighth of zlib's time: it folds
with carry-less multiplication.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["crc32"]

crc32: Callable[..., int]

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32
