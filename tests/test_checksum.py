"""The checksum is the same whoever computes it, and it is always to be had."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib

import pytest

from shmrec.checksum import crc32

WITHOUT = """
import sys
sys.modules["isal"] = sys.modules["isal.isal_zlib"] = None
import zlib
from shmrec import checksum
assert checksum.crc32 is zlib.crc32
"""


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 63, 64, 255, 4096, 16_321, 1 << 20])
def test_it_is_zlibs_however_it_is_cut(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert crc32(data) == zlib.crc32(data)
    assert crc32(memoryview(bytearray(data))) == zlib.crc32(data)
    cut = size // 3
    assert crc32(data[cut:], crc32(data[:cut])) == zlib.crc32(data)


def test_it_is_the_fast_one_where_that_is_installed() -> None:
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    assert crc32 is isal_zlib.crc32


def test_without_the_fast_one_it_is_zlibs() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=60)
