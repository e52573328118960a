"""Writing a snapshot file, of the frames that `snapshot_file` describes and reads.

Runs in whoever writes one: the collector, and tools that recover memory or scrub a file.

Invariants: frames are in the file in the order of the calls, which is for the caller to get right:
the header, each producer before its batches and stacks, the trailer. What `flush` has not been
asked for may still wait in private memory, or in the caller's.
"""

from __future__ import annotations

import zlib
from typing import IO, Any

from shmrec.frame_values import HEADER_KEYS, PRODUCER_KEYS, STACK_KEYS
from shmrec.frames import Checksum, FrameWriter
from shmrec.layout import Frame
from shmrec.manifest import Header, Producer, Stack
from shmrec.ring import Batch, BatchView

__all__ = ["FileWriter"]


class FileWriter:
    """Writes a snapshot to a binary file; knows nothing of names and directories.

    The file is given frames in bunches; `flush` gives it those that wait. `crc32` is whatever
    computes what ``zlib.crc32`` does.
    """

    def __init__(self, file: IO[bytes], crc32: Checksum = zlib.crc32) -> None:
        self._frames = FrameWriter(file, crc32)
        self.flush = self._frames.flush
        self.producers = 0
        self.batches = 0
        self.events = 0

    @property
    def bytes(self) -> int:
        """The file's size so far."""
        return self._frames.bytes

    def header(self, header: Header) -> None:
        """The first frame."""
        value = {key: getattr(header, key) for key in HEADER_KEYS}
        self._frames.write([Frame.HEADER, value])  # step: frame-header

    def producer(self, producer: Producer) -> None:
        """A producer; its batches come after it."""
        value: dict[str, Any] = {key: getattr(producer, key) for key in PRODUCER_KEYS}
        if producer.cause is not None:
            value["cause"] = vars(producer.cause)
        self._frames.write([Frame.PRODUCER, value])  # step: frame-producer
        self.producers += 1

    def batch(self, producer: int, batch: Batch | BatchView) -> None:
        """One batch of the producer with that index; kept by reference until `flush`."""
        head = batch.head
        fields = [
            Frame.BATCH,
            producer,
            head.number,
            head.generation,
            head.start_ns,
            head.first,
            head.count,
            head.flags,
        ]
        self._frames.write_with(fields, batch.payload)  # step: frame-batch
        self.batches += 1
        self.events += head.count

    def stack(self, producer: int, stack: Stack) -> None:
        """A dump of the producer with that index."""
        value = {key: getattr(stack, key) for key in STACK_KEYS}
        self._frames.write([Frame.STACK, producer, value])  # step: frame-stack

    def trailer(self) -> None:
        """The last frame, and all that waited: a file without it is incomplete."""
        counts = {"producers": self.producers, "batches": self.batches, "events": self.events}
        self._frames.write([Frame.TRAILER, counts])  # step: frame-trailer
        self.flush()
