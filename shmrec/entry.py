"""A producer's entry: who owns a ring, and what its owner and the collector say of it.

Read in the collector and in tools; its owner writes it in `claim`, `batch` and `recorder`.

Invariants: nothing in it is believed before it has been checked: numbers that index something,
texts, flags that do not exist. A copy is of one owner only if that stayed the same meanwhile,
which `EntryReader.owner` sees to. Where the order of loads matters, `fence.acquire` stands
between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shmrec import fence
from shmrec.layout import (
    ENGINES,
    ENTRY,
    LABEL_BYTES,
    LOSSES,
    LOST_AT_MOST,
    EntryState,
    Geometry,
    StackFlag,
)

__all__ = ["Entry", "EntryReader"]

_ALL_STACKS: Final = StackFlag.ASKED | StackFlag.FATAL | StackFlag.APPLICATION | StackFlag.POLITE


@dataclass(slots=True)
class Entry:
    """A producer entry as it was at one moment. Times are CLOCK_MONOTONIC nanoseconds."""

    index: int
    incarnation: int
    state: int
    pid: int
    start_ticks: int
    attached_ns: int
    detached_ns: int
    engine: str
    fenced: bool
    identity: str
    label: str
    writing: int
    opening: int
    closed_generation: int
    losses: dict[str, int]
    settled: int
    ended_ns: int
    stacks: int
    stack_signal: int

    @property
    def attached(self) -> bool:
        """Whether the producer says it is still there."""
        return self.state == EntryState.LIVE


class EntryReader:
    """Reads one producer's entry; `words` and `view` index like the segment's."""

    def __init__(self, view: Any, words: Any, geometry: Geometry, index: int) -> None:
        self._view = view
        self._words = words
        self.index: Final = index
        self._entry: Final = geometry.entry(index)

    def _word(self, name: str) -> int:
        word: int = self._words[ENTRY.word(name, self._entry)]
        return word

    def incarnation(self) -> int:
        """How often the ring has been claimed; changes when another producer takes it."""
        return self._word("incarnation")

    def entry(self) -> Entry:
        """A copy of the producer's entry."""
        view, at = self._view, self._entry
        first = ENTRY.word("losses", at)
        losses = self._words[first : first + len(LOSSES)]
        engine = self._word("engine")
        state = self._word("state")
        # Whose it will be, where somebody claims it: its old owner may live on elsewhere.
        claimed = state == EntryState.CLAIMING
        label = bytes(view[ENTRY.bytes_at("label", at)]).split(b"\0", 1)[0]
        return Entry(
            index=self.index,
            incarnation=self._word("incarnation"),
            state=state,
            pid=self._word("claimer" if claimed else "pid"),
            start_ticks=self._word("claimer_start" if claimed else "start_ticks"),
            attached_ns=self._word("attached_ns"),
            detached_ns=self._word("detached_ns"),
            engine=ENGINES[engine] if 0 < engine < len(ENGINES) else "unknown",
            fenced=self._word("fenced") == 1,
            identity=bytes(view[ENTRY.bytes_at("identity", at)]).hex(),
            label=label[:LABEL_BYTES].decode("utf-8", "replace"),
            writing=self._word("writing"),
            opening=self._word("opening"),
            closed_generation=self._word("closed_generation"),
            losses={
                cause: min(count, LOST_AT_MOST) for cause, count in zip(LOSSES, losses, strict=True)
            },
            settled=self._word("settled"),
            ended_ns=self._word("ended_ns"),
            stacks=self._word("stacks") & _ALL_STACKS,
            stack_signal=self._word("stack_signal"),
        )

    def owner(self) -> Entry | None:
        """A copy of the entry that is of one owner throughout; None while there is none.

        Nor while the ring is being claimed: its old owner's words are overwritten then.
        """
        if not self.incarnation():
            return None
        fence.acquire()
        entry = self.entry()
        return entry if self.owned_by(entry) else None

    def owned_by(self, entry: Entry) -> bool:
        """Whether what has been read before this call was that owner's."""
        fence.acquire()
        # The state first: a ring that has been claimed since has another incarnation by then.
        settled = self._word("state") in (EntryState.LIVE, EntryState.DETACHED)
        fence.acquire()
        return settled and self.incarnation() == entry.incarnation
