"""Why producers ended, from evidence of every kind, and of none."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from shmrec.findings import Verdict
from shmrec.layout import StackFlag
from shmrec.manifest import Cause
from shmrec.ring import Batch
from shmrec.verdict import KINDS

from .findings import (
    MIB,
    SECOND,
    TAKEN,
    analysed,
    crash_stack,
    died,
    exception,
    facts,
    in_threads,
    inside,
    producer,
)

KERNEL = "kernel (pidfd)"
KILL = Cause("signal 9 (SIGKILL)", KERNEL, signal=9)
ABORT = Cause("signal 6 (SIGABRT)", KERNEL, signal=6)
SEGV = Cause("signal 11 (SIGSEGV), core dumped", KERNEL, signal=11)
HOST = {"timeout_ms": 30_000, "told_ns": TAKEN - SECOND}
HANGING = inside(("request", 31.2, {"path": "/hang"}), ("query", 31.0, {}))


def code(number: int) -> Cause:
    return Cause(f"exit code {number}", "host", exit_code=number)


def memory(kills: int, others: int = 0) -> dict[str, Any]:
    return {
        "limit": 512 * MIB,
        "kills": kills,
        "others": others,
        "source": "/x/memory.events",
        "window_ns": 2_500_000_000,
        "peak": 512 * MIB,
    }


def verdict(path: Path, batches: list[Batch] | None = None, **fields: Any) -> Verdict:
    found = analysed(path, (died(**fields), batches or [])).findings[0].verdict
    assert found is not None
    assert found.kind in KINDS
    return found


def said(found: Verdict) -> str:
    return "\n".join([found.text, *found.evidence])


def test_out_of_memory(tmp_path: Path) -> None:
    sizes = facts(200 * MIB, 350 * MIB, 500 * MIB)
    found = verdict(tmp_path, cause=KILL, memory=memory(1), facts=sizes, peak_rss=510 * MIB)
    assert found.kind == "out of memory"
    assert found.text == "Out of memory: the kernel killed it."
    assert found.evidence == [
        "signal 9 (SIGKILL), known from kernel (pidfd)",
        "the kernel killed 1 process for want of memory in its cgroup in the 2.5 s before "
        "its end was noticed (/x/memory.events)",
        "it had 500.0 MiB resident of 512.0 MiB allowed, 1.0 s before its end, 510.0 MiB at most; "
        "it grew by 300.0 MiB in 20.0 s",
        "all processes of the cgroup had 512.0 MiB of 512.0 MiB allowed at most",
    ]


def test_a_kill_somewhere_on_the_machine_need_not_be_this_one(tmp_path: Path) -> None:
    found = verdict(tmp_path, cause=KILL, memory=memory(1) | {"whole_machine": True})
    assert found.kind == "killed"
    assert "it need not have been this one" in said(found)
    none = verdict(tmp_path, cause=KILL, memory=memory(0) | {"whole_machine": True})
    assert "not for want of memory: the kernel killed none on the machine" in said(none)


@pytest.mark.parametrize("code", [0, 1])
def test_a_host_that_gave_up_on_it_ended_it(tmp_path: Path, code: int) -> None:
    cause = Cause(f"exit code {code}", "kernel (pidfd)", exit_code=code)
    host = {"timeout_ms": 1500, "told_ns": 0}
    found = verdict(tmp_path, cause=cause, host=host)
    assert found.kind == "host timeout"
    assert f"(exit code {code}) after 1.5 s" in found.text


def test_out_of_memory_is_not_certain_where_others_died_as_well(tmp_path: Path) -> None:
    found = verdict(tmp_path, cause=KILL, memory=memory(1, 1))
    assert found.kind == "killed"
    assert found.text == "Killed with SIGKILL, possibly for want of memory: that is not certain."
    assert "1 other process died of SIGKILL in that cgroup meanwhile" in said(found)
    assert verdict(tmp_path, cause=KILL, memory=memory(2, 1)).kind == "out of memory"


def test_killed_by_somebody(tmp_path: Path) -> None:
    found = verdict(tmp_path, cause=KILL, memory=memory(0), facts=facts(80 * MIB))
    assert found.kind == "killed"
    # It may have killed itself.
    assert found.text == "Killed with SIGKILL, not for want of memory; who sent it is not known."
    assert found.evidence == [
        "signal 9 (SIGKILL), known from kernel (pidfd)",
        "not for want of memory: the kernel killed none in its cgroup in the 2.5 s before its end "
        "was noticed (/x/memory.events)",
        "it had 80.0 MiB resident of 512.0 MiB allowed, 1.0 s before its end",
    ]


def test_what_gunicorn_makes_of_an_exit_code(tmp_path: Path) -> None:
    said_so = "gunicorn stops the service at exit code 3: it takes the worker for one that cannot"
    assert said_so in said(verdict(tmp_path, cause=code(3), label="gunicorn worker"))
    assert "gunicorn" not in said(verdict(tmp_path, cause=code(5), label="gunicorn worker"))
    assert "gunicorn" not in said(verdict(tmp_path, cause=code(3)))


def test_gunicorns_question_is_answered(tmp_path: Path) -> None:
    found = verdict(tmp_path, cause=KILL, memory=memory(0), label="gunicorn worker")
    assert 'gunicorn\'s "Perhaps out of memory?" is what it says at any SIGKILL' in found.evidence
    for unsure in (memory(1), {}):
        assert "Perhaps" not in said(
            verdict(tmp_path, cause=KILL, memory=unsure, label="gunicorn worker")
        )


@pytest.mark.parametrize("read", [{}, {"kills": "many"}, {"kills": -1}, {"limit": 5}])
def test_killed_and_nothing_known_of_memory(tmp_path: Path, read: dict[str, Any]) -> None:
    found = verdict(tmp_path, cause=KILL, memory=read, peak_rss=3 * MIB)
    assert found.kind == "killed"
    assert found.text == "Killed with SIGKILL; whether for want of memory is not known."
    assert "the cgroup's count of kills for want of memory could not be read" in found.evidence
    assert "it had 3.0 MiB resident at most" in found.evidence


@pytest.mark.parametrize(
    ("cause", "how"),
    [(KILL, "SIGKILL"), (ABORT, "SIGABRT"), (code(1), "exit code 1")],
)
def test_host_timeout(tmp_path: Path, cause: Cause, how: str) -> None:
    found = verdict(tmp_path, HANGING, cause=cause, host=HOST, memory=memory(0))
    assert found.kind == "host timeout"
    assert found.text == (
        f"Host timeout: ended by its host ({how}) after 30.0 s, inside `request` for 31.2 s."
    )
    assert (
        "its host gave up on it: no answer for longer than 30.0 s; it said so 1.0 s before the end"
        in found.evidence
    )
    assert "open: `request path=/hang` for 31.2 s in MainThread" in found.evidence
    assert ("not for want of memory" in said(found)) == (cause is KILL)


def test_host_timeout_with_the_stack(tmp_path: Path) -> None:
    text = crash_stack().text.replace("Segmentation fault", "Aborted")
    stack = crash_stack(text=text)
    found = verdict(tmp_path, HANGING, cause=code(1), host=HOST, stacks=[stack])
    assert found.kind == "host timeout"
    assert (
        "open: `request path=/hang` for 31.2 s in MainThread, which was executing `crash` "
        "(/srv/app/views.py:12)" in found.evidence
    )


def test_none_of_several_requests_is_singled_out(tmp_path: Path) -> None:
    """One that holds the GIL makes all others as old as itself."""
    waiting = in_threads(*(("request", 31 - n, {"path": f"/{n}"}) for n in range(1, 7)))
    found = verdict(tmp_path, waiting, cause=KILL, host=HOST)
    assert found.text == (
        "Host timeout: ended by its host (SIGKILL) after 30.0 s, inside `request` for 30.0 s, "
        "the oldest of 6 open."
    )
    assert [text for text in found.evidence if text.startswith("open: ")] == [
        f"open: `request path=/{n}` for {31 - n}.0 s in pool_{n}" for n in range(1, 5)
    ]
    assert "and 2 more were open" in found.evidence


def test_out_of_memory_though_the_host_gave_up(tmp_path: Path) -> None:
    found = verdict(tmp_path, HANGING, cause=KILL, host=HOST, memory=memory(1))
    assert found.kind == "out of memory"
    assert "so that the SIGKILL may have been its host's as well" in found.evidence


def test_other_codes_are_no_timeout(tmp_path: Path) -> None:
    found = verdict(tmp_path, HANGING, cause=code(3), host=HOST)
    assert found.kind == "exit code"
    assert "its host gave up on it" in said(found)


def test_fatal_signal_with_its_stack(tmp_path: Path) -> None:
    found = verdict(tmp_path, cause=SEGV, stacks=[crash_stack()], stack_flags=StackFlag.FATAL)
    assert found.kind == "fatal signal"
    assert found.text == (
        "Fatal signal: SIGSEGV in `string_at` (ctypes/__init__.py:519), "
        "called by the application in `crash` (/srv/app/views.py:12)."
    )
    assert "faulthandler wrote its stacks at 'Segmentation fault'" in found.evidence
    assert "signal 11 (SIGSEGV), core dumped, known from kernel (pidfd)" in found.evidence


@pytest.mark.parametrize(
    ("number", "flags", "why"),
    [
        (11, 0, "no stack: faulthandler was not armed in it"),
        (8, StackFlag.ASKED, "no stack: faulthandler was not armed in it"),
        (7, StackFlag.FATAL, "no stack: nothing was written at its end"),
        (4, StackFlag.APPLICATION, "where the application's faulthandler writes"),
        (6, StackFlag.FATAL | StackFlag.APPLICATION, "the application's faulthandler"),
        (31, StackFlag.FATAL, "no stack: faulthandler writes none at SIGSYS"),
        (5, StackFlag.FATAL, "no stack: faulthandler writes none at SIGTRAP"),
    ],
)
def test_fatal_signal_without_a_stack(tmp_path: Path, number: int, flags: int, why: str) -> None:
    cause = Cause(f"signal {number}", KERNEL, signal=number)
    found = verdict(tmp_path, cause=cause, stack_flags=flags)
    assert found.kind == "fatal signal"
    assert found.text == f"Fatal signal: {signal.Signals(number).name}."
    assert why in said(found)


def test_an_asked_stack_is_not_that_of_the_signal(tmp_path: Path) -> None:
    text = crash_stack().text.split("\n\n", 1)[1]
    asked = crash_stack(kind="asked", text=text, taken_ns=TAKEN - 5 * SECOND)
    found = verdict(tmp_path, cause=SEGV, stacks=[asked], stack_flags=StackFlag.FATAL)
    assert found.text == "Fatal signal: SIGSEGV."
    assert "no stack of the signal itself: the one there is was taken when asked" in found.evidence


def test_no_stack_is_left_by_sigkill(tmp_path: Path) -> None:
    found = verdict(tmp_path, HANGING, cause=KILL, host=HOST)
    assert "no stack: nothing can be written at SIGKILL, and it was not asked for before" in (
        found.evidence
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGRTMIN + 3, 64, 200])
def test_other_signals(tmp_path: Path, number: int) -> None:
    found = verdict(tmp_path, cause=Cause("signal", KERNEL, signal=number))
    assert found.kind == "killed"
    assert f"Killed by signal {int(number)} (SIG" in found.text


def test_unhandled_exception(tmp_path: Path) -> None:
    found = verdict(tmp_path, exception("main", ago=0.2), cause=code(1))
    assert found.kind == "unhandled exception"
    assert found.text == "Unhandled exception: ValueError: no such thing (exit code 1)."
    assert found.evidence == [
        "exit code 1, known from host",
        "200 ms before its end an exception left its main thread, raised at /srv/app/views.py:3 f",
    ]


@pytest.mark.parametrize(
    ("whose", "ago", "said_so"),
    [
        ("thread", 0.2, "an exception left a thread: ValueError: no such thing"),
        ("task", 0.2, "an exception left a task: ValueError: no such thing"),
        ("main", 60, "1 min 0 s before its end an exception left its main thread"),
    ],
)
def test_exceptions_that_do_not_end_a_process(
    tmp_path: Path, whose: str, ago: float, said_so: str
) -> None:
    found = verdict(tmp_path, exception(whose, ago=ago), cause=code(1))
    assert found.kind == "exit code"
    assert said_so in said(found)


def test_exit_code(tmp_path: Path) -> None:
    found = verdict(tmp_path, cause=code(3))
    assert found.kind == "exit code"
    assert found.text == "It ended by itself, with exit code 3."
    assert "no unhandled exception was recorded before its end" in found.evidence
    assert "it did not detach, as a process does that runs its exit handlers" in found.evidence


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("detached", None),
        ("detached", code(0)),
        ("detached", Cause("unknown", "")),
        ("exited", code(0)),
        ("exited", None),
    ],
)
def test_in_order(tmp_path: Path, state: str, cause: Cause | None) -> None:
    assert verdict(tmp_path, state=state, cause=cause).kind == "in order"


def test_unknown_stays_unknown(tmp_path: Path) -> None:
    for fields in (
        {"cause": Cause("unknown", "no wait status could be had")},
        {"cause": None},
        {"cause": None, "ended_ns": 0},
        {"cause": None, "memory": memory(1), "host": HOST},
    ):
        found = verdict(tmp_path, HANGING, **fields)
        assert (found.kind, found.text) == ("unknown", "Why it ended is not known.")
    # What is known all the same is said.
    assert "for want of memory in its cgroup" in said(found)
    assert "its host gave up on it" in said(found)


def test_a_deadly_stack_tells_where_no_status_does(tmp_path: Path) -> None:
    found = verdict(tmp_path, cause=None, stacks=[crash_stack()])
    assert found.kind == "fatal signal"
    assert found.text.startswith("Fatal signal: Segmentation fault in `string_at`")
    handled = crash_stack(text=crash_stack().text.replace("Segmentation fault", "Aborted"))
    assert verdict(tmp_path, cause=None, stacks=[handled]).kind == "unknown"


def test_the_living_get_none(tmp_path: Path) -> None:
    found = analysed(tmp_path, (producer(), []), (producer(1, state="stalled"), []))
    assert [each.verdict for each in found.findings] == [None, None]
