"""Which deaths have been told already, where the collector that told them was killed.

Runs in the collector's process before it serves. A death is settled in memory after its snapshot
has its name on disk; a collector that is killed in between leaves one that is both told and not
settled. The snapshot itself says so, and nothing else is believed: it must be of this very run.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from shmrec import store
from shmrec.errors import ShmrecError
from shmrec.layout import ENTRY
from shmrec.segment import Segment
from shmrec.snapshot_file import read

__all__ = ["settle_told"]


def settle_told(segment: Segment, directory: Path) -> None:
    """Settle the deaths that the recording's newest death snapshot tells; under the lock.

    Only the newest can be one whose deaths are not settled: one follows the other.
    """
    kept = (each for each in store.listing(directory) if each.recording == segment.name)
    newest = next((each for each in kept if each.death), None)
    if newest is None:
        return
    # One that cannot be read tells nothing; then it is told again.
    with contextlib.suppress(ShmrecError, OSError):
        snapshot = read(newest.path)
        if snapshot.header.run_id != segment.field("run_id").hex():
            return
        for producer in snapshot.producers:
            index = producer.index
            if producer.state != "dead" or index not in snapshot.header.suspects:
                continue
            if not 0 <= index < segment.geometry.producers:
                continue
            at = segment.geometry.entry(index)
            if segment.words[ENTRY.word("incarnation", at)] == producer.incarnation:
                segment.words[ENTRY.word("settled", at)] = producer.incarnation
