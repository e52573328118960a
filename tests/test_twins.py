"""The two engines leave the same bytes, whatever is recorded.

The python engine is the specification.
"""

from __future__ import annotations

import enum
import math
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmrec import _engine, events
from shmrec._engine import Engine
from shmrec.events import (
    ARGUMENTS_LIMIT,
    DEPTH_LIMIT,
    EXCEPTION,
    ITEMS_LIMIT,
    KEY_LIMIT,
    NAME_LIMIT,
    NODES_LIMIT,
    OPEN_LIMIT,
    TEXT_LIMIT,
)
from shmrec.layout import SlotFlag

from .arena import Arena, bytes_left
from .native import rebind

pytestmark = pytest.mark.skipif(
    bool(_engine.refusal("native")), reason=f"no native engine: {_engine.refusal('native')}"
)

Work = Callable[[Arena, Engine], object]


def both(work: Work, *, slots: int = 4, slot_size: int = 16 * 1024) -> list[Arena]:
    """Do the work with both engines; the memory must be the same."""
    arenas = []
    for name in ("python", "native"):
        arena = Arena(slots=slots, slot_size=slot_size)
        writer = arena.writer(engine=name)
        assert type(writer).__module__.endswith("writer" if name == "python" else "_native")
        work(arena, writer)
        arenas.append(arena)
    python, native = map(bytes_left, arenas)
    assert native == python
    return arenas


# Arguments.


class Text(str):
    pass


class Colour(enum.IntEnum):
    RED = 1


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Plain:
    def __repr__(self) -> str:
        return "<Plain>"


def nested(depth: int, bottom: Any = 1) -> Any:
    for _ in range(depth):
        bottom = [bottom]
    return bottom


def recursive() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


EDGES = sorted(
    {
        sign * (1 << bits) + more
        for bits in (0, 4, 5, 6, 7, 8, 15, 16, 29, 30, 31, 32, 59, 60, 62, 63, 64, 65, 200)
        for sign in (1, -1)
        for more in (-1, 0, 1)
    }
)
LENGTHS = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257]
LENGTHS += [TEXT_LIMIT - 1, TEXT_LIMIT, TEXT_LIMIT + 1]
LETTERS = ("a", "\x7f", "\x80", "é", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "😀")

VALUES: list[Any] = [
    *EDGES,
    *(0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 1e-320, 1.7976931348623157e308),
    *(True, False, None, "", b"", [], (), {}),
    *(letter * length for letter in LETTERS for length in LENGTHS),
    *("\0", "a\0b", "\ud800", "x\udfffy", "\U0010ffff"),
    *(b"\xff" * length for length in LENGTHS),
    *(bytearray(b"abc"), memoryview(b"abc"), {1, 2}, frozenset({3}), deque([1, 2])),
    *(Text("sub"), Colour.RED, Raises(), Plain(), object, 1j, ..., range(3)),
    *(nested(depth) for depth in range(DEPTH_LIMIT + 3)),
    *(nested(depth, {}) for depth in range(DEPTH_LIMIT + 2)),
    *(list(range(n)) for n in (15, 16, 17, ITEMS_LIMIT, ITEMS_LIMIT + 1)),
    *({f"k{n}": n for n in range(count)} for count in (15, 16, ITEMS_LIMIT, ITEMS_LIMIT + 1)),
    {"a": [1, (2.5, {"b": None})], "é": b"x"},
    {1: 2},
    {Text("key"): 1},
    {"k" * KEY_LIMIT: 1},
    {"k" * (KEY_LIMIT + 1): 1},
    {"\udc80": 1},
    OrderedDict(a=1),
    recursive(),
    [Plain(), "\ud800", 1 << 70],
    [[1] * 32, [2] * 32, [3] * 32, [4] * 27],
    [[1] * 32, [2] * 32, [3] * 32, [4] * 28, []],
    [[1] * 32, [2] * 32, [3] * 32, [4] * 29],
    ["x" * TEXT_LIMIT] * 9,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_value_alone_and_among_others(value: Any) -> None:
    def work(arena: Arena, writer: Engine) -> None:
        writer.instant("alone", value=value)
        writer.instant("among", before=1, value=value, after="x")
        writer.instant("among bytes", before=b"1", value=value, after=["x"])
        writer.counter("counter", value)
        span = writer.begin("begin", value=value)
        writer.end(span, value=value)
        with writer.span("span", value=value):
            writer.record(EXCEPTION, "record", {"value": value})

    both(work)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 300])
@pytest.mark.parametrize("more", [{}, {"bytes": b"x"}, {"list": [1]}])
def test_every_number_of_arguments(count: int, more: dict[str, Any]) -> None:
    args = {f"a{n}": n for n in range(count)}
    both(lambda arena, writer: writer.instant("x", **args, **more))
    both(lambda arena, writer: writer.instant("x", **more, **args))


