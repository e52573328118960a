"""A batch being filled: opening its slot, its preamble, its names, sealing it.

Runs in producers, inside `writer.Writer`'s critical section. Its other half, the decoder of
what is written here, is the neighbour `decoder`; the read side of the ring is `ring`.

Invariants:

- ``opening`` names a batch before its slot is touched; the slot's ``number`` is 0 while its
  other words are being set.
- ``committed`` grows only when all bytes below it are in place, and one store publishes the
  bytes and the count of events together.
- ``closed_generation`` is set before the first event of a newer generation is committed.
- Nothing here runs a program's code or can fail but for want of memory: texts are exact `str`,
  and only numbers and texts are packed.
"""

from __future__ import annotations

import contextlib
import os
from itertools import chain, islice
from typing import Any, Final

from shmrec import events, layout
from shmrec.events import NAME, OPEN, THREAD
from shmrec.layout import (
    CONTROL,
    COUNT_SHIFT,
    ENTRY,
    LOSSES,
    LOST_AT_MOST,
    SLOT,
    SegmentState,
    SlotFlag,
)
from shmrec.threads import Speaker
from shmrec.values import bounded_text, pack

__all__ = ["LOSS", "OpenBatch"]

_NUMBER, _GENERATION, _START, _COMMITTED, _FIRST, _FLAGS = (
    SLOT.word(name) for name in ("number", "generation", "start_ns", "committed", "first", "flags")
)
LOSS: Final = {cause: index for index, cause in enumerate(LOSSES)}


