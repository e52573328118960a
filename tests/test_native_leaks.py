"""The native engine leaks nothing, whichever way a call ends.

Counts of objects, of memory and of references stay flat over a million calls of each kind, the
failing ones included; fewer of those that take long.
"""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shmrec import _engine
from shmrec.events import EXCEPTION
from shmrec.extension import EXTENSION
from shmrec.layout import CONTROL, SegmentState

from .arena import Arena
from .native import SANITIZED, a_writer, rebind

if EXTENSION is None:
    pytest.skip(f"no native engine: {_engine.refusal('native')}", allow_module_level=True)

SLACK = 64
"""Blocks, objects and references that may come and go beside the calls: caches, the test's own."""
SLACK_BYTES = 1 << 20


class Raises:
    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error("no")

    def __index__(self) -> int:
        raise self.error("no")

    def __call__(self) -> int:
        raise self.error("no")


class Text(str):
    __slots__ = ()


class Things:
    """What calls get: objects of which nobody else holds a reference."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.name = "".join(["na", "me"])
        self.other = "".join(["oth", "er"])
        self.wide = "".join(["ñ", "ame"])
        self.text = "".join(["te", "xt"])
        self.integer = int("123456789")
        self.large = int("9" * 40)
        self.ratio = float("1.5")
        self.raw = bytes(bytearray(b"raw"))
        self.nested = {"".join(["k", "ey"]): [self.ratio, (self.integer,)]}
        self.set = {self.integer}
        self.odd = Text("odd")
        self.raises = Raises()
        self.interrupts = Raises(KeyboardInterrupt)
        self.plain = {"a": self.integer, "b": self.text}
        self.bounded = {"a": self.set}
        self.nothing: dict[str, Any] = {}
        self.error = ValueError("x")

    def references(self) -> dict[str, int]:
        return {name: sys.getrefcount(value) for name, value in vars(self).items()}


Made = Callable[[], object]
KINDS: dict[str, tuple[int, Callable[[Any, Arena, Things], Made]]] = {}
MILLION, SLOW, SLOWEST = 1_000_000, 100_000, 20_000
"""Calls of a kind. ``SHMREC_CALLS`` says another number, for all: a million takes minutes."""


def kind(calls: int = MILLION) -> Callable[[Callable[..., Made]], None]:
    """A kind of call: the function makes what is called so many times."""

    def register(make: Callable[..., Made]) -> None:
        KINDS[make.__name__.replace("_", " ")] = calls, make

    return register


@kind()
def an_instant(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.instant(it.name)


@kind()
def an_instant_with_plain_arguments(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.instant(it.name, a=it.integer, b=it.text, c=it.ratio, d=None, e=True)


@kind()
def an_instant_with_containers(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.instant(it.wide, a=it.nested, b=it.raw)


@kind(SLOW)
def an_instant_with_what_python_must_bound(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.instant(it.name, a=it.set, b=it.large, c=it.odd)


@kind(SLOW)
def arguments_whose_repr_raises(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.instant(it.name, a=it.raises)


@kind(SLOW)
def an_interrupt_out_of_a_repr(writer: Any, arena: Arena, it: Things) -> Made:
    return raising(KeyboardInterrupt, lambda: writer.instant(it.name, a=it.interrupts))


@kind(SLOW)
def an_interrupt_out_of_a_name(writer: Any, arena: Arena, it: Things) -> Made:
    return raising(KeyboardInterrupt, lambda: writer.begin(it.interrupts, a=it.integer))


@kind(SLOW)
def names_that_are_no_str(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        writer.instant(it.odd)
        writer.instant(it.integer, a=it.text)
        writer.instant(it.raises)
        writer.counter(it.odd, it.integer)
        writer.record(EXCEPTION, it.odd, it.nothing)

    return call


@kind()
def a_begin_and_its_end(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.end(writer.begin(it.name))


@kind()
def a_begin_and_its_end_with_arguments(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.end(writer.begin(it.name, a=it.text), b=it.nested)


@kind()
def spans_that_end_in_another_order(writer: Any, arena: Arena, it: Things) -> Made:
    spans = [writer.begin(it.name, n=n) for n in range(200)]
    places = itertools.cycle(random.Random(1).sample(range(200), 200))

    def call() -> None:
        place = next(places)
        writer.end(spans[place])
        spans[place] = writer.begin(it.other, a=it.text)

    return call


@kind()
def an_end_of_what_is_not_open(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        writer.end(it.integer)
        writer.end(it.large, a=it.text)
        writer.end(it.text)
        writer.end(0)

    return call


@kind()
def a_span(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        with writer.span(it.name):
            pass

    return call


@kind()
def a_span_with_arguments(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        with writer.span(it.name, a=it.text) as span:
            assert span.id

    return call


@kind(SLOW)
def a_span_that_an_exception_passes(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        try:
            with writer.span(it.name):
                raise it.error.with_traceback(None)
        except ValueError:
            pass
        it.error.__traceback__ = None

    return call


@kind(SLOW)
def spans_that_are_dropped(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        # More than a writer keeps for reuse, some of them entered and never left.
        spans = [writer.span(it.name, n=n) for n in range(20)]
        writer.end(spans[3].__enter__().id)

    return call


@kind()
def a_counter(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        writer.counter(it.name, it.integer)
        writer.counter(it.name, it.ratio)

    return call


@kind(SLOW)
def counters_of_other_things(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        writer.counter(it.name, it.large)
        writer.counter(it.name, True)
        writer.counter(it.name, it.text)
        writer.counter(it.name, it.raises)
        writer.counter(it.odd, it.raises)

    return call


@kind(SLOW)
def a_record(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        writer.record(EXCEPTION, it.name, it.nothing)
        writer.record(EXCEPTION, it.name, it.plain)
        writer.record(EXCEPTION, it.name, it.bounded)

    return call


@kind(SLOW)
def a_record_of_no_kind(writer: Any, arena: Arena, it: Things) -> Made:
    return raising(AttributeError, lambda: writer.record(it.text, it.name, it.plain))


@kind(SLOW)
def wrong_arguments(writer: Any, arena: Arena, it: Things) -> Made:
    calls: list[Made] = [
        writer.instant,
        lambda: writer.instant(it.name, it.text),
        lambda: writer.instant(a=it.text),
        lambda: writer.begin(it.name, it.text, a=it.ratio),
        writer.end,
        lambda: writer.span(it.name, it.name),
        lambda: writer.counter(it.name),
        lambda: writer.counter(it.name, it.integer, it.integer),
        lambda: writer.record(EXCEPTION, it.name, it.set),
        lambda: writer.record(EXCEPTION),
        lambda: writer.lose(it.integer),
        lambda: writer.bind(it.text),
        lambda: writer.bind(it.text, None, entry=0, ring=0, slot_size=0, slots=0),
        lambda: type(writer)(it.text),
        lambda: type(writer)(nonsense=it.text),
        lambda: writer.span(it.name).__exit__(it.text),
        lambda: writer.span(it.name)(it.text),
        lambda: writer.span(it.name)(a=it.text),
        lambda: fence_call("membarrier", it.text),
    ]
    refused = [raising(TypeError, call) for call in calls]

    def call() -> None:
        for each in refused:
            each()

    return call


@kind()
def losses(writer: Any, arena: Arena, it: Things) -> Made:
    return lambda: writer.lose("oversized", count=it.integer)


@kind(SLOW)
def losses_of_no_cause(writer: Any, arena: Arena, it: Things) -> Made:
    return raising(KeyError, lambda: writer.lose(it.name))


@kind(SLOW)
def bindings(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        assert writer.unbind()
        writer.instant(it.name)
        rebind(writer, arena)
        writer.begin(it.name, a=it.text)
        writer.instant(it.wide)

    return call


@kind(SLOW)
def bindings_over_bindings(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        rebind(writer, arena)
        writer.begin(it.name)
        writer.forget()

    return call


@kind(SLOW)
def bindings_that_are_refused(writer: Any, arena: Arena, it: Things) -> Made:
    return raising(ValueError, lambda: rebind(writer, arena, entry=-8))


@kind()
def calls_without_a_ring(writer: Any, arena: Arena, it: Things) -> Made:
    writer.unbind()
    writer.revive = lambda: False

    def call() -> None:
        writer.instant(it.name, a=it.text)
        writer.counter(it.name, it.integer)
        writer.end(writer.begin(it.name))
        with writer.span(it.name, a=it.text):
            pass

    return call


@kind(SLOW)
def a_revival_that_raises(writer: Any, arena: Arena, it: Things) -> Made:
    writer.unbind()
    writer.revive = it.raises
    return raising(RuntimeError, lambda: writer.instant(it.name, a=it.text))


@kind(SLOW)
def a_revival_that_binds(writer: Any, arena: Arena, it: Things) -> Made:
    def revive() -> bool:
        rebind(writer, arena)
        return True

    writer.revive = revive

    def call() -> None:
        writer.unbind()
        with writer.span(it.name, a=it.set):
            writer.unbind()

    return call


@kind(SLOWEST)
def writers(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        another = a_writer(arena, revive=it.raises, clock=None)
        another.begin(it.name, a=it.text)

    return call


@kind(SLOWEST)
def writers_in_cycles(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        another = a_writer(arena)
        another.revive = (another.span(it.name, a=it.text), another).__len__

    return call


@kind(SLOW)
def a_clock_that_raises(writer: Any, arena: Arena, it: Things) -> Made:
    another = a_writer(arena, clock=it.raises)
    calls: list[Made] = [
        lambda: another.instant(it.name),
        lambda: another.begin(it.name, a=it.text),
        lambda: another.span(it.name, a=it.text).__enter__(),
    ]
    failing = [raising(RuntimeError, each) for each in calls]

    def call() -> None:
        for each in failing:
            each()

    return call


@kind()
def a_generation_an_event(writer: Any, arena: Arena, it: Things) -> Made:
    generations = itertools.count(2)
    writer.begin(it.name, a=it.text)

    def call() -> None:
        arena.words[CONTROL.word("generation")] = next(generations)
        writer.instant(it.wide)

    return call


@kind(SLOW)
def a_recording_that_is_closed(writer: Any, arena: Arena, it: Things) -> Made:
    generations = itertools.count(2)
    arena.words[CONTROL.word("state")] = SegmentState.CLOSED

    def call() -> None:
        rebind(writer, arena)
        arena.words[CONTROL.word("generation")] = next(generations)
        writer.begin(it.wide, a=it.text)
        assert not writer.bound

    return call


@kind(SLOW)
def what_is_larger_than_a_slot(writer: Any, arena: Arena, it: Things) -> Made:
    text = "x" * 400

    def call() -> None:
        writer.begin(it.name, a=text, b=text, c=text, d=text)
        writer.instant(it.other)

    return call


@kind(SLOW)
def as_many_names_as_there_are(writer: Any, arena: Arena, it: Things) -> Made:
    numbers = itertools.count()
    return lambda: writer.instant(f"name {next(numbers) % 5000}")


@kind(SLOWEST)
def threads(writer: Any, arena: Arena, it: Things) -> Made:
    def speak() -> None:
        writer.instant(it.name)
        writer.begin(it.name, a=it.text)

    def call() -> None:
        thread = threading.Thread(target=speak, name="speaker")
        thread.start()
        thread.join()
        # Its open span must not be what keeps it for ever.
        rebind(writer, arena)

    return call


@kind()
def fences(writer: Any, arena: Arena, it: Things) -> Made:
    def call() -> None:
        fence_call("acquire")
        fence_call("release")
        fence_call("membarrier", 0)

    return call


def fence_call(name: str, *args: Any) -> object:
    return getattr(EXTENSION, name)(*args)


def raising(error: type[BaseException], call: Made) -> Made:
    """A call that must raise."""

    def wrapped() -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"no {error.__name__}")

    return wrapped


def usage() -> dict[str, int]:
    """What must not grow: memory, and references to what is there once."""
    for _ in range(3):
        gc.collect()
    with open("/proc/self/statm", "rb") as file:
        resident = int(file.read().split()[1]) * mmap.PAGESIZE
    return {
        "blocks of Python's memory": sys.getallocatedblocks(),
        "objects with references": len(gc.get_objects()),
        # The sanitizer keeps what is freed, to notice who uses it.
        "bytes resident": 0 if SANITIZED else resident,
        **{
            f"references to {single!r}": sys.getrefcount(single)
            for single in (None, True, False, (), "", ValueError, RuntimeError, EXCEPTION)
        },
    }


def repeat(call: Made, times: int) -> None:
    for _ in itertools.repeat(None, times):
        call()


@pytest.mark.parametrize("what", KINDS)
def test_memory_stays_flat(what: str) -> None:
    calls, make = KINDS[what]
    calls = int(os.environ.get("SHMREC_CALLS", calls))
    if SANITIZED:
        calls //= 500
    arena = Arena(slots=4, slot_size=1024)
    it = Things(arena.view)
    before = it.references()
    writer = a_writer(arena)
    call = make(writer, arena, it)
    repeat(call, min(calls // 4, 50_000))
    used = usage()
    # What leaks does so every time; what a cache or another thread takes, it takes once.
    for _ in range(3):
        repeat(call, calls)
        now = usage()
        grown = {
            what: now[what] - used[what]
            for what in now
            if now[what] - used[what] > (SLACK_BYTES if what == "bytes resident" else SLACK)
        }
        if not grown:
            break
        used = now
    else:
        pytest.fail(f"{calls} calls, and more each time: {grown}")
    del writer, call, make
    gc.collect()
    assert it.references() == before
