"""A snapshot as tracks: what nests, what crosses, is in flight, was lost, names a parent."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shmrec.errors import DamagedFileError
from shmrec.layout import SlotFlag
from shmrec.lineage import named_parent, span_id, trace_id
from shmrec.manifest import Header
from shmrec.nesting import ORPHANS
from shmrec.ring import Batch
from shmrec.slices import LATEST, Item, Slice
from shmrec.snapshot_file import read

from .dumping import batch, write_file
from .findings import SECOND, TAKEN, died, header, producer
from .incident import (
    BEGIN,
    COUNTER,
    END,
    INSTANT,
    OPEN,
    THREAD,
    TRACE,
    incident,
    many,
    one,
    shown,
    timeline_of,
)

MAIN = [THREAD, 0, 100, "MainThread"]
START = TAKEN - SECOND


def slices(items: list[Item]) -> list[Slice]:
    """The whole slices, by their beginnings."""
    found = [item.slice for item in items if item.kind == "end" and item.slice is not None]
    return sorted(found, key=lambda each: each.key)


def tracks(items: list[Item]) -> dict[str, list[str]]:
    """The names of the slices of each track."""
    found: dict[str, list[str]] = defaultdict(list)
    for each in slices(items):
        track = each.track
        found[f"{track.family}{track.lane}" if track.family else track.name].append(each.name)
    return dict(found)


def check_nesting(items: list[Item]) -> None:
    """What the model promises of every snapshot."""
    open_slices: dict[Any, list[Slice]] = defaultdict(list)
    now: Counter[Any] = Counter()
    for item in items:
        assert 0 <= item.time_ns <= LATEST
        if item.process is not None and item.kind in ("begin", "end", "instant"):
            assert item.time_ns >= now[item.process]
            now[item.process] = item.time_ns
        if item.kind == "begin":
            assert item.slice is not None
            stack = open_slices[item.track]
            assert item.slice.depth == len(stack)
            assert item.slice.above is (stack[-1] if stack else None)
            stack.append(item.slice)
        elif item.kind == "end":
            assert open_slices[item.track].pop() is item.slice
    assert not any(open_slices.values())


def test_spans_of_a_thread_nest_on_its_track(tmp_path: Path) -> None:
    file = one(
        batch(
            MAIN,
            [BEGIN, 0, "a", 1, {"x": 1}],
            [BEGIN, 1, "b", 2],
            [END, 1, "b", 1, 2],
            [BEGIN, 0, "c", 3],
            [END, 1, "c", 1, 3],
            [END, 0, "a", 3, 1, {"y": 2}],
            start_ns=START,
        ),
        path=tmp_path,
    )
    items = shown(file)
    check_nesting(items)
    assert tracks(items) == {"MainThread": ["a", "b", "c"]}
    a, b, c = slices(items)
    assert (a.depth, b.depth, c.depth) == (0, 1, 1)
    assert (a.begin_ns, a.end_ns) == (START, START + 3)
    assert (a.args, a.end_args) == ({"x": 1}, {"y": 2})
    assert b.parent == c.parent == a.key
    assert shown(file)[-1].name == items[-1].name


def test_spans_that_cross_go_to_the_family_of_their_name(tmp_path: Path) -> None:
    file = one(
        batch(
            MAIN,
            [BEGIN, 0, "outer", 9],
            [BEGIN, 0, "task", 1],
            [BEGIN, 1, "task", 2],
            [BEGIN, 1, "quick", 3],
            [END, 1, "quick", 1, 3],
            [END, 1, "task", 4, 1],
            [BEGIN, 1, "task", 4],
            [END, 1, "task", 5, 2],
            [END, 1, "task", 2, 4],
            [END, 1, "outer", 8, 9],
            start_ns=START,
        ),
        path=tmp_path,
    )
    items = shown(file)
    check_nesting(items)
    # What crosses nothing stays; a lane that is free is used again.
    assert tracks(items) == {
        "MainThread": ["outer", "quick"],
        "task0": ["task", "task"],
        "task1": ["task"],
    }
    assert [each.span for each in slices(items) if each.track.lane] == [2]


def test_threads_do_not_cross_each_other(tmp_path: Path) -> None:
    file = one(
        batch(
            MAIN,
            [BEGIN, 0, "a", 1],
            [THREAD, 0, 7, "other"],
            [BEGIN, 1, "b", 2],
            [THREAD, 0, 100, "MainThread"],
            # Another thread ends it: it stays where it began.
            [END, 1, "b", 1, 2],
            [END, 1, "a", 3, 1],
            start_ns=START,
        ),
        path=tmp_path,
    )
    items = shown(file)
    check_nesting(items)
    assert tracks(items) == {"MainThread": ["a"], "other": ["b"]}


def test_what_is_open_at_death_is_shown_to_the_end(tmp_path: Path) -> None:
    dead = died(pid=100)
    file = write_file(
        tmp_path / "x.shmrec",
        header(),
        [
            (
                dead,
                [
                    batch(
                        MAIN,
                        [BEGIN, 0, "request", 1],
                        [BEGIN, 1, "query", 2],
                        [END, 1, "query", 1, 2],
                        [BEGIN, 1, "render", 3],
                        start_ns=START,
                    )
                ],
            )
        ],
    )
    items = shown(file)
    check_nesting(items)
    request, query, render = slices(items)
    assert (request.in_flight, query.in_flight, render.in_flight) == (True, False, True)
    assert request.end_ns == render.end_ns == TAKEN
    (mark,) = [item for item in items if item.kind == "mark" and item.process is not None]
    assert mark.time_ns == TAKEN
    assert mark.name.startswith("death: ")
    # The slices end before their process is said to have.
    assert items.index(mark) > max(n for n, item in enumerate(items) if item.kind == "end")


def test_a_beginning_that_was_overwritten(tmp_path: Path) -> None:
    """The batch names it: it lies on its thread's track, and where it began."""
    file = one(
        batch(
            MAIN,
            [OPEN, 0, "request", 1, SECOND, {"path": "/x"}],
            [OPEN, 0, "inner", 2, 5, {}],
            [END, 3, "inner", 8, 2],
            [END, 4, "request", SECOND + 7, 1],
            start_ns=START,
        ),
        path=tmp_path,
    )
    timeline = timeline_of(file)
    items = list(timeline.items())
    check_nesting(items)
    request, inner = slices(items)
    assert (request.begin_ns, request.end_ns) == (START - SECOND, START + 7)
    assert request.args == {"path": "/x"}
    assert (inner.begin_ns, inner.depth) == (START - 5, 1)
    assert timeline.begin_ns == timeline.processes[0].begin_ns == START - SECOND