@pytest.mark.parametrize("length", [KEY_LIMIT, KEY_LIMIT + 1, 300])
@pytest.mark.parametrize("value", [1, b"x", [1]])
def test_long_names_of_arguments(length: int, value: Any) -> None:
    both(lambda arena, writer: writer.instant("x", **{"k" * length: value, "é" * length: value}))


def recording(args: dict[str, Any]) -> Work:
    return lambda arena, writer: writer.instant("x", **args)


def test_arguments_up_to_their_limit_and_beyond() -> None:
    # The texts' sizes add up to something around the limit, one byte more each time.
    for size in range(ARGUMENTS_LIMIT - 560, ARGUMENTS_LIMIT - 500):
        texts = {f"t{n}": "x" * TEXT_LIMIT for n in range(size // (TEXT_LIMIT + 6))}
        both(recording({**texts, "rest": "y" * (size % (TEXT_LIMIT + 6) % TEXT_LIMIT)}))
    for length in range(400, TEXT_LIMIT + 1):
        texts = {f"t{n}": "x" * TEXT_LIMIT for n in range(7)}
        both(recording({**texts, "rest": "y" * length}))


@pytest.mark.parametrize("nodes", [NODES_LIMIT - 1, NODES_LIMIT, NODES_LIMIT + 1])
def test_as_many_values_as_bounded_arguments_may_have(nodes: int) -> None:
    full, rest = divmod(nodes - 1, ITEMS_LIMIT)
    lists = [[0] * (ITEMS_LIMIT - 1) for _ in range(full)] + [[0] * (rest - 1)] * (rest > 0)
    both(lambda arena, writer: writer.instant("x", lists=lists))
    both(lambda arena, writer: writer.instant("x", lists=[*lists, []]))


# Names.


@pytest.mark.parametrize(
    "name",
    [
        *(letter * length for letter in ("a", "é", "€", "😀") for length in LENGTHS),
        *("n" * (NAME_LIMIT + more) for more in (-1, 0, 1)),
        *("\udc80" * length for length in (1, 5, NAME_LIMIT, NAME_LIMIT + 1)),
        *(7, None, Raises(), Text("sub"), Colour.RED, ("a", 1), b"raw"),
        "MainThread",
    ],
    ids=lambda name: type(name).__name__,
)
def test_every_name(name: Any) -> None:
    def work(arena: Arena, writer: Engine) -> None:
        writer.instant(name)
        writer.counter(name, 1)
        writer.end(writer.begin(name, n=1))
        with writer.span(name) as span:
            assert span.id == 2
        writer.record(EXCEPTION, name, {})
        writer.instant("last")

    both(work)


def test_equal_names_that_are_different_objects_are_one() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        for n in range(50):
            writer.instant("".join(["na", "me-", str(n % 5)]))

    both(work)


def test_as_many_names_as_a_batch_can_hold() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        for n in range(9000):
            writer.instant(chr(0x100 + n) if n % 2 else f"{n}")

    both(work)
    both(work, slots=5, slot_size=128)


# Spans.


def test_spans_left_open_are_named_in_every_batch_alike() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        spans = [writer.begin(f"task-{n}", n=n, pad="x" * (n % 90)) for n in range(200)]
        for n in range(2000):
            writer.instant("noise", n=n)
            if n % 3 == 0 and spans:
                writer.end(spans.pop(n * 7 % len(spans)), n=n)
            if n % 11 == 0:
                spans.append(writer.begin("later"))
            if n % 500 == 0:
                arena.set_generation(2 + n)

    both(work, slots=8, slot_size=2048)
    both(work, slots=8, slot_size=16 * 1024)


def test_open_spans_with_arguments_that_fill_a_preamble() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        writer.begin("a", pad="x" * 150)
        writer.begin("b", pad="y" * 300)
        writer.begin("c")
        for n in range(200):
            writer.instant("noise", n=n)

    for slot_size in (448, 512, 520, 640, 1024):
        both(work, slots=6, slot_size=slot_size)


def test_spans_that_nobody_ends_have_a_bound() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        outer = writer.begin("outer")
        spans = [writer.begin("left open", n=n) for n in range(OPEN_LIMIT - 2)]
        # Ends in between make room, and leave holes in what is known.
        for span in spans[1000:3000:2]:
            writer.end(span)
        spans += [writer.begin("left open too") for _ in range(1001)]
        # With one more than there may be, the older half is known no more.
        spans.append(writer.begin("one more"))
        for span in (outer, spans[0], spans[OPEN_LIMIT // 4], spans[-1], spans[-2]):
            writer.end(span)
        for _ in range(2):
            spans += [writer.begin("and on") for _ in range(OPEN_LIMIT)]
        writer.end(spans[-1])

    for arena in both(work):
        assert arena.reader().entry().losses["unmatched"] == 3
        heads = arena.reader().scan().heads
        assert heads
        assert all(head.flags & SlotFlag.PARTIAL_PREAMBLE for head in heads)


def test_ending_what_is_not_open() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        span, other = writer.begin("once"), writer.begin("other")
        writer.end(span)
        values: list[Any] = [span, 999, "nonsense", [], None, float(other), True, 0, -1, 1 << 70]
        values += [1 << 64, (1 << 64) - 1, 1 << 63, -(1 << 70), Colour.RED]
        for value in values:
            writer.end(value)
            writer.end(value, why="args")

    both(work)


def test_a_span_entered_twice_and_one_that_an_exception_passes() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        twice = writer.span("twice", n=1)
        for _ in range(2):
            with twice:
                pass
        for error in (ValueError, type("É" * 300, (Exception,), {}), KeyboardInterrupt):
            with pytest.raises(error), writer.span("raised"):
                raise error
        never = writer.span("never")
        never.__exit__(None, None, None)

    both(work)


# The ring.


@pytest.mark.parametrize("slot_size", [128, 192, 256, 512, 1024])
def test_rings_that_wrap_at_every_size(slot_size: int) -> None:
    def work(arena: Arena, writer: Engine) -> None:
        for n in range(700):
            if n % 37 == 0:
                arena.set_generation(2 + n)
            writer.instant(f"name-{n % 13}", n=n, pad="x" * (n % 61))
            writer.counter("depth", n)

    both(work, slots=5, slot_size=slot_size)


def test_a_recording_that_is_closed_counts_what_comes_after() -> None:
    from shmrec.layout import CONTROL, SegmentState

    def work(arena: Arena, writer: Engine) -> None:
        writer.instant("before")
        arena.words[CONTROL.word("state")] = SegmentState.CLOSED
        arena.set_generation(2)
        writer.instant("after")
        writer.begin("after")
        assert not writer.bound

    both(work)


def test_detaching_forgetting_and_binding_again() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        def bind() -> None:
            rebind(writer, arena, fenced=False)

        span = writer.begin("open")
        assert writer.unbind()
        writer.instant("nowhere")
        bind()
        writer.end(span)
        writer.instant("again")
        inner = writer.begin("inherited")
        writer.forget()
        writer.instant("nowhere")
        bind()
        writer.end(inner)
        writer.end(writer.begin("own"))
        writer.lose("oversized", 3)
        writer.lose("oversized", -1)

    both(work)


def test_threads_that_take_turns() -> None:
    def work(arena: Arena, writer: Engine) -> None:
        turn = threading.Barrier(2)

        def speak(name: str) -> None:
            for n in range(30):
                turn.wait()
                if n % 2 == (name == "b"):
                    writer.instant(f"x{n % 3}", n=n)
                    with writer.span(name):
                        pass

        threads = [threading.Thread(target=speak, args=(name,), name=name) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    arenas = []
    for engine in ("python", "native"):
        arena = Arena(slots=8, slot_size=512)
        work(arena, arena.writer(engine=engine))
        arenas.append(arena)
    # Kernel ids differ from run to run, and are of one size.
    python, native = map(without_threads, arenas)
    assert native == python


def without_threads(arena: Arena) -> list[object]:
    from .arena import events_in

    return [
        (event.time_ns, event.kind, event.name, event.thread_name, event.span, event.args)
        for event in events_in(arena.reader())
    ]


# Anything at all.

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=40)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=40)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=200,
)
names = st.sampled_from(["a", "b", "request", "é", "MainThread"]) | st.text(max_size=300)
arguments = st.dictionaries(st.text(max_size=80), anything, max_size=40)
steps = st.one_of(
    st.tuples(st.just("instant"), names, arguments),
    st.tuples(st.just("begin"), names, arguments),
    st.tuples(st.just("end"), st.integers(-2, 30), arguments),
    st.tuples(st.just("span"), names, arguments),
    st.tuples(st.just("counter"), names, scalars),
    st.tuples(st.just("exception"), names, arguments),
    st.tuples(st.just("generation"), st.integers(1, 1 << 40)),
    st.tuples(st.just("noise"), st.integers(1, 60)),
)


def perform(program: list[tuple[Any, ...]]) -> Work:
    def work(arena: Arena, writer: Engine) -> None:
        for what, *rest in program:
            if what == "instant":
                writer.instant(rest[0], **rest[1])
            elif what == "begin":
                writer.begin(rest[0], **rest[1])
            elif what == "end":
                writer.end(rest[0], **rest[1])
            elif what == "span":
                with writer.span(rest[0], **rest[1]):
                    pass
            elif what == "counter":
                writer.counter(rest[0], rest[1])
            elif what == "exception":
                writer.record(events.EXCEPTION, rest[0], rest[1])
            elif what == "generation":
                arena.set_generation(rest[0])
            else:
                for n in range(rest[0]):
                    writer.instant(f"noise-{n % 4}", n=n)

    return work


@settings(max_examples=int(os.environ.get("SHMREC_EXAMPLES", "150")), deadline=None)
@given(st.lists(steps, max_size=25), st.sampled_from([128, 256, 512, 1024, 4096, 16 * 1024]))
def test_any_program_leaves_the_same_bytes(program: list[Any], slot_size: int) -> None:
    both(perform(program), slots=4, slot_size=slot_size)
