"""Event loops: what their exception handler is given, and their heartbeat."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from shmrec.integrations import asyncio as watched
from shmrec.segment import Segment
from tests.recordings import recorded, words


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    opened = asyncio.new_event_loop()
    yield opened
    opened.close()


async def fail() -> None:
    raise ValueError("nobody asks")


async def lose_a_task() -> None:
    task = asyncio.create_task(fail(), name="poller")
    await asyncio.wait([task])
    del task
    gc.collect()


def test_a_tasks_exception_that_nobody_retrieves(
    made: Segment, loop: asyncio.AbstractEventLoop
) -> None:
    given: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: given.append(context))
    watched.install(loop)
    loop.run_until_complete(lose_a_task())
    [event] = recorded(made)
    assert (event.kind, event.name) == ("exception", "ValueError")
    assert event.args["unhandled"] == "task"
    assert event.args["message"] == "nobody asks"
    assert event.args["said"] == "Task exception was never retrieved"
    assert event.args["task"] == "poller"
    [(kind, _, reason)] = words(made)
    assert (kind, reason) == ("exception", "unhandled ValueError in task poller")
    # Whose handler it was has it as well.
    assert [str(context["exception"]) for context in given] == ["nobody asks"]


def test_without_a_handler_before_it_the_loops_own_is_called(
    made: Segment, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    watched.install(loop)
    loop.call_soon(divmod, 1, 0)
    loop.run_until_complete(asyncio.sleep(0))
    assert [event.name for event in recorded(made)] == ["ZeroDivisionError"]
    assert [reason for _, _, reason in words(made)] == [
        "unhandled ZeroDivisionError in the event loop"
    ]
    assert [record.name for record in caplog.records] == ["asyncio"]


def test_what_was_there_is_called_though_recording_fails(
    loop: asyncio.AbstractEventLoop,
) -> None:
    given = []
    loop.set_exception_handler(lambda _, context: given.append(context))
    watched.install(loop, recorder=None)  # type: ignore[arg-type]
    handler = loop.get_exception_handler()
    assert handler is not None
    # The loop itself would keep to itself what a handler raises.
    handler(loop, {"message": "x", "exception": ValueError()})
    assert len(given) == 1


def test_a_connection_that_fails_is_recorded_and_no_cause_for_a_snapshot(
    made: Segment, loop: asyncio.AbstractEventLoop
) -> None:
    loop.set_exception_handler(lambda *_: None)
    watched.install(loop)
    context: dict[str, Any] = {"message": "fatal", "transport": object()}
    loop.call_exception_handler({**context, "exception": ConnectionResetError()})
    assert words(made) == []
    loop.call_exception_handler({**context, "exception": ValueError()})
    assert len(words(made)) == 1
    loop.call_exception_handler({"message": "no exception"})
    assert [(event.kind, event.name) for event in recorded(made)] == [
        ("exception", "ConnectionResetError"),
        ("exception", "ValueError"),
        ("instant", "asyncio"),
    ]


def test_installing_twice_is_once(made: Segment, loop: asyncio.AbstractEventLoop) -> None:
    loop.set_exception_handler(lambda *_: None)
    watched.install(loop)
    ours = loop.get_exception_handler()
    assert ours is not None
    # A handler that chains to ours, as an application may set one later.
    loop.set_exception_handler(lambda *given: ours(*given))
    watched.install(loop)
    loop.call_exception_handler({"message": "x", "exception": ValueError()})
    assert len(recorded(made)) == 1


def test_a_heartbeat_beats_while_the_loop_turns(made: Segment) -> None:
    async def main() -> None:
        watched.install(heartbeat=1000)
        watched.install(heartbeat=0.001)
        assert len(asyncio.all_tasks()) == 1
        while len(recorded(made)) < 4:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert {(event.kind, event.name) for event in recorded(made)} == {("instant", "heartbeat")}


def test_a_new_heartbeat_takes_the_place_of_the_old_one(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[asyncio.TimerHandle] = []
    later = loop.call_later

    def call_later(delay: float, *args: Any) -> asyncio.TimerHandle:
        timers.append(later(delay, *args))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", call_later)
    watched.install(loop, heartbeat=1000)
    watched.install(loop, heartbeat=2000)
    assert [timer.cancelled() for timer in timers] == [True, False]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_what_is_no_heartbeat(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        watched.install(loop, heartbeat=seconds)
    assert loop.get_exception_handler() is None


def test_without_a_loop_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        watched.install()


def test_a_loop_is_not_kept() -> None:
    loop = asyncio.new_event_loop()
    watched.install(loop, heartbeat=1000)
    loop.close()
    left = weakref.ref(loop)
    del loop
    gc.collect()
    assert left() is None
