"""What the writer writes and the decoder reads: kinds, limits, spans, re-entrance."""

from __future__ import annotations

import contextlib
import enum
import gc
import math
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmrec import events as table
from shmrec._engine import choose
from shmrec.decoder import Event, OpenSpan, decode
from shmrec.events import DEPTH_LIMIT, TEXT_LIMIT
from shmrec.layout import LOSSES, SlotFlag
from shmrec.ring import Batch

from .arena import Arena, batches, events_in, events_of
from .native import SANITIZED

ROOT = Path(__file__).resolve().parent.parent


def losses(arena: Arena) -> dict[str, int]:
    found = arena.reader().entry().losses
    assert list(found) == list(LOSSES)
    return {cause: count for cause, count in found.items() if count}


def open_after(kept: list[Batch]) -> dict[int, OpenSpan]:
    """The spans that a reader of all these batches knows to be open."""
    known: dict[int, OpenSpan] = {}
    for batch in kept:
        list(
            decode(
                batch.payload,
                start_ns=batch.head.start_ns,
                generation=batch.head.generation,
                flags=batch.head.flags,
                open_spans=known,
            )
        )
    return known


def only(arena: Arena) -> Event:
    [event] = events_in(arena.reader())
    return event


@pytest.fixture
def arena() -> Arena:
    return Arena(slots=4, slot_size=16 * 1024)


def test_an_instant_is_read_back_with_its_arguments_time_and_thread(arena: Arena) -> None:
    arena.writer().instant("hello", n=3, path="/x", f=1.5, flag=True, none=None, raw=b"\0\xff")
    event = only(arena)
    assert (event.kind, event.name) == ("instant", "hello")
    assert event.args == {
        "n": 3,
        "path": "/x",
        "f": 1.5,
        "flag": True,
        "none": None,
        "raw": b"\0\xff",
    }
    assert event.time_ns == arena.now
    assert (event.thread, event.thread_name) == (threading.get_native_id(), "MainThread")
    assert event.generation == 1


def test_arguments_may_bear_the_names_of_parameters(arena: Arena) -> None:
    arena.writer().instant("x", **{"name": 1, "self": 2, "kind": 3})
    assert only(arena).args == {"name": 1, "self": 2, "kind": 3}


def test_begin_and_end_make_a_span_with_its_duration(arena: Arena) -> None:
    writer = arena.writer()
    span = writer.begin("work", job=7)
    writer.end(span, status=200)
    begin, end = events_in(arena.reader())
    assert (begin.kind, begin.span, begin.args) == ("begin", span, {"job": 7})
    assert (end.kind, end.span, end.args) == ("end", span, {"status": 200})
    assert end.name == "work"
    assert end.duration_ns == end.time_ns - begin.time_ns


def test_overlapping_spans_are_told_apart_and_end_in_any_order(arena: Arena) -> None:
    writer = arena.writer()
    one, two = writer.begin("a"), writer.begin("a")
    assert one != two
    writer.end(one)
    writer.end(two)
    assert [e.span for e in events_in(arena.reader())] == [one, two, one, two]
    assert not losses(arena)


def test_a_span_as_a_context_manager_notes_the_exception_and_lets_it_pass(arena: Arena) -> None:
    writer = arena.writer()

    def risky() -> None:
        with writer.span("risky", n=1) as span:
            assert span.id
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        risky()
    begin, end = events_in(arena.reader())
    assert begin.args == {"n": 1}
    assert end.args == {"error": "ZeroDivisionError"}


def test_a_span_goes_wherever_a_context_manager_goes(arena: Arena) -> None:
    writer = arena.writer()
    with contextlib.ExitStack() as stack:
        span = stack.enter_context(writer.span("stacked", n=1))
    kind: Any = type(span)
    again = kind.__enter__(span)
    assert again is span
    assert kind.__exit__(span, None, None, None) is None
    span.__enter__()
    assert span.__exit__(ValueError, ValueError(), None) is None
    found = events_in(arena.reader())
    assert [event.kind for event in found] == ["begin", "end"] * 3
    assert [event.span for event in found] == [1, 1, 2, 2, 3, 3]
    assert [event.args for event in found] == [{"n": 1}, {}] * 2 + [
        {"n": 1},
        {"error": "ValueError"},
    ]
    unattached = choose()[1]().span("x")
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(unattached) is unattached
    assert type(unattached).__exit__(unattached, None, None, None) is None


