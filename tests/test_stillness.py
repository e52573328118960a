"""Which threads have not moved between two dumps of their stacks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shmrec.manifest import Stack
from shmrec.stack_text import Frame
from shmrec.stillness import find_stillness

WAITING = """\
Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/threading.py", line 327 in wait
  File "/usr/lib/threading.py", line 10 in run

"""
HANGING = """\
Current thread 0x00007f0000000002 (most recent call first):
  File "/app/views.py", line {line} in handler
  File "/app/wsgi.py", line 3 in application
"""


def stack(text: str, taken_ns: int, **fields: object) -> Stack:
    return Stack("asked", taken_ns, text, **fields)  # type: ignore[arg-type]


def moved(before: list[Stack], after: list[Stack]) -> dict[int, bool]:
    return {each.ident & 0xF: each.moved for each in find_stillness(before, after)}


def test_threads_are_compared_each_with_itself() -> None:
    then = stack(WAITING + HANGING.format(line=7), 1)
    assert moved([then], [stack(WAITING + HANGING.format(line=7), 2)]) == {1: False, 2: False}
    # The order in which they were written says nothing.
    later = stack(HANGING.format(line=8) + "\n" + WAITING, 2)
    assert moved([then], [later]) == {1: False, 2: True}
    found = find_stillness([then], [later])
    assert found[0].frames[0] == Frame("/app/views.py", 8, "handler")
    assert found[0].earlier[0] == Frame("/app/views.py", 7, "handler")
    assert len(found[1].frames) == 2


def test_names_behind_an_ident_and_other_lines() -> None:
    heading = "Fatal Python error: Segmentation fault\n\n"
    named = WAITING.replace("0001 (", "0001 [worker] (")
    text = heading + named + "Extension modules: a, b\n  File nobody's\n"
    found = find_stillness([stack(WAITING, 1)], [stack(text, 2)])
    assert [(each.ident & 0xF, each.moved, len(each.frames)) for each in found] == [(1, False, 2)]


def test_the_newest_of_each_is_meant() -> None:
    old, new = stack(HANGING.format(line=1), 1), stack(HANGING.format(line=2), 5)
    assert moved([new, old], [stack(HANGING.format(line=2), 9), old]) == {2: False}


def test_of_several_dumps_in_one_text_the_last_is_meant() -> None:
    then = stack(HANGING.format(line=1) + HANGING.format(line=2), 1)
    assert moved([then], [stack(HANGING.format(line=2), 2)]) == {2: False}
    assert moved([then], [stack(HANGING.format(line=1), 2)]) == {2: True}


def test_one_dump_in_both_says_nothing() -> None:
    same = stack(WAITING, 1)
    assert find_stillness([same], [same]) == []
    assert find_stillness([], [same]) == find_stillness([same], []) == []


def test_a_thread_that_took_anothers_ident_is_another() -> None:
    ident = 0x7F0000000001
    then, now = stack(WAITING, 1, idents={ident: 11}), stack(WAITING, 2, idents={ident: 12})
    assert find_stillness([then], [now]) == []
    (found,) = find_stillness([now], [stack(WAITING, 3, idents={ident: 12})])
    assert found.thread == 12


def test_a_thread_whose_frames_were_cut_off_is_left_out() -> None:
    text = WAITING + HANGING.format(line=7)
    assert moved([stack(text, 1)], [stack(text, 2, cut=True)]) == {1: False}


@given(st.lists(st.sampled_from([*WAITING.splitlines(keepends=True), "Thread 0x", "  ", "x"])))
def test_whatever_the_text_is(parts: list[str]) -> None:
    text = "".join(parts)
    assert not any(each.moved for each in find_stillness([stack(text, 1)], [stack(text, 2)]))