def test_an_end_of_which_no_batch_knows_the_beginning(tmp_path: Path) -> None:
    file = one(
        batch(
            MAIN,
            [BEGIN, 0, "a", 1],
            [END, 5, "lost", 3, 2, {"n": 1}],
            [END, 1, "a", 6, 1],
            [END, 1, "lost", LATEST, 3],
            start_ns=START,
        ),
        path=tmp_path,
    )
    items = shown(file)
    check_nesting(items)
    placed = {each.span: (each.begin_ns, each.end_ns) for each in slices(items)}
    assert placed == {1: (START, START + 6), 2: (START + 2, START + 5), 3: (0, START + 7)}
    assert tracks(items) == {"MainThread": ["a"], "lost0": ["lost"], "lost1": ["lost"]}
    assert [item.time_ns for item in items] == sorted(item.time_ns for item in items)


def test_very_many_of_these_are_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrec.nesting.ORPHANS", 2)
    monkeypatch.setattr("shmrec.placement.ORPHANS", 2)
    ends = [[END, 1, "lost", 1, span, {}] for span in range(1, 5)]
    items = shown(one(batch(MAIN, *ends, start_ns=START), path=tmp_path))
    check_nesting(items)
    assert len(slices(items)) == 2
    moments = [item for item in items if item.kind == "instant"]
    assert [item.args for item in moments] == [{"duration_ns": 1}] * 2
    assert ORPHANS > 10_000