def test_a_spans_arguments_are_those_of_the_call_that_made_it(arena: Arena) -> None:
    given = [1]
    writer = arena.writer()
    span = writer.span("x", given=given)
    given.append(2)
    with span:
        pass
    assert events_in(arena.reader())[0].args == {"given": [1]}


@pytest.mark.parametrize(
    "call",
    [
        lambda writer: writer.instant(),
        lambda writer: writer.instant("a", "b"),
        lambda writer: writer.begin(),
        lambda writer: writer.begin("a", 1),
        lambda writer: writer.end(),
        lambda writer: writer.span(),
        lambda writer: writer.counter("a"),
        lambda writer: writer.counter("a", 1, 2),
        lambda writer: writer.counter("a", value=1),
    ],
)
def test_a_wrong_number_of_arguments_is_a_type_error(
    arena: Arena, call: Callable[[Any], object]
) -> None:
    writer = arena.writer()
    with pytest.raises(TypeError):
        call(writer)
    writer.instant("after")
    assert only(arena).name == "after"


def test_ending_what_is_not_open_is_counted_and_not_raised(arena: Arena) -> None:
    writer = arena.writer()
    span = writer.begin("once")
    writer.end(span)
    writer.end(span)
    writer.end(999)
    writer.end("nonsense")  # type: ignore[arg-type]
    writer.end([])  # type: ignore[arg-type]
    other = writer.begin("other")
    writer.end(float(other))  # type: ignore[arg-type]
    writer.end(0)
    assert losses(arena) == {"unmatched": 5}
    assert [event.kind for event in events_in(arena.reader())] == ["begin", "end", "begin"]


def test_counters_take_numbers_and_bounded_forms_of_all_else(arena: Arena) -> None:
    writer = arena.writer()
    for value in (7, -1, 1.5, True, 1 << 70, "text", None, object):
        writer.counter("c", value)
    values = [event.value for event in events_in(arena.reader())]
    assert values[:4] == [7, -1, 1.5, True]
    assert values[4] == "<int of 71 bits>"
    assert values[5:7] == ["text", None]
    assert "object" in values[7]


def test_nothing_is_done_without_a_ring(arena: Arena) -> None:
    writer = choose()[1]()
    writer.instant("x", n=1)
    assert writer.begin("x") == 0
    writer.end(0)
    writer.counter("x", 1)
    with writer.span("x") as span:
        assert span.id == 0
    assert not writer.bound
    assert writer.span("x") is writer.span("y")


# Arguments of every kind.


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Huge:
    def __repr__(self) -> str:
        return "h" * 100_000


class Text(str):
    pass


class Colour(enum.IntEnum):
    RED = 1


def recursive() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


def deep() -> Any:
    found: Any = "bottom"
    for _ in range(10_000):
        found = [found]
    return found


class Liar:
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return str


