"""The life of the native engine: nothing leaks, nothing crashes, nothing is written elsewhere.

What it records is compared with the python engine's in `test_twins`; this is about its memory.
Also run under AddressSanitizer and UndefinedBehaviorSanitizer, by `tools/sanitize`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmrec import _engine, fence
from shmrec.events import EXCEPTION
from shmrec.extension import EXTENSION
from shmrec.layout import CONTROL, ENTRY, LOSSES, SLOT, WORD, Geometry, SegmentState

from .arena import Arena, events_in
from .conftest import wait_until

if EXTENSION is None:
    pytest.skip(f"no native engine: {_engine.refusal('native')}", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]

SANITIZED = bool(os.environ.get("SHMREC_SANITIZED"))
SLACK = 64
"""Blocks, objects and references that may come and go beside the calls: caches, the test's own."""
SLACK_BYTES = 1 << 20


def a_writer(arena: Arena, **options: Any) -> Any:
    """A writer with the real clock, in the arena's ring."""
    assert EXTENSION is not None
    writer = EXTENSION.Writer(**options)
    rebind(writer, arena)
    return writer


def rebind(writer: Any, arena: Arena, **other: Any) -> None:
    places = {
        "entry": arena.entry,
        "ring": arena.geometry.ring(0),
        "slot_size": arena.geometry.slot_size,
        "slots": arena.geometry.slots,
    }
    writer.bind(arena.view, arena.words, **{**places, **other})


# Leaks.


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
        lambda: writer.span(it.name).__exit__(),
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


# The module.


