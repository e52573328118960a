"""The life of the native engine: its module, interpreters beside each other, threads, forks.

What it records is compared with the python engine's in `test_twins`. Also run under the
sanitizers, by `tools/sanitize`.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import importlib.util
import itertools
import mmap
import os
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shmrec import _engine, fence
from shmrec.extension import EXTENSION

from .arena import Arena, batches, events_in
from .native import a_writer, rebind

if EXTENSION is None:
    pytest.skip(f"no native engine: {_engine.refusal('native')}", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]


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

# The main interpreter first: msgpack's extension refuses the others, and crashes whoever imports
# it after it has refused one.
exec(code, {})
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


def test_threads_that_follow_each_other_speak_for_themselves() -> None:
    # A thread that ends leaves its place in memory to the next one.
    arena = Arena(slots=64, slot_size=1024)
    writer = a_writer(arena)
    for n in range(100):
        thread = threading.Thread(target=writer.instant, args=("x",), name=f"t{n}")
        thread.start()
        thread.join()
    found = events_in(arena.reader())
    assert [event.thread_name for event in found] == [f"t{n}" for n in range(100)]


@pytest.mark.parametrize("kept_in", ["a context variable", "a thread's local"])
def test_a_thread_that_records_as_it_goes_leaves_its_name_to_nobody(kept_in: str) -> None:
    arena = Arena(slots=8, slot_size=4096)
    writer = a_writer(arena)
    variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")
    local = threading.local()

    class Late:
        def __del__(self) -> None:
            writer.instant("late")

    def first() -> None:
        if kept_in == "a context variable":
            variable.set(Late())
        else:
            local.kept = Late()

    # The dying thread's events make a Speaker that nothing takes away any more.
    for name, work in (("first", first), ("second", lambda: writer.instant("second"))):
        thread = threading.Thread(target=work, name=name)
        thread.start()
        thread.join()
    events = {event.name: event.thread_name for event in events_in(arena.reader())}
    assert events["second"] == "second"
    assert "late" in events


def test_ending_a_span_for_which_no_ring_was_revived() -> None:
    arena = Arena()
    writer = a_writer(arena)
    span = writer.begin("open")
    writer.unbind()
    # What it says of a ring is not true: another thread may have detached meanwhile.
    writer.revive = lambda: True
    for number in (span, 99):
        writer.end(number)
        writer.end(number, n=1)
    writer.instant("nowhere")
    writer.counter("nowhere", 1)
    with writer.span("nowhere"):
        pass
    assert writer.begin("nowhere") == 0
    assert [event.name for event in events_in(arena.reader())] == ["open"]


def test_a_span_of_a_writer_that_is_going_does_nothing() -> None:
    arena = Arena()
    spans: list[Any] = []
    used: list[int] = []

    class Revival:
        def __call__(self) -> bool:
            return False

        def __del__(self) -> None:
            for span in spans:
                with span:
                    used.append(span.id)

    writer = a_writer(arena, revive=Revival())
    spans += [writer.span("before"), writer.span("inside")]
    spans[1].__enter__()
    del writer
    gc.collect()
    assert used == [0, 0]
    for span in spans:
        with span:
            assert span.id == 0
    assert [event.kind for event in events_in(arena.reader())] == ["begin"]


def test_a_ring_of_larger_slots_has_room_for_more_names() -> None:
    def filled(writer: Any, arena: Arena) -> list[int]:
        rebind(writer, arena)
        for n in range(300):
            writer.instant(f"{n}")
        return [batch.head.count for batch in batches(arena.reader())]

    small, large = Arena(slots=8, slot_size=520), Arena(slots=8, slot_size=1024)
    fresh = Arena(slots=8, slot_size=1024)
    # Times take their bytes too.
    writer, another = (
        a_writer(arena, clock=itertools.count(1000, 1000).__next__) for arena in (small, fresh)
    )
    filled(writer, small)
    assert filled(writer, large) == filled(another, fresh)