@pytest.mark.parametrize(
    ("value", "check"),
    [
        (Raises(), lambda v: v == "<Raises whose repr raised RuntimeError>"),
        (Huge(), lambda v: v.startswith("hhh") and len(v) <= 256),
        ("x" * 10_000_000, lambda v: len(v) == TEXT_LIMIT and v.endswith("…")),
        (b"x" * 10_000_000, lambda v: v == b"x" * TEXT_LIMIT),
        (Text("sub"), lambda v: v == "sub"),
        (Colour.RED, lambda v: v == 1),
        (1 << 200, lambda v: v == "<int of 201 bits>"),
        (10**5000, lambda v: v.startswith("<int of")),
        ("\ud800x", lambda v: v == "\\ud800x"),
        (math.inf, lambda v: v == math.inf),
        ((1, "a", None), lambda v: v == [1, "a", None]),
        ({1: {2: 3}}, lambda v: v == {"1": {"2": 3}}),
        ({1, 2}, lambda v: sorted(v) == [1, 2]),
        (OrderedDict((n, n) for n in range(10**6)), lambda v: len(v) < 50),
        (deque(range(10**6)), lambda v: v[:2] == [0, 1] and len(v) < 50),
        (recursive(), lambda v: v[0] == 1),
        (deep(), lambda v: str(v).count("[") <= DEPTH_LIMIT),
        (list(range(100_000)), lambda v: v[:3] == [0, 1, 2] and len(v) < 50),
        (dict.fromkeys(range(1000), "y" * 500), lambda v: len(str(v)) < 10_000),
        (Liar(), lambda v: v is not None),
        (memoryview(b"abc"), lambda v: "memory" in v),
    ],
    ids=lambda v: type(v).__name__,
)
def test_any_argument_is_recorded_in_bounded_form(
    arena: Arena, value: Any, check: Callable[[Any], bool]
) -> None:
    writer = arena.writer()
    writer.instant("x", v=value, after=1)
    writer.instant("y")
    first, second = events_in(arena.reader())
    got = first.args.get("v", first.args.get("…"))
    assert got is not None
    if "v" in first.args:
        assert check(first.args["v"])
    assert second.name == "y"


def test_more_arguments_than_fit_are_bounded_as_a_whole(arena: Arena) -> None:
    arena.writer().instant("x", **{f"k{n}" * 30: "v" * 500 for n in range(5000)})
    assert len(str(only(arena).args)) < 2 * table.ARGUMENTS_LIMIT


@pytest.mark.parametrize("name", ["é" * 10, "n" * 1000, 7, None, Raises(), "\udc80", Text("t")])
def test_any_name_is_recorded_in_bounded_form_or_counted(arena: Arena, name: Any) -> None:
    writer = arena.writer()
    writer.instant(name)
    writer.counter("ok", 1)
    found = events_in(arena.reader())
    assert found[-1].name == "ok"
    assert len(found) == 2
    assert 0 < len(found[0].name) <= table.NAME_LIMIT
    assert losses(arena) == ({"unencodable": 1} if isinstance(name, Raises) else {})


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1), st.dictionaries(st.text(), anything, max_size=8))
def test_whatever_is_recorded_decodes_and_the_next_event_too(name: str, args: Any) -> None:
    arena = Arena(slots=4, slot_size=16 * 1024)
    writer = arena.writer()
    writer.instant(name, **args)
    span = writer.begin(name, **args)
    writer.end(span, **args)
    writer.instant("last")
    found = events_in(arena.reader())
    assert [event.kind for event in found] == ["instant", "begin", "end", "instant"]
    assert found[-1].name == "last"
    assert not losses(arena)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8"), max_size=100),
        min_size=1,
        max_size=6,
    )
)
def test_small_plain_arguments_are_read_back_as_they_were(args: dict[str, Any]) -> None:
    arena = Arena(slots=4, slot_size=16 * 1024)
    arena.writer().instant("x", **args)
    assert only(arena).args == args


# Batches.


def test_every_batch_decodes_alone_and_counts_go_on() -> None:
    arena = Arena(slots=8, slot_size=512)
    writer = arena.writer()
    for n in range(500):
        writer.instant(f"name-{n % 5}", n=n)
    kept = batches(arena.reader())
    assert len(kept) > 3
    for batch in kept:
        decoded = decode(
            batch.payload, start_ns=batch.head.start_ns, generation=batch.head.generation
        )
        numbers = [event.args["n"] for event in decoded]
        assert not decoded.damage
        assert numbers == list(range(batch.head.first, batch.head.first + batch.head.count))


def test_an_open_span_outlives_the_overwriting_of_its_begin() -> None:
    arena = Arena(slots=4, slot_size=1024)
    writer = arena.writer()
    span = writer.begin("request", path="/slow")
    begun = arena.now
    for n in range(3000):
        writer.instant("noise", n=n)
    [newest] = batches(arena.reader())[-1:]
    assert newest.head.number > 8
    decoded = decode(newest.payload, start_ns=newest.head.start_ns, generation=1)
    list(decoded)
    [opened] = decoded.open.values()
    assert (opened.span, opened.name, opened.args) == (span, "request", {"path": "/slow"})
    assert opened.start_ns == begun
    assert opened.thread_name == "MainThread"