def test_what_ended_in_a_gap_is_lost_and_what_began_there_is_not(tmp_path: Path) -> None:
    first = batch(
        MAIN,
        [BEGIN, 0, "stays", 1],
        [BEGIN, 1, "ends unseen", 2],
        [INSTANT, 9, "last"],
        start_ns=START,
    )
    later = batch(
        MAIN,
        [OPEN, 0, "stays", 1, 100, {}],
        [OPEN, 0, "begins unseen", 3, 40, {"n": 1}],
        [INSTANT, 0, "here"],
        [END, 10, "begins unseen", 50, 3],
        [END, 10, "stays", 120, 1],
        number=3,
        start_ns=START + 100,
    )
    items = shown(one(first, later, path=tmp_path))
    check_nesting(items)
    found = {
        each.name: (each.begin_ns - START, each.end_ns - START, each.lost) for each in slices(items)
    }
    assert found == {
        "stays": (0, 120, False),
        # Where it was last known to be open.
        "ends unseen": (1, 10, True),
        "begins unseen": (60, 110, False),
    }
    whole = shown(one(first, replace(later, head=replace(later.head, number=2)), path=tmp_path))
    # No gap: the preamble says nothing new, and ends nothing.
    assert [each.lost for each in slices(whole)] == [False, True, False]


def test_a_partial_preamble_ends_nothing(tmp_path: Path) -> None:
    first = batch(MAIN, [BEGIN, 0, "a", 1], start_ns=START)
    later = batch(MAIN, [END, 5, "a", 105, 1], number=3, start_ns=START + 100)
    later = replace(later, head=replace(later.head, flags=SlotFlag.PARTIAL_PREAMBLE))
    (only,) = slices(shown(one(first, later, path=tmp_path)))
    assert (only.lost, only.end_ns) == (False, START + 105)


def test_the_same_number_twice(tmp_path: Path) -> None:
    """As no writer writes: the former is lost when the latter begins."""
    file = one(
        batch(MAIN, [BEGIN, 0, "a", 1], [BEGIN, 5, "b", 1], [END, 5, "b", 5, 1], start_ns=START),
        path=tmp_path,
    )
    items = shown(file)
    check_nesting(items)
    assert [(each.name, each.lost) for each in slices(items)] == [("a", True), ("b", False)]


def test_counters_and_facts(tmp_path: Path) -> None:
    items = shown(incident(tmp_path))
    found = Counter((item.kind, item.name) for item in items if item.process is not None)
    assert found["counter", "workers"] == 1
    assert found["counter", "load"] == 1
    # Neither a text nor what is no number can be drawn.
    assert found["instant", "load"] == 2
    assert found["counter", "process.rss"] == 2
    assert found["counter", "process.open_files"] == 1
    assert found["counter", "process.cpu"] == 1


def test_moments_of_the_snapshot_and_of_its_processes(tmp_path: Path) -> None:
    timeline = timeline_of(incident(tmp_path))
    marks = [item for item in timeline.items() if item.kind == "mark"]
    verdict = timeline.processes[1].finding.verdict
    assert verdict is not None
    assert verdict.text.startswith("Fatal signal: SIGSEGV")
    assert [(item.process and item.process.name, item.name) for item in marks] == [
        ("pid 103", "exited"),
        ("worker", f"death: {verdict.text}"),
        (None, "snapshot: death of worker pid 101"),
    ]
    assert [process.pid for process in timeline.processes] == [100, 101, 102, 103]
    assert timeline.processes[1].state.startswith("dead: Fatal signal")
    later = header(triggered_ns=TAKEN - 5, reason="slow")
    file = write_file(tmp_path / "y.shmrec", later, [])
    assert [(item.time_ns - TAKEN, item.name) for item in shown(file)] == [
        (-5, "trigger: slow"),
        (0, "snapshot: slow"),
    ]


def test_stacks_are_of_the_innermost_slice_or_a_moment(tmp_path: Path) -> None:
    items = shown(incident(tmp_path))
    with_stack = [each for each in slices(items) if each.stack is not None]
    assert [(each.name, each.args) for each in with_stack] == [("query", {"sql": "select 2"})]
    stack = with_stack[0].stack
    assert stack is not None
    assert stack.frames[1].function == "crash"
    (alone,) = [item for item in items if item.kind == "stack"]
    assert alone.track is not None
    assert alone.stack is not None
    assert (alone.track.name, alone.stack.frames[0].function) == ("pool_0", "wait")