def another_module() -> ModuleType:
    """The extension loaded once more, with a state of its own."""
    assert EXTENSION is not None
    assert EXTENSION.__file__ is not None
    spec = importlib.util.spec_from_file_location("shmrec._native", EXTENSION.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modules_share_nothing() -> None:
    assert EXTENSION is not None
    module = another_module()
    assert module.Writer is not EXTENSION.Writer
    arena = Arena()
    places = {"entry": arena.entry, "ring": arena.geometry.ring(0), "slot_size": 512, "slots": 4}
    first, second = EXTENSION.Writer(), module.Writer()
    first.bind(arena.view, arena.words, **places)
    first.instant("first")
    first.unbind()
    second.bind(arena.view, arena.words, **places)
    second.instant("second")
    assert [event.name for event in events_in(arena.reader())] == ["first", "second"]


def test_a_module_that_nobody_holds_is_gone() -> None:
    def use() -> None:
        module = another_module()
        arena = Arena()
        writer = module.Writer()
        rebind(writer, arena)
        for _ in range(3):
            with writer.span("kept for reuse"):
                pass
        with module.Writer().span("nowhere"):
            pass
        # A cycle through the module itself: what is left is freed in any order.
        module.__dict__["writer"] = writer
        writer.revive = writer.instant

    def held() -> int:
        gc.collect()
        return sum(
            isinstance(each, type) and each.__module__ == "shmrec._native"
            for each in gc.get_objects()
        )

    use()
    before = held()
    for _ in range(20):
        use()
    assert held() == before


INTERPRETER = """
import sys, types

package = types.ModuleType("shmrec")  # posix_ipc cannot be loaded in a second interpreter
package.__path__ = [{package!r}]
sys.modules["shmrec"] = package
sys.path.insert(0, {root!r})
from tests.arena import Arena, events_in

arena = Arena(slots=8, slot_size=512)
writer = arena.writer(engine="native")
for n in range(3000):
    with writer.span("request", n=n):
        writer.instant("odd", value={{n}})
events = events_in(arena.reader())
assert events[-1].span == 3000 and events[-2].args == {{"value": [2999]}}, events[-2:]
"""

INTERPRETERS = """
import sys, threading
try:
    import _interpreters
    make = lambda: _interpreters.create("isolated")
except ImportError:
    import _xxsubinterpreters as _interpreters
    make = lambda: _interpreters.create(isolated=True)

code = sys.argv[1]
failures = []

def run():
    interpreter = make()
    try:
        failures.append(_interpreters.run_string(interpreter, code))
    except BaseException as error:
        failures.append(error)
    _interpreters.destroy(interpreter)

for _ in range(2):
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    exec(code, {})
    for thread in threads:
        thread.join()
assert failures == [None] * 4, failures
print("done")
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="interpreters share one GIL before 3.12")
def test_interpreters_record_side_by_side() -> None:
    code = INTERPRETER.format(package=str(ROOT / "shmrec"), root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETERS, code], capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_free_threaded_python_is_told_that_it_is_not_supported() -> None:
    # Reached only if the extension was loaded there.
    pytest.fail("the native engine does not support free-threaded Python, and was loaded")


# Whose events they are.


def test_after_an_event_that_no_slot_holds_the_next_one_is_its_own_threads() -> None:
    found = []
    for engine in ("python", "native"):
        arena = Arena(slots=8, slot_size=256)
        writer = _engine.choose(engine)[1]()
        rebind(writer, arena)
        begun, go = threading.Event(), threading.Event()

        def speak(writer: Any = writer, begun: Any = begun, go: Any = go) -> None:
            writer.begin("open")
            begun.set()
            go.wait()
            writer.instant("mine")

        thread = threading.Thread(target=speak, name="other")
        thread.start()
        begun.wait()
        # The preamble of the batch that this opens in vain ends with the other thread's span.
        writer.instant("x")
        writer.instant("n" * 250)
        go.set()
        thread.join()
        found.append([(each.name, each.thread_name) for each in events_in(arena.reader())])
    assert found[1] == found[0]
    assert found[0][-1] == ("mine", "other")


# Places that are not ours.

INTEGERS = st.integers(-(1 << 70), 1 << 70) | st.integers(-64, 20_000)
PLACES = st.sampled_from([0, 8, 64, 128, 4096, 8192, 16384]) | st.integers(0, 3000).map(
    lambda n: n * WORD
)


@settings(max_examples=400, deadline=None)
@given(
    places=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("entry", "ring", "slot_size", "slots"), INTEGERS | PLACES),
    ),
    size=st.integers(0, 40_000),
)
def test_a_binding_is_within_its_memory_or_refused(places: dict[str, int], size: int) -> None:
    assert EXTENSION is not None
    canary = 4096
    memory = bytearray(b"\xa5" * (size + 2 * canary))
    view = memoryview(memory)[canary : canary + size]
    writer = EXTENSION.Writer()
    try:
        writer.bind(view, None, **places)
    except (ValueError, TypeError, OverflowError):
        assert not writer.bound
    else:
        assert set(places) == {"entry", "ring", "slot_size", "slots"}
        for n in range(50):
            writer.instant("event", n=n, pad="x" * n)
            writer.begin("open")
        writer.unbind()
    inside = {
        place
        for start, length in (
            (places.get("entry", 0), ENTRY.size),
            (places.get("ring", 0), places.get("slot_size", 0) * places.get("slots", 0)),
        )
        for place in range(max(0, start), min(max(0, start + length), size))
    }
    written = {at - canary for at, byte in enumerate(memory) if byte != 0xA5}
    assert written <= inside


@pytest.mark.parametrize(
    "places",
    [
        {"entry": -8},
        {"ring": -8},
        {"slots": 0},
        {"slots": -1},
        {"slot_size": 0},
        {"slot_size": SLOT.size},
        {"slot_size": -512},
        {"entry": 4},
        {"ring": 12},
        {"slot_size": 508},
        {"slots": 1 << 62},
        {"slot_size": 1 << 62},
        {"entry": (1 << 63) - 8},
        {"ring": (1 << 63) - 8},
    ],
    ids=str,
)
def test_a_place_that_is_refused(places: dict[str, int]) -> None:
    arena = Arena()
    writer = a_writer(arena)
    before = bytes(arena.memory)
    with pytest.raises(ValueError, match="not within the memory, or not aligned"):
        rebind(writer, arena, **places)
    assert not writer.bound
    writer.instant("nowhere")
    assert bytes(arena.memory) == before
    rebind(writer, arena)
    writer.instant("there")
    assert [event.name for event in events_in(arena.reader())] == ["there"]


def test_memory_that_is_refused() -> None:
    arena = Arena()
    writer = a_writer(arena)
    memory: Any
    for memory in (None, 7, "text", [1]):
        with pytest.raises(TypeError):
            writer.bind(memory, None, entry=0, ring=0, slot_size=512, slots=1)
    for memory in (bytes(1 << 16), memoryview(bytearray(1 << 17))[::2]):
        with pytest.raises((BufferError, ValueError)):
            writer.bind(memory, None, entry=4096, ring=8192, slot_size=512, slots=1)
    with pytest.raises(ValueError, match="not aligned"):
        writer.bind(
            memoryview(bytearray(1 << 16))[1:], None, entry=4096, ring=8192, slot_size=512, slots=1
        )


def test_memory_is_held_as_long_as_it_is_used() -> None:
    arena = Arena()
    writer = a_writer(arena)
    arena.words.release()
    with pytest.raises(BufferError):
        arena.view.release()
    writer.instant("held")
    writer.unbind()
    arena.view.release()


BUFFERS = """
import sys
from shmrec import _native
from tests.arena import Arena

class Memory:
    def __init__(self, arena): self.arena, self.meddle = arena, None
    def __buffer__(self, flags): return memoryview(self.arena.memory)
    def __release_buffer__(self, view):
        meddle, self.meddle = self.meddle, None
        if meddle: meddle()
        view.release()

def bind(writer, memory, arena):
    entry, ring = arena.entry, arena.geometry.ring(0)
    writer.bind(memory, None, entry=entry, ring=ring, slot_size=512, slots=4)

for _ in range(50):
    arena = Arena()
    writer, memory = _native.Writer(), Memory(arena)
    for meddle in (writer.unbind, lambda: bind(writer, Memory(arena), arena), writer.forget):
        for call in (writer.unbind, lambda: bind(writer, memory, arena)):
            bind(writer, memory, arena)
            memory.meddle = meddle
            call()
            writer.instant("x")
            memory.meddle = None
            writer.unbind()
    assert sys.getrefcount(memory) == 2, sys.getrefcount(memory)
print("done")
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__release_buffer__ is of 3.12")
def test_memory_whose_release_meddles_with_the_writer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUFFERS], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# Memory that somebody scribbles on.


