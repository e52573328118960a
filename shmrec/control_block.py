"""The control block, kept as it should be by the process that serves the recording.

Runs in the collector. Every process of a recording has the control block mapped, and one that
scribbles on it would keep others from attaching, from asking for snapshots, and, by a word that
says that the recording is over, from recording. What the collector and the creator have written
there is known here, and is put back.

Invariant: a word is stored to only if it is not what it should be, so that nobody sees a change
where there is none.
"""

from __future__ import annotations

from typing import Final

from shmrec import fence
from shmrec.layout import CONTROL, WORD, SegmentState
from shmrec.segment import Segment

__all__ = ["ControlBlock"]

_CREATORS: Final = CONTROL.word("generation")
"""Words before this one are the creator's."""
_SERVING: Final = ("state", "collector_pid", "collector_start")


class ControlBlock:
    """What a control block that is being served has to say.

    `restored` counts how often something had to be put back.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._raw: Final = bytes(segment.view[: _CREATORS * WORD])
        words = segment.words[:_CREATORS].tolist()
        self._words: Final = dict(enumerate(words))
        self.keep_size: Final = segment.word("keep_size")
        self.keep_period_ns: Final = segment.word("keep_period_ns")
        for name in _SERVING:
            self._words[CONTROL.word(name)] = segment.word(name)
        self._words[CONTROL.word("state")] = SegmentState.OPEN
        self.restored = 0

    def restore(self) -> bool:
        """Put back what somebody has overwritten; whether there was anything."""
        words = self._segment.words
        serving = all(words[at] == value for at, value in self._words.items() if at >= _CREATORS)
        if serving and self._segment.view[: len(self._raw)] == self._raw:
            return False
        for at, value in self._words.items():
            if at and words[at] != value:
                words[at] = value
        fence.release()
        words[0] = self._words[0]
        self.restored += 1
        return True
