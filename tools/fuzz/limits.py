"""What an input may cost: so much processor time, and so much memory."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from typing import Final

__all__ = ["TooMuchMemoryError", "TooSlowError", "limited"]

SECONDS: Final = 1.0
"""Of processor time: that of others on the machine does not count."""
BYTES: Final = 64 << 20
"""Of resident memory, beyond the most that there ever was before."""
_KIB: Final = 1024


class TooSlowError(AssertionError):
    """An input took more time than any input may."""


class TooMuchMemoryError(AssertionError):
    """An input took more memory than any input may."""


@contextlib.contextmanager
def limited(times: float = 1.0) -> Iterator[None]:
    """Fail if what is done inside takes more than that, `times` as much where it is slower."""
    began, most = time.process_time(), _most_resident()
    yield
    took, grew = time.process_time() - began, _most_resident() - most
    if took > SECONDS * times:
        raise TooSlowError(f"took {took:.1f} s of processor time")
    if grew > BYTES * times:
        raise TooMuchMemoryError(f"took {grew >> 20} MiB")


def _most_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