# In a process of its own: where much has been freed before, nothing more is taken.
LEAVING_OPEN = """
from shmrec.events import OPEN_LIMIT
from shmrec.layout import SlotFlag
from tests.arena import Arena, batches, events_of

arena = Arena(slots=4, slot_size=16 * 1024)
writer = arena.writer()

def resident():
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1])

def leave_open(count):
    before = resident()
    for _ in range(count):
        writer.begin("left open")
    return resident() - before

leave_open(4 * OPEN_LIMIT)
print(leave_open(3 * OPEN_LIMIT))
# What is known has its end, and a batch does not say that it knows all.
last = writer.begin("last")
writer.end(last)
[*_, newest] = batches(arena.reader())
assert newest.head.flags & SlotFlag.PARTIAL_PREAMBLE
assert events_of(newest)[-1].span == last
assert arena.reader().entry().losses["unmatched"] == 0
"""


@pytest.mark.skipif(SANITIZED, reason="the sanitizers keep what is freed for a while")
def test_memory_for_spans_that_nobody_ends_has_a_bound() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEAVING_OPEN], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    # Pages; without a bound it would be 48 bytes for each of them, and in Python many more.
    assert int(ended.stdout) < 100


def test_more_open_spans_than_a_preamble_holds_are_all_named_by_some_batch() -> None:
    arena = Arena(slots=16, slot_size=1024)
    writer = arena.writer()
    spans = [writer.begin(f"task-{n}") for n in range(60)]
    for n in range(5000):
        writer.instant("noise", n=n)
    kept = batches(arena.reader())
    assert all(batch.head.flags & SlotFlag.PARTIAL_PREAMBLE for batch in kept)
    known = open_after(kept)
    assert sorted(known) == spans
    assert all(known[span].name == f"task-{n}" for n, span in enumerate(spans))


def test_a_preamble_never_leaves_its_slot() -> None:
    # Half the batch is for open spans; the large one comes last in some, and does not fit.
    arena = Arena(slots=12, slot_size=512)
    writer = arena.writer()
    writer.begin("a", pad="x" * 100)
    writer.begin("b", pad="y" * 250)
    for n in range(6):
        writer.begin(f"c{n}")
    for n in range(300):
        writer.instant("noise", n=n)
    assert not losses(arena)
    kept = batches(arena.reader())
    assert len(kept) == 12
    numbers = [event.args["n"] for batch in kept for event in events_of(batch)]
    assert numbers == list(range(numbers[0], 300))
    known = open_after(kept)
    names = [span.name for _, span in sorted(known.items())]
    assert names == ["a", "b", "c0", "c1", "c2", "c3", "c4", "c5"]


def test_a_whole_preamble_corrects_what_a_lost_batch_would_have_said() -> None:
    stale = {5: OpenSpan(5, "ended-meanwhile", 1, "t", 0)}
    arena = Arena()
    arena.writer().instant("x")
    [batch] = batches(arena.reader())
    decoded = decode(batch.payload, start_ns=0, generation=1, open_spans=stale)
    list(decoded)
    assert decoded.open == {}


