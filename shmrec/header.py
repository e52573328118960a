"""What a segment says of itself, checked before anything else in it is believed.

Runs in every process, when it creates or opens a segment. Nothing here opens or maps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from shmrec import layout, process
from shmrec.errors import CutShortError, LayoutMismatchError
from shmrec.layout import Geometry

__all__ = ["checked_geometry", "texts", "words"]


def checked_geometry(name: str, word: Callable[[str], int], size: int) -> Geometry:
    """The geometry of a segment of so many bytes; `word` gives its control block's words.

    Raises `LayoutMismatchError`, and `CutShortError` if all is well but for the size.
    """
    if word("magic") != layout.SEGMENT_MAGIC:
        raise LayoutMismatchError(f"recording {name!r} is not a shmrec segment, or is damaged")
    if word("byte_order") != layout.BYTE_ORDER:
        raise LayoutMismatchError(f"recording {name!r} was made on a machine of other byte order")
    version = word("layout_version")
    if version != layout.LAYOUT_VERSION or word("layout_id") != layout.LAYOUT_ID:
        which = f"version {version}, not {layout.LAYOUT_VERSION}"
        if version == layout.LAYOUT_VERSION:
            which = f"another build's variant of version {version}"
        raise LayoutMismatchError(
            f"the memory of recording {name!r} is laid out otherwise ({which}): use the same "
            "version of shmrec for all of its processes"
        )
    geometry = Geometry(word("producers"), word("slots"), word("slot_size"), word("stack_size"))
    believable = (
        1 <= geometry.producers <= layout.MAXIMUM_PRODUCERS
        and layout.MINIMUM_SLOTS <= geometry.slots <= layout.MAXIMUM_RING_SIZE // layout.SLOT_SIZE
        and geometry.slot_size == layout.SLOT_SIZE
        and geometry.stack_size == layout.STACK_SIZE
        and geometry.segment_size == word("segment_size")
        and geometry.requests_offset == word("requests_offset")
        and geometry.table_offset == word("table_offset")
        and geometry.rings_offset == word("rings_offset")
        and geometry.stacks_offset == word("stacks_offset")
        and size <= geometry.segment_size
    )
    if not believable:
        raise LayoutMismatchError(f"recording {name!r} is damaged: its geometry contradicts itself")
    if size < geometry.segment_size:
        raise CutShortError(
            f"recording {name!r} was cut short by a process that has it open: {size:,} of "
            f"{geometry.segment_size:,} bytes are left; `shmrec-dump recover {name}` keeps what "
            "they hold"
        )
    return geometry


def words(geometry: Geometry, keep_size: int, keep_period_ns: int) -> dict[str, int]:
    """The control block's words of a new segment; its magic, which makes it whole, apart."""
    return {
        "layout_version": layout.LAYOUT_VERSION,
        "layout_id": layout.LAYOUT_ID,
        "byte_order": layout.BYTE_ORDER,
        "segment_size": geometry.segment_size,
        "producers": geometry.producers,
        "slot_size": geometry.slot_size,
        "slots": geometry.slots,
        "requests_offset": geometry.requests_offset,
        "table_offset": geometry.table_offset,
        "rings_offset": geometry.rings_offset,
        "stacks_offset": geometry.stacks_offset,
        "stack_size": geometry.stack_size,
        "uid": os.geteuid(),
        "pid_namespace": process.pid_namespace(),
        "created_mono_ns": time.monotonic_ns(),
        "created_wall_ns": time.time_ns(),
        "keep_size": keep_size,
        "keep_period_ns": keep_period_ns,
        "generation": 1,
    }


def texts(name: str) -> dict[str, bytes]:
    """The control block's other fields of a new segment."""
    return {"boot_id": process.boot_id(), "run_id": os.urandom(16), "name": name.encode()}
