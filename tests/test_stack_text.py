"""faulthandler's text, read back: what it writes, in all its versions, and what is none of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmrec.stack_text import Dump, Frame, ThreadStack, parse

DUMPER = r"""
import faulthandler, os, signal, sys, threading, time

def application(depth):
    if depth:
        return application(depth - 1)
    faulthandler.dump_traceback(sys.stdout, all_threads=True)
    faulthandler.dump_traceback(sys.stdout, all_threads=False)
    faulthandler.enable(sys.stdout)
    os.kill(os.getpid(), signal.SIGSEGV)

waiting = threading.Event()
def wait():
    waiting.set()
    time.sleep(60)

threading.Thread(target=wait, daemon=True).start()
waiting.wait()
name = '/srv/a "b", line 3 in \xe9\u20ac\U0001f600.py'
there = {}
exec(compile("def strange(called):\n    called(2)\n", name, "exec"), there)
there["strange"](application)
"""

NEWEST = r"""Fatal Python error: Segmentation fault

Thread 0x00007fd1 [pool \xe9 [1]] (most recent call first):
  Garbage-collecting
  File "/srv/app/views.py", line 12 in hang
  File "<frozen importlib._bootstrap>", line 241 in _call_with_frames_removed
  ...

Current thread 0x00007fd2 (most recent call first):
  <no Python frame>

Current thread's C stack trace (most recent call first):
  Binary file "/usr/lib/libpython3.14.so", at _Py_DumpStack+0x4e [0x7fa]
  <truncated rest of calls>

Extension modules: _ctypes, shmrec._native (total: 2)
"""


@pytest.fixture(scope="module")
def written() -> list[Dump]:
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", DUMPER], capture_output=True)
    assert done.returncode < 0
    return parse(done.stdout.decode("ascii"))


def functions(thread: ThreadStack) -> list[str]:
    return [frame.function for frame in thread.frames]


def test_what_the_real_one_writes(written: list[Dump]) -> None:
    every, alone, fatal = written
    assert [dump.odd for dump in written] == [[], [], []]
    assert not any(dump.cut for dump in written)
    assert (every.fatal, alone.fatal, fatal.fatal) == ("", "", "Segmentation fault")
    for dump in (every, fatal):
        assert len({thread.ident for thread in dump.threads}) == 2
        current = dump.current
        assert current is not None
        assert functions(current)[-5:] == [*["application"] * 3, "strange", "<module>"]
        assert current.frames[-2] == Frame(
            '/srv/a "b", line 3 in \xe9\u20ac\U0001f600.py', 2, "strange"
        )
        other = next(thread for thread in dump.threads if not thread.current)
        assert functions(other)[0] == "wait"
        assert functions(other)[-1] == "_bootstrap"
        assert [frame.library for frame in other.frames] == [False, *[True] * 3]
    assert [thread.ident for thread in alone.threads] == [0]


def test_names_garbage_and_c_stacks_as_the_newest_writes_them() -> None:
    (dump,) = parse(NEWEST)
    first, second = dump.threads
    assert (first.ident, first.name, first.current) == (0x7FD1, "pool \xe9 [1]", False)
    assert first.garbage_collecting
    assert first.cut
    assert first.innermost() == Frame("/srv/app/views.py", 12, "hang")
    assert (second.ident, second.current, second.frames) == (0x7FD2, True, [])
    assert (dump.odd, dump.odd_count) == ([], 0)


@pytest.mark.parametrize(
    ("file", "library"),
    [
        ("/srv/app/views.py", False),
        ("<string>", False),
        ("<stdin>", False),
        ("???", False),
        ("<frozen runpy>", True),
        ("/srv/.venv/lib/python3.12/site-packages/flask/app.py", True),
        ("/usr/lib/python3/dist-packages/six.py", True),
        ("/usr/lib/python3.11/threading.py", True),
        ("/usr/lib64/python3.13t/threading.py", True),
        ("/opt/python311.zip/threading.py", True),
        ("/home/me/lib/python/mine.py", False),
        ("/srv/.venv/bin/gunicorn", True),
        ("/srv/bin/mine.py", False),
    ],
)
def test_what_is_a_library(file: str, library: bool) -> None:
    assert Frame(file, 1, "f").library is library


def test_places() -> None:
    flask = "/srv/.venv/lib/python3.12/site-packages/flask/app.py"
    assert Frame(flask, 3, "f").place == "flask/app.py:3"
    assert Frame("/usr/lib/python3.11/threading.py", None, "f").place == "threading.py:?"
    assert Frame("/srv/app/views.py", 12, "f").place == "/srv/app/views.py:12"


def test_a_dump_may_be_cut_anywhere() -> None:
    whole = parse(NEWEST)[0]
    for end in range(1, len(NEWEST)):
        dumps = parse(NEWEST[:end])
        assert len(dumps) <= 1
        for dump in dumps:
            assert len(dump.threads) <= len(whole.threads)
            assert dump.cut or NEWEST[end - 1] == "\n"
            assert dump.odd_count <= 1
    (cut,) = parse(NEWEST[: NEWEST.index("hang") + 2])
    assert functions(cut.threads[0]) == ["ha"]


def test_dumps_after_one_another() -> None:
    one = 'Current thread 0x01 (most recent call first):\n  File "a.py", line ??? in f\n'
    other = f"Fatal Python error: Aborted\n\n{one}"
    assert [dump.fatal for dump in parse(one + one + other + one)] == ["", "", "Aborted", ""]
    assert parse(one)[0].threads[0].frames == [Frame("a.py", None, "f")]


def test_what_is_not_understood_is_kept_and_counted() -> None:
    text = "".join(f"what {n} is this?\n" for n in range(1000))
    (dump,) = parse(text + '  File "a.py", line 1 in f\n' + "  File nonsense\n")
    assert dump.odd[0] == "what 0 is this?"
    assert len(dump.odd) == 20
    assert dump.odd_count == 1001
    # A call without its thread's head is a call all the same.
    assert functions(dump.threads[0]) == ["f"]
    assert parse("") == parse("\n \n\0\0") == []


PIECES = st.sampled_from(
    [
        "Fatal Python error: Aborted\n",
        "Current thread 0x1f (most recent call first):\n",
        "Thread 0x2f [x] (most recent call first):\n",
        '  File "a", line 3 in f\n',
        '  File "a", line 99999999999999999999 in f\n',
        "  File ???, line ??? in ???\n",
        "  ...\n",
        "...\n",
        "  Garbage-collecting\n",
        "Current thread's C stack trace (most recent call first):\n",
        "\\xe9\\udc80\\Uffffffff",
        "\0",
    ]
)


@given(st.lists(st.one_of(PIECES, st.text()), max_size=40).map("".join))
def test_any_text_is_read(text: str) -> None:
    for dump in parse(text):
        assert len(dump.odd) <= 20
        assert dump.odd_count <= len(text)
        assert sum(len(thread.frames) for thread in dump.threads) <= text.count("\n") + 1


def test_what_is_kept_is_bounded() -> None:
    head = "Thread 0x{:x} (most recent call first):\n"
    call = '  File "a", line 3 in f\n'
    (deep,) = parse(head.format(1) + call * 20_000)
    assert len(deep.threads[0].frames) == 1024
    assert deep.threads[0].cut
    (wide,) = parse("".join(map(head.format, range(5000))))
    assert len(wide.threads) == 512
    assert wide.cut
    assert len(parse((head.format(1) + call) * 10_000)) == 16
    assert len(parse("x" * (1 << 22))[0].odd[0]) == 200