def test_threads_speak_under_their_own_names(arena: Arena) -> None:
    writer = arena.writer()

    def work() -> None:
        for n in range(50):
            writer.instant("x", n=n)

    threads = [threading.Thread(target=work, name=f"w{i}") for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = events_in(arena.reader())
    assert len(found) == 200
    for i in range(4):
        mine = [event.args["n"] for event in found if event.thread_name == f"w{i}"]
        assert mine == list(range(50))
    times = [event.time_ns for event in found]
    assert times == sorted(times)


# Re-entrance.


def test_a_record_made_inside_another_follows_it(arena: Arena) -> None:
    nested: list[int] = []
    busy = False

    def step() -> None:
        nonlocal busy
        if not busy and len(nested) < 5 and arena.word("writing") % 2:
            busy = True
            nested.append(len(nested))
            writer.instant("inner", n=nested[-1])
            busy = False

    writer = arena.writer(step)
    for n in range(10):
        writer.instant("outer", n=n)
    found = events_in(arena.reader())
    assert [e.args["n"] for e in found if e.name == "outer"] == list(range(10))
    assert [e.args["n"] for e in found if e.name == "inner"] == nested == [0, 1, 2, 3, 4]
    assert not losses(arena)


def test_a_span_made_inside_another_record_ends_too(arena: Arena) -> None:
    made = 0

    def step() -> None:
        nonlocal made
        if made < 5 and arena.word("writing") % 2:
            made += 1
            with writer.span("inner", n=made):
                pass

    writer = arena.writer(step)
    for n in range(10):
        writer.instant("outer", n=n)
    found = [event for event in events_in(arena.reader()) if event.name == "inner"]
    assert [event.kind for event in found] == ["begin", "end"] * 5
    assert [found[i].span for i in range(0, 10, 2)] == [found[i].span for i in range(1, 10, 2)]
    assert not losses(arena)
    arena.set_generation(2)
    writer.instant("later")
    [last] = batches(arena.reader())[-1:]
    decoded = decode(last.payload, start_ns=0, generation=2)
    list(decoded)
    assert not decoded.open


def test_a_nested_record_whose_outer_never_returns_is_counted() -> None:
    arena = Arena()
    counted: list[int] = []

    def step() -> None:
        if not counted and arena.word("writing") % 2:
            counted.append(0)
            writer.instant("inner")
            counted[0] = losses(arena)["reentrant"]

    writer = arena.writer(step)
    writer.instant("outer")
    assert counted == [1]
    assert not losses(arena)


def test_signal_handlers_may_record_and_raise_at_any_point(arena: Arena) -> None:
    class Alarm(Exception):
        pass

    handled = 0
    armed = False

    def handler(*_: object) -> None:
        nonlocal handled, armed
        handled += 1
        writer.instant("signal", n=handled)
        if handled % 3 == 0 and armed:
            armed = False
            raise Alarm

    writer = arena.writer()
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0003)
    returned = attempts = 0
    try:
        while handled < 200:
            try:
                attempts += 1
                armed = True
                writer.instant("main", n=attempts, pad="x" * (attempts % 50))
                armed = False
                returned += 1
            except Alarm:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert returned < attempts
    # Another thread is not locked out, and what is in the ring is whole and in order.
    other = threading.Thread(target=lambda: writer.instant("after"))
    other.start()
    other.join(10)
    found = events_in(arena.reader())
    assert found[-1].name == "after"
    numbers = [event.args["n"] for event in found if event.name == "main"]
    assert numbers == sorted(set(numbers))
    missing = set(range(numbers[0], numbers[-1] + 1)) - set(numbers)
    assert len(missing) <= attempts - returned
    assert arena.word("writing") % 2 == 0


def test_garbage_collection_callbacks_and_finalizers_may_record(arena: Arena) -> None:
    writer = arena.writer()

    class Finalized:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            writer.instant("del")

    def callback(phase: str, info: dict[str, int]) -> None:
        writer.instant("gc", phase=phase)

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(5, 2, 2)
    try:
        for n in range(300):
            Finalized()
            writer.instant("main", n=n, list=[n])
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)
    found = events_in(arena.reader())
    main = [event.args["n"] for event in found if event.name == "main"]
    assert main == list(range(main[0], 300))
    assert {"gc", "del"} <= {event.name for event in found}


def test_a_forked_child_is_noticed_even_without_pythons_hooks() -> None:
    import ctypes

    arena = Arena()
    writer = arena.writer()
    read_end, write_end = os.pipe()
    pid = ctypes.CDLL(None).fork()
    if pid == 0:
        # No Python fork hooks have run in here.
        try:
            before = arena.word("opening")
            writer.instant("child")
            os.write(write_end, b"1" if writer.bound or arena.word("opening") != before else b"0")
        finally:
            os._exit(0)
    os.close(write_end)
    answer = os.read(read_end, 1)
    os.close(read_end)
    os.waitpid(pid, 0)
    assert answer == b"0"
    assert writer.bound