class Scribbled:
    """The second of three rings, between canaries, in memory that children may share."""

    CANARY = 4096

    def __init__(self) -> None:
        self.geometry = Geometry(producers=3, slots=4, slot_size=512)
        size = self.geometry.segment_size
        self.memory = mmap.mmap(-1, size + 2 * self.CANARY)
        self.view = memoryview(self.memory)[self.CANARY : self.CANARY + size]
        self.words = self.view.cast("Q")
        self.entry, self.ring = self.geometry.entry(1), self.geometry.ring(1)
        self.words[CONTROL.word("generation")] = 1
        ends = (range(self.CANARY), range(self.CANARY + size, len(self.memory)))
        for at in itertools.chain(*ends):
            self.memory[at] = 0xA5
        slots = range(self.ring, self.ring + 4 * 512, 512)
        regions = [(0, CONTROL.size), (self.entry, ENTRY.size), *((at, SLOT.size) for at in slots)]
        self.targets = [
            word for start, size in regions for word in range(start // WORD, (start + size) // WORD)
        ]

    def bind(self, writer: Any) -> None:
        writer.bind(self.view, self.words, entry=self.entry, ring=self.ring, slot_size=512, slots=4)

    def outside(self) -> list[bytes]:
        """Everything that is not the writer's."""
        entry, ring = self.entry + self.CANARY, self.ring + self.CANARY
        memory = memoryview(self.memory)
        return [
            bytes(memory[:entry]),
            bytes(memory[entry + ENTRY.size : ring]),
            bytes(memory[ring + 4 * 512 :]),
        ]

    def close(self) -> None:
        self.words.release()
        self.view.release()
        self.memory.close()


@pytest.fixture
def scribbled() -> Iterator[Scribbled]:
    found = Scribbled()
    yield found
    found.close()


def garbage(chance: random.Random) -> int:
    edges = (0, 1, (1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 48, SegmentState.CLOSED)
    return chance.choice((*edges, chance.getrandbits(64), chance.getrandbits(16)))


def record_anything(writer: Any, chance: random.Random, spans: list[int]) -> None:
    what = chance.randrange(7)
    if what == 0:
        writer.instant(f"event {chance.randrange(40)}", n=chance.getrandbits(64))
    elif what == 1:
        spans.append(writer.begin("open", pad="x" * chance.randrange(100)))
    elif what == 2 and spans:
        writer.end(spans.pop(chance.randrange(len(spans))))
    elif what == 3:
        with writer.span("span", value={1}):
            writer.counter("depth", chance.random())
    elif what == 4:
        writer.lose(chance.choice(LOSSES), chance.choice((1, -1, (1 << 63) - 1, -(1 << 63))))
    elif what == 5:
        writer.instant("large", pad="x" * 500)
    else:
        writer.instant("plain")


@pytest.mark.parametrize("seed", range(20))
def test_garbage_between_events_does_no_harm(seed: int, scribbled: Scribbled) -> None:
    assert EXTENSION is not None
    chance = random.Random(seed)
    writer = EXTENSION.Writer()
    spans: list[int] = []
    for _ in range(1500):
        for _ in range(chance.randrange(3)):
            scribbled.words[chance.choice(scribbled.targets)] = garbage(chance)
        before = scribbled.outside()
        if not writer.bound:
            scribbled.bind(writer)
        record_anything(writer, chance, spans)
        assert scribbled.outside() == before
    writer.unbind()


def test_garbage_from_another_process_does_no_harm(scribbled: Scribbled) -> None:
    assert EXTENSION is not None
    chance = random.Random(7)
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            while True:
                scribbled.words[chance.choice(scribbled.targets)] = garbage(chance)
        os._exit(1)
    try:
        wait_until(lambda: any(scribbled.words[word] > 1 for word in scribbled.targets[:60]))
        writer = EXTENSION.Writer()
        spans: list[int] = []
        rounds = 0
        for _ in range(5_000 if SANITIZED else 50_000):
            if not writer.bound:
                scribbled.bind(writer)
                rounds += 1
            record_anything(writer, chance, spans)
        assert rounds
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    writer.unbind()
    outside = scribbled.outside()
    # The control block was the other's to scribble on; nothing else was anybody's.
    assert outside[0][: scribbled.CANARY] == b"\xa5" * scribbled.CANARY
    assert set(outside[0][scribbled.CANARY + CONTROL.size :]) == {0}
    assert set(outside[1]) == {0}
    assert outside[2][-scribbled.CANARY :] == b"\xa5" * scribbled.CANARY
    assert set(outside[2][: -scribbled.CANARY]) == {0}


# Forks.


def test_a_child_that_c_forked_leaves_the_parents_memory_alone() -> None:
    import ctypes

    memory = mmap.mmap(-1, Arena().geometry.segment_size)
    arena = Arena()
    arena.memory = memory  # type: ignore[assignment]
    arena.view = memoryview(memory)
    arena.words = arena.view.cast("Q")
    arena.set_generation(1)
    writer = a_writer(arena)
    writer.begin("the parent's")
    before = bytes(memory)
    pid = ctypes.CDLL(None).fork()
    if not pid:
        status = 1
        with contextlib.suppress(BaseException):
            asked: list[bool] = []

            def revive() -> bool:
                asked.append(True)
                return False

            writer.revive = revive
            writer.instant("the child's")
            writer.counter("the child's", 1)
            with writer.span("the child's"):
                pass
            writer.lose("oversized")
            writer.unbind()
            status = 0 if len(asked) == 3 and not writer.bound else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert bytes(memory) == before
    assert writer.bound
    writer.unbind()
    del writer
    arena.words.release()
    arena.view.release()
    memory.close()


def test_the_fences_of_the_package_are_the_extensions() -> None:
    assert EXTENSION is not None
    assert fence.acquire is EXTENSION.acquire
    assert fence.release is EXTENSION.release
