"""Draws values from an input's bytes, one after another; zeros when there are no more."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeVar

__all__ = ["Draw"]

_T = TypeVar("_T")
_LENGTHS: Final = (0, 1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 64)
_REPEATS: Final = (1, 1, 1, 2, 8, 32, 64, 100, 256)
_ENCODINGS: Final = ("utf-8", "utf-8", "latin-1", "utf-16-le", "ascii")


class Draw:
    """What is left of an input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def empty(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """So many bytes."""
        found = self._data[self._at : self._at + count]
        self._at += count
        return found.ljust(count, b"\0")

    def below(self, limit: int) -> int:
        """A number of one byte, from 0 on."""
        return self.take(1)[0] % limit

    def choice(self, values: Sequence[_T]) -> _T:
        return values[self.below(len(values))]

    def length(self) -> int:
        """Of a container."""
        return self.choice(_LENGTHS) if self.below(3) == 0 else self.below(4)

    def integer(self) -> int:
        """Of any size, most often near a power of two."""
        how = self.below(4)
        if how == 0:
            return self.below(256)
        if how == 1:
            return int.from_bytes(self.take(8), "little", signed=True)
        power = 1 << self.choice((4, 5, 7, 8, 15, 16, 31, 32, 62, 63, 64, 200))
        return (power if how == 2 else -power) + self.below(3) - 1

    def real(self) -> float:
        found: float = struct.unpack("<d", self.take(8))[0]
        return found

    def raw(self) -> bytes:
        """Bytes, some of them many times."""
        return self.take(self.below(9)) * self.choice(_REPEATS)

    def text(self) -> str:
        """Text of any width, lone surrogates among it."""
        encoding, raw = self.choice(_ENCODINGS), self.raw()
        if encoding == "utf-16-le":
            return raw.decode(encoding, "surrogatepass" if len(raw) % 2 == 0 else "replace")
        return raw.decode(encoding, "surrogateescape")
