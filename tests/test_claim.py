"""Claiming a ring and leaving it, when signal handlers come in the middle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmrec import claim, stacks
from shmrec.errors import RingsTakenError
from shmrec.layout import ENTRY, EntryState
from shmrec.recorder import Recorder
from shmrec.segment import Segment, open_segment

from .recordings import recorded, rings, unserved


class Interruption(Exception):
    """What a signal handler raises."""


@pytest.fixture
def recording(recording_name: str) -> Iterator[Segment]:
    """One ring for everybody: whoever keeps it leaves none to others."""
    with unserved(recording_name, producers=1) as made:
        yield made


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.detach()


def join(recorder: Recorder, recording: Segment) -> None:
    recorder.join(open_segment(recording.name), "", exceptions=False)


def state(recording: Segment) -> int:
    return recording.words[ENTRY.word("state", recording.geometry.entry(0))]


def interrupted(function: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    """The function, in the middle of which a handler raises, the first time."""
    calls = 0

    def interrupt(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1 and before:
            raise Interruption
        result = function(*args, **named)
        if calls == 1:
            raise Interruption
        return result

    return interrupt


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (claim, "_free_ring"),
        (claim, "_clear"),
        (claim, "_introduce"),
        (stacks, "arm"),
    ],
)
def test_an_attach_that_a_handler_ends_leaves_no_ring_taken(
    recording: Segment,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    before: bool,
) -> None:
    monkeypatch.setattr(module, name, interrupted(getattr(module, name), before=before))
    with pytest.raises(Interruption):
        join(recorder, recording)
    assert not recorder.attached
    assert state(recording) in (EntryState.FREE, EntryState.DETACHED)
    recorder.instant("to nobody")
    join(recorder, recording)
    recorder.instant("kept")
    assert [event.name for event in recorded(recording)] == ["kept"]
    with pytest.raises(RingsTakenError):
        join(Recorder(), recording)


@pytest.mark.parametrize("before", [True, False])
def test_a_detach_that_a_handler_ends_is_one_all_the_same(
    recording: Segment, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    join(recorder, recording)
    monkeypatch.setattr(stacks, "disarm", interrupted(stacks.disarm, before=before))
    with pytest.raises(Interruption):
        recorder.detach()
    assert state(recording) == EntryState.DETACHED
    assert not recorder.attached


def test_nobody_can_record_before_the_entry_says_that_it_lives(
    recording: Segment, recorder: Recorder
) -> None:
    bound: list[tuple[int, int]] = []

    class Looking:
        """An engine that looks at the entry as it is given the ring."""

        def bind(self, *_: Any, entry: int, **__: Any) -> None:
            words = recording.words
            bound.append(
                (words[ENTRY.word("state", entry)], words[ENTRY.word("incarnation", entry)])
            )

    with open_segment(recording.name) as opened:
        claim.claim(opened, Looking(), "python", "")  # type: ignore[arg-type]
    assert bound == [(EntryState.LIVE, 1)]


def test_what_a_handler_records_while_a_forked_child_gets_its_ring_is_counted(
    recording_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unserved(recording_name, producers=3) as recording:
        recorder = Recorder()
        join(recorder, recording)
        child = os.fork()
        if not child:
            code = 1
            try:
                clear = claim._clear

                def handled(*args: Any) -> None:
                    recorder.instant("by a handler")
                    clear(*args)

                monkeypatch.setattr(claim, "_clear", handled)
                recorder.instant("first")
                recorder.instant("second")
                recorder.detach()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert [event.name for event in recorded(recording)] == ["first", "second"]
        # The parent's, and one of the child's.
        assert [reader.entry().losses["reentrant"] for reader in rings(recording)] == [0, 1]
        recorder.detach()
