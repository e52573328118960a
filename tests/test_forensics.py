"""What a snapshot tells of each producer, and what it says that it cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shmrec.decoder import Event
from shmrec.layout import SlotFlag
from shmrec.snapshot_file import read
from shmrec.survey import Durations, Seen, survey

from .dumping import batch, dump, write_file
from .findings import (
    MAIN,
    MIB,
    SECOND,
    TAKEN,
    analysed,
    crash_stack,
    died,
    facts,
    header,
    in_threads,
    inside,
    producer,
)


def test_threads_with_their_spans_and_stacks(tmp_path: Path) -> None:
    old = inside(("request", 9, {"n": 1}), ("query", 8, {}), thread=4242)
    young = inside(("request", 1, {"n": 2}), thread=4243)
    young[0].head.number = 2
    young[0].payload = batch(
        [1, 0, 4242, "main"], [2, 0, "request", 424200, 8 * SECOND, {"n": 1}],
        [2, 0, "query", 424201, 7 * SECOND],
        [1, 0, 4243, "pool"], [4, 0, "request", 7, {"n": 2}],
    ).payload  # fmt: skip
    finding = analysed(tmp_path, (producer(), [*old, *young])).findings[0]
    assert [thread.thread for thread in finding.threads] == [4242, 4243]
    assert [span.name for span in finding.threads[0].spans] == ["query", "request"]
    assert finding.oldest is finding.threads[0].spans[-1]
    assert finding.age_ns(finding.oldest) == 9 * SECOND
    assert [thread.stack for thread in finding.threads] == [None, None]

    fatal = analysed(tmp_path, (died(stacks=[crash_stack(idents={0xA1: 4243})]), [*old, *young]))
    struck, waiting, other = fatal.findings[0].threads
    # The one that the signal hit comes first, with its own spans.
    assert fatal.findings[0].struck is struck
    assert struck.thread == 4243
    assert [span.args for span in struck.spans] == [{"n": 2}]
    assert fatal.findings[0].request is struck.spans[0]
    assert finding.request is finding.oldest
    assert struck.stack is not None
    assert struck.stack.frames[0].function == "string_at"
    assert (waiting.thread, waiting.stack) == (4242, None)
    # Of the last it is not known which thread it is: its stack is shown with no spans.
    assert (other.thread, other.spans) == (0, [])
    assert other.stack is not None
    assert other.stack.ident == 0xB1


def test_of_an_ended_one_what_it_wrote_at_its_end(tmp_path: Path) -> None:
    text = 'Thread 0x00a1 (most recent call first):\n  File "a.py", line 1 in asked\n'
    asked = crash_stack(kind="asked", text=text, taken_ns=TAKEN + 1)
    dead = analysed(tmp_path, (died(stacks=[crash_stack(), asked]), [])).findings[0]
    assert dead.stack == crash_stack()
    assert dead.fatal == "Segmentation fault"
    older = crash_stack(kind="asked", text=text, taken_ns=TAKEN - 9 * SECOND)
    alive = analysed(tmp_path, (producer(stacks=[asked, older]), [])).findings[0]
    assert alive.stack == asked


def test_rates_silence_and_history(tmp_path: Path) -> None:
    start = TAKEN - 5 * SECOND
    slow = [[3, SECOND // 10, "tick"] for _ in range(40)]
    events = batch(MAIN, *slow, [3, SECOND // 4, "tick"], [3, 0, "last"], start_ns=start)
    finding = analysed(tmp_path, (producer(), [events])).findings[0]
    assert finding.history_ns == 5 * SECOND
    assert finding.silence_ns == 3 * SECOND // 4
    assert finding.rate_before == pytest.approx(39 / 4)
    assert finding.rate_last == 3
    assert finding.last is not None
    assert finding.last.name == "last"
    short = batch(MAIN, [3, 0, "one"], start_ns=TAKEN - SECOND // 2)
    finding = analysed(tmp_path, (producer(), [short])).findings[0]
    assert (finding.rate_before, finding.rate_last) == (None, 1)
    # A rate over less than a second would say nothing.
    ticks = batch(MAIN, *([3, 1, "tick"] for _ in range(9)), start_ns=TAKEN - 3 * SECOND // 2)
    finding = analysed(tmp_path, (producer(), [ticks])).findings[0]
    assert (finding.rate_before, finding.rate_last) == (None, 0)
    finding = analysed(tmp_path, (producer(), [])).findings[0]
    assert (finding.rate_last, finding.silence_ns, finding.history_ns) == (None, None, None)


def test_memory_and_processor(tmp_path: Path) -> None:
    rows = facts(100 * MIB, -1, 300 * MIB, every=2, cpu=0.97, state="R")
    one = producer(
        facts=rows, peak_rss=400 * MIB, memory={"limit": 512 * MIB}, doing={"wchan": "0"}
    )
    finding = analysed(tmp_path, (one, [])).findings[0]
    trend = finding.trend
    assert trend is not None
    assert (trend.first_rss, trend.last_rss, trend.peak_rss) == (100 * MIB, 300 * MIB, 400 * MIB)
    assert (trend.growth, trend.limit, trend.threads, trend.files) == (200 * MIB, 512 * MIB, 3, 12)
    assert trend.cpu == pytest.approx(0.97)
    assert finding.waiting == "running (its main thread), using 97% of a processor"
    # What it did before the last second or so does not count.
    late = [[row[0], 1, 0, 3, 12, "R"] for row in facts(1, 1, 1, every=1)]
    late[-1][2] = SECOND
    finding = analysed(tmp_path, (producer(facts=late), [])).findings[0]
    assert finding.trend is not None
    assert finding.trend.cpu == pytest.approx(1.0)
    doing = {"wchan": "futex_wait_queue", "syscall": "futex"}
    finding = analysed(tmp_path, (producer(doing=doing), [])).findings[0]
    assert finding.waiting == "in system call futex, waiting in futex_wait_queue"


def test_which_threads_run(tmp_path: Path) -> None:
    """One that holds the GIL runs, while those that wait for it do not."""
    spans = in_threads(("request", 3, {"path": "/a"}), ("request", 2, {"path": "/b"}))
    doing = {"syscall": "futex", "running": [2, 100, 77, "x", True, None]}
    rows = facts(MIB, MIB, every=1)
    finding = analysed(tmp_path, (producer(doing=doing, facts=rows), spans)).findings[0]
    assert finding.waiting == (
        "in system call futex (its main thread), running in pool_2, thread 77, "
        "using 0% of a processor"
    )
    odd = producer(doing={"running": {"a": 1}})
    assert analysed(tmp_path, (odd, spans)).findings[0].waiting == ""


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1, 1, 1, 1, "S"]],
        [[5, -1, -1, -1, -1, ""], [5, -7, -7, -7, -7, ""]],
        [[1 << 63, 1 << 63, 1 << 63, 1, 1, "?"], [1, 0, 0, 0, 0, "x" * 999]],
    ],
)
def test_hostile_facts(tmp_path: Path, rows: list[list[Any]]) -> None:
    dead = died(facts=rows, memory={"limit": "much", "kills": None}, host={"timeout_ms": []})
    assert analysed(tmp_path, (dead, [])).findings[0].verdict is not None


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    lossy = died(
        ended_ns=0,
        losses={"overwritten": 1234, "oversized": 2, "odd": 1},
        evidence="stalled",
        damage=[f"batch {n}: bad" for n in range(5)],
        stacks=[crash_stack(cut=True, note="two threads more")],
    )
    events = inside(("request", 2.1, {}))
    events[0].head.flags |= SlotFlag.PARTIAL_PREAMBLE
    found = analysed(tmp_path, (lossy, events)).findings[0].unknowns
    assert "its history starts 2.1 s before: 1,234 older events overwritten" in found
    assert "2 events larger than a batch" in found
    assert "1 event lost: odd" in found
    assert "more spans were open than it could name: some are missing" in found
    assert "what it was just recording may be missing" in found
    assert "damaged: batch 0: bad" in found
    assert "and 2 more damages" in found
    assert "when it ended is not known: ages are up to the snapshot" in found
    assert "its stack is cut off: threads or calls are missing" in found
    assert "of its stack: two threads more" in found
    whole = analysed(tmp_path, (producer(), inside(("request", 2.1, {}))))
    assert whole.findings[0].unknowns == []
    assert whole.unknowns == []
    trimmed = producer(losses={"overwritten": 1}, trimmed=2)
    found = analysed(tmp_path, (trimmed, inside(("x", 2, {})))).findings[0].unknowns
    assert found == ["its history starts 2.0 s before: 3 older events overwritten or left out"]
    nothing = analysed(tmp_path, (producer(stacks=[crash_stack(text="?")]), [])).findings[0]
    assert "its stack could not be read" in nothing.unknowns
    assert "1 line of its stack not understood" in nothing.unknowns
    assert analysed(tmp_path, (producer(), events), flushes=0).unknowns


def test_a_snapshot_always_gives_the_same_analysis(tmp_path: Path) -> None:
    """In whatever order a process has the members of a set."""
    # Each has something in common with each: who comes together with whom is a matter of order.
    common = [{"a": 1, "b": 1, "d": 1}, {"a": 1, "c": 1, "e": 1}, {"b": 1, "c": 1, "f": 1}]
    waiting = [
        (producer(n), inside(("lock", 3, {**args, "n": n}))) for n, args in enumerate(common)
    ]
    dead = died(3, stacks=[crash_stack()], losses={"overwritten": 3, "oversized": 1})
    requests = in_threads(*((f"request {n}", 9 - n, {"n": 1, "m": 2}) for n in range(6)))
    file = write_file(tmp_path / "x.shmrec", header(), [*waiting, (dead, requests)])
    shown = {
        dump("info", file, "--json", env={"PYTHONHASHSEED": str(seed)}).stdout for seed in range(8)
    }
    assert len(shown) == 1
    assert "2 of 4 ws inside `lock a=1`" in shown.pop()


def test_an_old_stack_says_so(tmp_path: Path) -> None:
    text = crash_stack().text.split("\n\n", 1)[1]
    asked = crash_stack(kind="asked", text=text, taken_ns=TAKEN - 9 * SECOND)
    finding = analysed(tmp_path, (producer(stacks=[asked]), [])).findings[0]
    assert finding.unknowns == [
        "no event of it is in the snapshot",
        "its stack is from 9.0 s before",
    ]


def test_durations_are_exact_while_few_and_bounded_when_many() -> None:
    few = Durations()
    for ns in (5, 1, 9, -3, 1 << 70):
        few.add(ns)
    assert (few.count, few.median, few.longest) == (5, 5, (1 << 63) - 1)
    assert Durations().median == 0
    many, again = Durations(), Durations()
    for number in range(200_000):
        many.add(number)
        again.add(number)
    assert many.count == 200_000
    assert many.longest == 199_999
    assert many.median == again.median == pytest.approx(100_000, rel=0.02)
    assert len(many._samples) < 1 << 14


def test_a_survey_keeps_few_names_and_few_exceptions(tmp_path: Path) -> None:
    start = TAKEN - 9 * SECOND
    ends = [
        batch(
            MAIN,
            *([5, 1, f"s{n % 700}", n, n] for n in range(first, first + 350)),
            number=number,
            start_ns=start,
        )
        for number, first in enumerate(range(0, 1050, 350), 1)
    ]
    raised = batch(
        MAIN,
        *([7, 1, f"E{n}", {"unhandled": "thread"}] for n in range(99)),
        [7, 1, "Handled", {}],
        number=4,
        start_ns=start + SECOND,
    )
    file = write_file(tmp_path / "x.shmrec", header(), [(producer(), [*ends, raised])])
    every = survey(read(file))
    assert len(every.durations) == 512
    assert survey(read(file), {"s7", "none"}).durations["s7"].count == 2
    assert [event.name for event in every.seen[0].unhandled] == [f"E{n}" for n in range(91, 99)]
    assert Seen().last is None
    assert isinstance(every.seen[0].last, Event)
