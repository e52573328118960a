"""Events as lines of JSON, one an event, as `shmrec-dump events --json --facts` prints them.

Runs in ``shmrec-dump export``. The schema is that of `plain.event_object`, and stays.
"""

from __future__ import annotations

from typing import Final

from shmrec.exporting import Out, Source
from shmrec.plain import dumps, event_object

__all__ = ["BINARY", "HELP", "SUFFIXES", "export"]

HELP: Final = "lines of JSON, an event each"
SUFFIXES: Final = (".jsonl", ".ndjson")
BINARY: Final = False


def export(source: Source, out: Out) -> None:
    """Write the lines."""
    for event in source.events():
        out.write(f"{dumps(event_object(source.snapshot, event))}\n".encode("ascii"))