def test_parents_in_other_processes_are_linked(tmp_path: Path) -> None:
    timeline = timeline_of(incident(tmp_path))
    items = list(timeline.items())
    check_nesting(items)
    by_key = {each.key: each for each in slices(items)}
    children = [each for each in by_key.values() if each.link]
    parents = {}
    for child in children:
        assert child.parent is not None
        parent = by_key[child.parent]
        assert child.link in parent.links
        parents[child.span] = (parent.track.process.name, parent.name, parent.span)
    assert parents == {1: ("worker", "request", 10), 2: ("master", "spawn", 1)}
    step = next(each for each in by_key.values() if each.name == "step")
    # Its parent, which it names, is a task: it lies in that one's lane, and needs no arrow.
    assert (step.track.family, step.depth, step.link) == ("task", 1, 0)


def test_what_may_name_a_parent() -> None:
    own = "00f067aa0ba902b7"
    context = f"00-{TRACE}-{own}-01"
    for args, expected in (
        ({"parent": 7}, (0, 7, "")),
        ({"parent": "12/34"}, (12, 34, "")),
        ({"parent": own}, (0, 0, own)),
        ({"parent": context}, (0, 0, own)),
        ({"traceparent": context.upper()}, (0, 0, own)),
        ({"header:traceparent": context}, (0, 0, own)),
        ({"traceparent": f"{context}-more".replace("00-", "01-", 1)}, (0, 0, own)),
    ):
        assert named_parent(args) == expected
    for value in (0, -1, True, 1.5, None, "", "x", "1/", "1/2/3", "0" * 16, context[:-1]):
        assert named_parent({"parent": value}) is None
    for value in (
        f"ff{context[2:]}",
        context.replace(TRACE, "0" * 32),
        context.replace(own, "0" * 16),
        7,
    ):
        assert named_parent({"traceparent": value}) is None
    assert trace_id({"traceparent": context}) == trace_id({"trace_id": TRACE}) == TRACE
    assert span_id({"span_id": own}) == own
    assert trace_id({"trace_id": own}) == span_id({"span_id": TRACE}) == ""


def test_parents_that_are_none(tmp_path: Path) -> None:
    """Of itself, of nobody, of a circle: arguments like others, and no circle is followed."""
    file = one(
        batch(
            MAIN,
            [BEGIN, 0, "a", 1, {"parent": 1}],
            [BEGIN, 0, "b", 2, {"parent": 3}],
            [BEGIN, 0, "c", 3, {"parent": 2}],
            [BEGIN, 0, "d", 4, {"parent": "77/1"}],
            start_ns=START,
        ),
        path=tmp_path,
    )
    items = shown(file)
    check_nesting(items)
    assert len(slices(items)) == 4


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_recorded_nests(tmp_path: Path, seed: int) -> None:
    """Random programs, of which the file has lost random parts."""
    chance = random.Random(seed)
    batches: list[Batch] = []
    open_spans: dict[int, tuple[str, int, int]] = {}
    span, now, total = 0, START - SECOND, 0
    for number in range(1, 9):
        happenings: list[list[Any]] = [[THREAD, 0, 100, "t"]]
        start = now
        for each, (name, begun, thread) in open_spans.items():
            happenings += [[THREAD, 0, thread, "t"], [OPEN, 0, name, each, start - begun, {}]]
        for _ in range(chance.randrange(1, 30)):
            delta = chance.randrange(3)
            now += delta
            thread = chance.randrange(1, 4)
            happenings.append([THREAD, delta, thread, f"t{thread}"])
            what = chance.random()
            if what < 0.45 or not open_spans:
                span += 1
                name = chance.choice("abc")
                open_spans[span] = name, now, thread
                happenings.append([BEGIN, 0, name, span])
            elif what < 0.9:
                newest = chance.random() < 0.7
                each = max(open_spans) if newest else chance.choice(list(open_spans))
                name, begun, _ = open_spans.pop(each)
                happenings.append([END, 0, name, now - begun, each])
            else:
                happenings.append([COUNTER, 0, "n", 1])
        if chance.random() < 0.75:
            made = batch(*happenings, number=number, start_ns=start)
            batches.append(made)
            total += made.head.count
    file = one(*batches, path=tmp_path)
    items = shown(file)
    check_nesting(items)
    kinds = Counter(event.kind for event in read(file))
    assert kinds.total() == total
    ends = [each for each in slices(items) if not each.in_flight and not each.lost]
    assert len(ends) == kinds["end"]
    still_open = {each.span for each in read(file).producers[0].open_spans}
    assert {each.span for each in slices(items) if each.in_flight} == still_open
    assert all(shown.end_ns <= TAKEN for shown in ends)


