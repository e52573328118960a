"""What changed between two snapshots: producers, spans, rates, durations, losses, facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shmrec.comparison import Change, Comparison, EndedSpans, SpanChange, compare
from shmrec.errors import NotComparableError
from shmrec.manifest import Producer, Stack
from shmrec.ring import Batch
from shmrec.snapshot_file import read

from . import findings
from .dumping import batch, write_file
from .findings import SECOND, WALL, header_at

THREAD, BEGIN, END, INSTANT = 1, 4, 5, 3

Held = tuple[Producer, list[Batch]]


def producer(index: int = 0, **fields: Any) -> Producer:
    values = {"label": "worker", "identity": f"{index:032x}", "attached_ns": SECOND}
    return findings.producer(index, **{**values, **fields})


class Two:
    """Two snapshots, taken 10 and 40 seconds after something."""

    def __init__(self, path: Path, **later: Any) -> None:
        self.path = path
        self.later = later

    def write(self, name: str, second: int, held: tuple[Held, ...], **fields: Any) -> Path:
        head = header_at(second, reason=name, **fields)
        return write_file(self.path / f"{name}.shmrec", head, list(held))

    def compare(self, before: tuple[Held, ...], after: tuple[Held, ...]) -> Comparison:
        first = self.write("before", 10, before)
        return compare(read(first), read(self.write("after", 40, after, **self.later)))


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def begin(span: int, name: str = "request", at: int = 0, **args: Any) -> list[Any]:
    return [BEGIN, at, name, span, args]


def end(span: int, took: int, name: str = "request", at: int = 0) -> list[Any]:
    return [END, at, name, took, span]


def held(*events: list[Any], start: int) -> list[Batch]:
    return [batch([THREAD, 0, 11, "MainThread"], *events, start_ns=start * SECOND)]


def only(found: Comparison) -> Change:
    (change,) = found.changes
    return change


def spans(change: Change) -> list[tuple[str, int]]:
    return [(each.what, each.span.span) for each in change.spans]


def test_who_came_went_died_and_left(two: Two) -> None:
    before = [producer(index) for index in range(5)]
    after = [
        producer(0),
        producer(1, state="dead"),
        producer(2, state="detached"),
        producer(3, identity="f" * 32, pid=200),
        producer(4, state="stalled"),
        producer(5, state="dead"),
        producer(6),
    ]
    found = two.compare(tuple((p, []) for p in before), tuple((p, []) for p in after))
    assert found.same_run
    assert found.elapsed_ns == 30 * SECOND
    assert [(each.what, each.producer.pid) for each in found.changes] == [
        ("stayed", 100),
        ("died", 101),
        ("left", 102),
        ("came", 200),
        ("stayed", 104),
        ("died", 105),
        ("came", 106),
        ("went", 103),
    ]


def test_the_dead_die_once(two: Two) -> None:
    dead = producer(state="dead", ended_ns=5 * SECOND)
    events = held(begin(7), start=4)
    change = only(two.compare(((dead, events),), ((dead, events),)))
    assert change.what == "stayed"
    # What it was inside of has not gone on.
    assert change.spans == []
    assert change.rate_between is None


def test_without_identities_pid_and_start_time_tell(two: Two) -> None:
    before = producer(identity="", start_ticks=1)
    assert only(two.compare(((before, []),), ((before, []),))).what == "stayed"
    found = two.compare(((before, []),), ((producer(identity="", start_ticks=2), []),))
    assert [each.what for each in found.changes] == ["came", "went"]


def test_spans_still_open_new_and_finished(two: Two) -> None:
    before = held(begin(1, path="/hang"), begin(2, at=SECOND), begin(3), start=8)
    after = held(
        begin(1, path="/hang"), begin(2, at=SECOND), begin(3), end(2, 5 * SECOND, at=4 * SECOND),
        end(9, 1), begin(4, at=SECOND), start=8,
    )  # fmt: skip
    change = only(two.compare(((producer(), before),), ((producer(), after),)))
    assert spans(change) == [("still", 1), ("still", 3), ("new", 4), ("finished", 2)]
    still, _, new, finished = change.spans
    assert (still.earlier_ns, still.age_ns) == (2 * SECOND, 32 * SECOND)
    assert still.span.args == {"path": "/hang"}
    assert (new.earlier_ns, new.age_ns) == (0, 26 * SECOND)
    assert (finished.earlier_ns, finished.took_ns) == (SECOND, 5 * SECOND)


def test_a_span_whose_end_was_overwritten(two: Two) -> None:
    after = held([INSTANT, 0, "x"], start=39)
    change = only(two.compare(((producer(), held(begin(1), start=8)),), ((producer(), after),)))
    assert spans(change) == [("finished", 1)]
    assert change.spans[0].took_ns is None


def test_ids_of_spans_are_a_producers_own(two: Two) -> None:
    before = ((producer(0), held(begin(1), start=8)), (producer(1), held(begin(2), start=8)))
    after = (
        (producer(0), held(begin(2), start=30)),
        (producer(1), held(end(1, 3), end(2, 4), start=30)),
    )
    first, second = two.compare(before, after).changes
    assert spans(first) == [("new", 2), ("finished", 1)]
    assert [each.took_ns for each in first.spans] == [None, None]
    assert [each.took_ns for each in second.spans] == [4]


def test_a_span_in_which_one_died_is_open_still(two: Two) -> None:
    events = held(begin(1), start=8)
    dead = producer(state="dead", ended_ns=20 * SECOND)
    (span,) = only(two.compare(((producer(), events),), ((dead, events),))).spans
    assert span == SpanChange("still", span.span, 12 * SECOND, 2 * SECOND)


def test_durations_are_not_counted_twice(two: Two) -> None:
    before = held(end(1, 10), end(2, 30), end(3, 20), start=9)
    after = held(end(1, 10), end(2, 30), end(3, 20), end(4, 100, at=1), end(5, 300), start=9)
    other = held(end(1, 7, name="job"), end(2, 7, name="job"), start=2)
    came = (producer(1), other)
    found = two.compare(((producer(), before),), ((producer(), after), came))
    assert [(each.name, each.before, each.after) for each in found.names] == [
        ("request", EndedSpans(3, 20, 30, 60), EndedSpans(2, 200, 300, 400)),
        ("job", EndedSpans(), EndedSpans(2, 7, 7, 14)),
    ]


def test_durations_that_nobody_can_have_had(two: Two) -> None:
    events = held(end(1, (1 << 64) - 1), end(2, -5), start=9)
    (name,) = two.compare(((producer(), events),), ((producer(1), events),)).names
    assert (
        name.after
        == name.before
        == EndedSpans(2, ((1 << 63) - 1) // 2, (1 << 63) - 1, (1 << 63) - 1)
    )


def test_rates(two: Two) -> None:
    before = producer(recorded=500)
    after = producer(recorded=800)
    ten = held(*[[INSTANT, 0, "x"]] * 10, start=5)
    twenty = held(*[[INSTANT, 0, "x"]] * 20, start=30)
    change = only(two.compare(((before, ten),), ((after, twenty),)))
    assert (change.rate_before, change.rate_between, change.rate_after) == (2.0, 10.0, 2.0)
    came = producer(1, recorded=60, attached_ns=20 * SECOND)
    change = only(two.compare((), ((came, []),)))
    assert (change.rate_before, change.rate_between, change.rate_after) == (None, 3.0, None)
    died = producer(recorded=800, state="dead", ended_ns=20 * SECOND)
    assert only(two.compare(((before, ten),), ((died, twenty),))).rate_between == 30.0
    fewer = producer(recorded=1)
    assert only(two.compare(((before, ten),), ((fewer, ten),))).rate_between is None


def test_losses_that_were_added(two: Two) -> None:
    before = producer(losses={"overwritten": 10, "oversized": 3})
    after = producer(losses={"overwritten": 25, "oversized": 3, "closed": 1})
    came = producer(1, losses={"no_memory": 2})
    found = two.compare(((before, []),), ((after, []), (came, [])))
    assert [each.losses for each in found.changes] == [
        {"overwritten": 15, "closed": 1},
        {"no_memory": 2},
    ]


def test_snapshots_that_limits_forbade(two: Two) -> None:
    odd: Any = {"stall": 5, "death": 2, "counter": "x", "log": 1}
    first = two.write("before", 10, (), suppressed={"stall": 2, "death": 2, "log": "x"})
    found = compare(read(first), read(two.write("after", 40, (), suppressed=odd)))
    assert found.suppressed == {"stall": 3}


def fact(second: int, **fields: Any) -> list[Any]:
    row = {"rss": 1 << 20, "cpu_ns": 0, "threads": 1, "files": 5, "state": "S"} | fields
    return [
        second * SECOND,
        *(row[name] for name in ("rss", "cpu_ns", "threads", "files", "state")),
    ]


def test_what_the_kernel_said(two: Two) -> None:
    before = producer(facts=[fact(8, rss=1), fact(9, cpu_ns=SECOND, files=-1)])
    after = producer(facts=[fact(9), fact(39, rss=3 << 20, cpu_ns=16 * SECOND, state="D")])
    facts = only(two.compare(((before, []),), ((after, []),))).facts
    assert facts.rss == (1 << 20, 3 << 20)
    assert facts.files == (None, 5)
    assert facts.state == ("S", "D")
    assert facts.busy == 0.5
    facts = only(two.compare(((producer(), []),), ((after, []),))).facts
    assert (facts.rss, facts.busy) == ((None, 3 << 20), None)


def test_threads_that_have_not_moved(two: Two) -> None:
    text = 'Thread 0x01 (most recent call first):\n  File "a.py", line 1 in f\n'
    before, after = (producer(stacks=[Stack("asked", at * SECOND, text)]) for at in (9, 39))
    (thread,) = only(two.compare(((before, []),), ((after, []),))).threads
    assert not thread.moved


def test_the_older_comes_first(two: Two) -> None:
    first = two.write("first", 10, ((producer(), []),))
    second = two.write("second", 40, ((producer(state="dead"), []),))
    for one, other, swapped in ((first, second, False), (second, first, True)):
        found = compare(read(one), read(other))
        assert found.swapped == swapped
        assert (found.before.path, found.after.path) == (first, second)
        assert only(found).what == "died"


def test_within_a_run_the_monotonic_clock_tells(two: Two) -> None:
    # Somebody set the wall clock back.
    first = two.write("first", 10, (), taken_wall_ns=WALL + 99 * SECOND)
    found = compare(read(two.write("second", 40, ())), read(first))
    assert (found.before.path, found.elapsed_ns) == (first, 30 * SECOND)


@pytest.mark.parametrize("run", ["two", ""])
def test_two_runs_are_compared_by_label(run: str, tmp_path: Path) -> None:
    # The machine was started anew between them.
    two = Two(tmp_path, run_id=run, taken_mono_ns=3 * SECOND)
    stack = Stack("asked", 1, "Thread 0x01 (most recent call first):\n  File 1\n")
    before: tuple[Held, ...] = (
        (producer(0, label="master"), []),
        (producer(1, stacks=[stack]), held(begin(1), end(2, 5), start=8)),
        (producer(2), []),
    )
    after: tuple[Held, ...] = (
        (producer(0, label="worker", pid=1, stacks=[stack]), held(begin(1), end(2, 6), start=1)),
        (producer(1, label="new", pid=2), []),
    )
    found = two.compare(before, after)
    assert not found.same_run
    assert found.elapsed_ns == 30 * SECOND
    shown = [
        (each.what, each.before and each.before.pid, each.after and each.after.pid)
        for each in found.changes
    ]
    assert shown == [
        ("stayed", 101, 1),
        ("came", None, 2),
        ("went", 100, None),
        ("went", 102, None),
    ]
    for change in found.changes:
        assert (change.spans, change.threads, change.rate_between) == ([], [], None)
    (name,) = found.names
    assert (name.before.most_ns, name.after.most_ns) == (5, 6)


def test_files_that_do_not_say_of_which_run_they_are(two: Two) -> None:
    files = [two.write(f"at {second}", second, (), run_id="") for second in (10, 40)]
    assert not compare(*map(read, files)).same_run


def test_what_cannot_be_compared(two: Two) -> None:
    one = two.write("one", 10, ())
    other = two.write("other", 40, (), recording="api")
    headless = two.write("headless", 40, (), recording="")
    with pytest.raises(NotComparableError, match="only two snapshots of one recording"):
        compare(read(one), read(other))
    with pytest.raises(NotComparableError, match="are the same snapshot"):
        compare(read(one), read(one))
    for pair in ((one, headless), (headless, one)):
        with pytest.raises(NotComparableError, match=r"headless\.shmrec has no header"):
            compare(*map(read, pair))


def test_it_is_deterministic(two: Two) -> None:
    events = [end(n, 5, name=f"n{n}") for n in range(9)]
    files = [
        two.write("one", 10, ((producer(), held(*events, start=9)),)),
        two.write("two", 40, ((producer(), held(*events[::-1], start=39)),)),
    ]
    found = [compare(*map(read, files)) for _ in range(2)]
    assert found[0].names == found[1].names
    assert [each.name for each in found[0].names] == [f"n{n}" for n in range(9)]


def test_of_two_producers_that_claim_to_be_one_the_first_is_compared(two: Two) -> None:
    twins: tuple[Held, ...] = ((producer(0), held(begin(1), start=8)), (producer(0), []))
    # The second is damage of the file, which `verify` names.
    assert [each.what for each in two.compare(twins, twins).changes] == ["stayed"]