class OpenBatch:
    """The ring of one producer, and the batch in it that is being filled."""

    # Slots, because so many attributes in a dict would cost a lookup each.
    __slots__ = (
        "_base",
        "_committed",
        "_events",
        "_forgotten",
        "_generation",
        "_guard",
        "_last",
        "_limit",
        "_names",
        "_number",
        "_open",
        "_position",
        "_ring",
        "_rotation",
        "_slot_size",
        "_slots",
        "_stack_fd",
        "_stack_start",
        "_stack_turn",
        "_thread",
        "_view",
        "_w_closed",
        "_w_committed",
        "_w_generation",
        "_w_losses",
        "_w_opening",
        "_w_stack_turn",
        "_w_state",
        "_w_writing",
        "_words",
        "_writing",
    )

    _guard: memoryview[int]

    def _close_batch(self) -> None:
        """Forget the batch: the next event opens one, with nothing known and nothing open."""
        self._open: dict[int, tuple[str, int, Speaker, bytes]] = {}
        self._forgotten = False
        self._names: dict[str, bytes] = {}
        self._thread: Speaker | None = None
        self._generation = -1
        self._base = 0
        self._position = 0
        self._limit = -1
        self._events = 0
        self._committed = 0
        self._last = 0
        self._rotation = 0
        self._stack_fd = -1
        self._stack_start = self._stack_turn = 0

    def _place_ring(
        self, view: Any, words: Any, entry: int, ring: int, slot_size: int, slots: int
    ) -> None:
        """Say where the producer's entry and ring are, in bytes."""
        self._view = view
        self._words = words
        self._ring = ring
        self._slots = slots
        self._slot_size = slot_size
        self._w_generation = CONTROL.word("generation")
        self._w_state = CONTROL.word("state")
        self._w_writing = ENTRY.word("writing", entry)
        self._w_opening = ENTRY.word("opening", entry)
        self._w_closed = ENTRY.word("closed_generation", entry)
        self._w_losses = ENTRY.word("losses", entry)
        self._w_stack_turn = ENTRY.word("stack_turn", entry)
        self._number = words[self._w_opening]
        self._writing = words[self._w_writing] & ~1

    def _take_ring_away(self) -> None:
        """Leave memory to read and write that is nobody's, for who waits for the lock."""
        self._words = memoryview(bytearray((1 + len(LOSSES)) * layout.WORD)).cast("Q")
        self._w_writing = self._w_generation = 0
        self._w_losses = 1

    def _lost(self, cause: str, count: int = 1) -> None:
        """Count events of ours that are lost, in words that somebody may have scribbled on."""
        index = self._w_losses + LOSS[cause]
        known = self._words[index]
        if known < LOST_AT_MOST:
            self._words[index] = max(0, known + count)

    def _seal(self, more: int = 0) -> None:
        if self._base:
            self._words[self._base + _FLAGS] |= SlotFlag.SEALED | more

    def _turn(self, generation: int, now: int) -> bool:
        """Seal the batch and open the next one; False if the recording has been closed."""
        words = self._words
        if not self._guard[0]:
            # Another thread detached while this one waited for the lock.
            return False
        newer = generation != self._generation
        self._seal(SlotFlag.END_OF_GENERATION if newer else 0)  # step: seal
        if newer:
            words[self._w_closed] = max(0, generation - 1)  # step: closed
            if words[self._w_state] == SegmentState.CLOSED:
                self._base = 0
                self._guard[0] = 0
                self._lost("closed")
                return False
        self._events += self._committed >> COUNT_SHIFT
        self._committed = 0
        self._limit = -1
        self._number = number = self._number + 1
        start = self._ring + (number - 1) % self._slots * self._slot_size
        base = start // layout.WORD
        words[self._w_opening] = number  # step: opening
        words[base + _NUMBER] = 0  # step: zero
        words[base + _GENERATION] = generation  # step: fields
        words[base + _START] = now  # step: fields
        words[base + _COMMITTED] = 0  # step: fields
        words[base + _FIRST] = self._events  # step: fields
        words[base + _FLAGS] = 0  # step: fields
        words[base + _NUMBER] = number  # step: number
        self._base = base
        self._w_committed = base + _COMMITTED
        self._position = start + SLOT.size
        self._names = {}
        self._thread = None
        self._last = now
        self._generation = generation
        self._limit = start + self._slot_size
        if self._open:
            self._preamble(now)
        if self._forgotten:
            words[base + _FLAGS] |= SlotFlag.PARTIAL_PREAMBLE
        if self._stack_fd >= 0:
            self._rewind_stack()
        return True

    def _rewind_stack(self) -> None:
        """Have the next stack written from the beginning, if the collector took the last one."""
        turn = self._words[self._w_stack_turn]
        if turn != self._stack_turn:
            self._stack_turn = turn
            with contextlib.suppress(OSError):
                os.lseek(self._stack_fd, self._stack_start, os.SEEK_SET)

    def _forget_older(self) -> None:
        """Know the older half of the open spans no more: batches say that some are missing."""
        for span in list(self._open)[: len(self._open) // 2]:
            del self._open[span]
        self._forgotten = True

    def _preamble(self, now: int) -> None:
        """Name the open spans; if they are too many, others in every batch."""
        spans = self._open.items()
        budget = self._position + (self._limit - self._position) // events.PREAMBLE_SHARE
        if self._rotation >= len(spans):
            self._rotation = 0
        turned = chain(islice(spans, self._rotation, None), islice(spans, self._rotation))
        limit = self._limit
        for written, (span, (name, start, thread, args)) in enumerate(turned):
            known = self._introduce(name, thread) if self._position <= budget else b""
            head = OPEN.prefix(bool(args)) + b"\0" + known
            event = head + pack(span) + pack(now - start) + args
            self._limit = limit
            if not known or self._position + len(event) > limit:
                # One that is too large for any preamble must not keep the others out of all.
                self._rotation += max(1, written)
                self._words[self._base + _FLAGS] |= SlotFlag.PARTIAL_PREAMBLE
                break
            self._place(event)
        else:
            self._rotation = 0
        self._words[self._w_committed] = self._committed  # step: preamble

    def _introduce(self, name: str, thread: Speaker) -> bytes:
        """Have the batch know the name, and that `thread` speaks; the name's packed number.

        The bytes are published with the event that needs them. In a batch that is too full for
        them nothing changes, and the batch is marked full.
        """
        names = self._names
        fresh: dict[str, bytes] = {}
        needed = b""
        speaks = thread is not self._thread
        for text in (thread.name, name) if speaks else (name,):
            if text not in names and text not in fresh:
                fresh[text] = number = pack(len(names) + len(fresh))
                # Only known now to be new: a name costs nothing to check again.
                shown = bounded_text(text, events.NAME_LIMIT)
                needed += NAME.prefix() + b"\0" + number + pack(shown)
        if speaks:
            speaker = fresh.get(thread.name) or names[thread.name]
            needed += THREAD.prefix() + b"\0" + pack(thread.id) + speaker
        if self._position + len(needed) > self._limit:
            self._limit = -1
            return b""
        self._place(needed)
        names.update(fresh)
        self._thread = thread
        return names[name]

    def _place(self, data: bytes) -> None:
        """Put bytes that count as no event behind the last ones, to be published later."""
        end = self._position + len(data)
        self._view[self._position : end] = data
        self._position = end
        self._committed += len(data)

    def _recover(self) -> None:
        """After an interruption, let the published words say where things stand."""
        self._generation = -1
        self._limit = -1
        if self._base:
            self._committed = self._words[self._w_committed]