def test_hostile_numbers(tmp_path: Path) -> None:
    far = (1 << 64) - 1
    file = write_file(
        tmp_path / "x.shmrec",
        header(taken_mono_ns=-5, taken_wall_ns=far),
        [
            (
                producer(index, pid=pid, ended_ns=-3),
                [
                    batch(
                        [THREAD, 0, -1, "a"],
                        [BEGIN, -(1 << 62), "a", far],
                        [THREAD, 0, far, "b"],
                        [BEGIN, far, "b", -7],
                        [END, -(far // 2), "a", -5, far],
                        [END, 3, "c", far, 3],
                        start_ns=-8,
                    )
                ],
            )
            for index, pid in enumerate((0, -4, 1 << 40, 100, 100))
        ],
    )
    timeline = timeline_of(file)
    check_nesting(list(timeline.items()))
    pids = [process.pid for process in timeline.processes]
    assert len(set(pids)) == 5
    assert all(0 < pid < 1 << 31 for pid in pids)
    assert 0 <= timeline.wall_ns(timeline.taken_ns) <= LATEST
    for process in timeline.processes:
        numbers = [track.number for track in process.threads]
        assert len(set(numbers)) == len(numbers)
        assert all(0 < number < 1 << 31 for number in numbers)


def test_events_that_go_back_in_time(tmp_path: Path) -> None:
    """As no producer writes them: merged, they would come in another order than they are in."""
    back = [[BEGIN, 50, "a", 1], [BEGIN, -40, "b", 2], [END, 20, "b", 1, 2], [END, -9, "a", 1, 1]]
    file = write_file(
        tmp_path / "x.shmrec",
        header(),
        [
            (producer(), [batch(MAIN, *back, start_ns=START)]),
            (producer(1), [batch(MAIN, *[[INSTANT, 1, "x"]] * 99, start_ns=START)]),
        ],
    )
    items = shown(file)
    check_nesting(items)
    assert [(each.name, each.depth, each.lost) for each in slices(items)] == [
        ("a", 0, False),
        ("b", 1, False),
    ]
    assert sum(item.kind == "instant" for item in items) == 99


def test_a_second_producer_in_one_place_is_damage(tmp_path: Path) -> None:
    made = batch(MAIN, [BEGIN, 0, "a", 1], start_ns=START)
    file = write_file(
        tmp_path / "x.shmrec", header(), [(producer(), [made]), (producer(pid=7), [])]
    )
    snapshot = read(file)
    assert [each.pid for each in snapshot.producers] == [100]
    assert any("twice" in note for note in snapshot.damage)
    assert len(slices(shown(file))) == 1


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    made = batch(MAIN, [BEGIN, 0, "a", 1], [END, 1, "a", 1, 1], start_ns=START)
    file = one(made, path=tmp_path)
    timeline = timeline_of(file)
    other = batch(MAIN, [BEGIN, 0, "a", 1], [BEGIN, 1, "a", 2], start_ns=START)
    assert len(other.payload) != len(made.payload)
    (tmp_path / "other").mkdir()
    one(other, path=tmp_path / "other").rename(file)
    with pytest.raises(DamagedFileError, match="changed"):
        list(timeline.items())


def test_memory_does_not_grow_with_the_events(tmp_path: Path) -> None:
    peaks = []
    for events in (16_000, 64_000):
        file = many(tmp_path, events)
        tracemalloc.start()
        count = sum(item.kind == "begin" for item in timeline_of(file).items())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == events // 2
    # Of each event no more than what a span takes; places of batches are part of it.
    assert peaks[1] - peaks[0] < 48_000 * 24


def test_nothing_at_all(tmp_path: Path) -> None:
    file = write_file(tmp_path / "x.shmrec", Header(recording="x"), [])
    assert [item.kind for item in shown(file)] == ["mark"]
