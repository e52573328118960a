"""``shmrec-dump stacks``: every stack there is, and why there is none of the others."""

from __future__ import annotations

import re
from pathlib import Path

from shmrec.layout import StackFlag
from shmrec.manifest import Cause

from .dumping import dump, dump_json, on_terminal, write_file
from .findings import SECOND, TAKEN, crash_stack, died, header, inside, producer


def a_file(path: Path) -> Path:
    text = crash_stack().text.split("\n\n", 1)[1]
    asked = crash_stack(
        kind="asked", text=text + text, taken_ns=TAKEN - 2 * SECOND, cut=True, note="for a test"
    )
    killed = died(2, cause=Cause("signal 9 (SIGKILL)", "host", signal=9))
    producers = [
        (died(0, stacks=[crash_stack()]), inside(("request", 4, {"path": "/x"}))),
        (producer(1, stacks=[asked]), inside(("request", 3, {"path": "/y"}))),
        (killed, []),
        (producer(3, stack_flags=StackFlag.ASKED), []),
        (producer(4), []),
        (producer(5), []),
    ]
    return write_file(path / "x.shmrec", header(), producers)


def test_colours_are_for_a_terminal(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    piped = dump("stacks", file).stdout
    assert "\x1b" not in piped
    coloured = on_terminal("stacks", file, "--no-pager", columns=200)
    assert re.search(r"\x1b\[[\d;]*mSegmentation fault", coloured)
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured).replace("\r\n", "\n")
    assert plain.splitlines() == piped.splitlines()
    shown = on_terminal("stacks", file, "--no-pager", columns=200, env={"NO_COLOR": "1"})
    assert "\x1b" not in shown


def test_all_stacks_by_process_and_thread(tmp_path: Path) -> None:
    shown = dump("stacks", a_file(tmp_path)).stdout
    first, second, without = shown.split("\n\n")
    assert first.splitlines() == [
        "pid 100 (w 0), dead: written at a fatal signal",
        "  Segmentation fault",
        "  MainThread (thread 4242) (current)",
        "    request  for 4.0 s  path=/x",
        "      string_at         ctypes/__init__.py:519",
        "    > crash             /srv/app/views.py:12",
        "      dispatch_request  flask/app.py:880",
        "  thread 4243",
        "      wait  threading.py:320",
        "    > idle  /srv/app/pool.py:7",
    ]
    lines = second.splitlines()
    assert lines[0] == "pid 101 (w 1), running: written when asked, 2.0 s before the snapshot"
    assert [line for line in lines if line.startswith("  dump ")] == [
        "  dump 1 of 2",
        "  dump 2 of 2",
    ]
    # The spans are those of the end: beside the newest dump only.
    assert second.count("path=/y") == 1
    assert lines.index("  dump 2 of 2") < next(n for n, at in enumerate(lines) if "/y" in at)
    assert lines[-2:] == ["  cut off: threads or calls are missing", "  for a test"]
    assert without.splitlines() == [
        "no stack: nothing can be written at SIGKILL, and it was not asked for before: "
        "pid 102 (w 2)",
        "no stack: it was not asked for one: pid 103 (w 3)",
        "no stack: it is not set up to give its stacks when asked: pid 104 (w 4), pid 105 (w 5)",
    ]


def test_of_some_processes(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    done = dump("stacks", file, "--pid", "101", "--pid", "7")
    assert done.stdout.startswith("pid 101 (w 1)")
    assert "pid 100" not in done.stdout
    assert done.stderr == "shmrec-dump: no process 7 is in x.shmrec\n"
    assert dump("stacks", file, "--pid", "103").stdout.splitlines() == [
        "There are no stacks in this snapshot.",
        "  no stack: it was not asked for one: pid 103 (w 3)",
    ]
    assert dump("stacks", file, "--pid", "7").stdout == "No process.\n"


def test_what_is_no_stack(tmp_path: Path) -> None:
    odd = producer(stacks=[crash_stack(text="nonsense\n")])
    file = write_file(tmp_path / "y.shmrec", header(), [(odd, [])])
    assert dump("stacks", file).stdout.splitlines()[1:] == [
        "  it could not be read",
        "  not understood: nonsense",
    ]


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    whole = a_file(tmp_path)
    shown = dump("stacks", whole).stdout
    cut = tmp_path / "cut.shmrec"
    # Its end: no stack is missing, but nobody can know.
    cut.write_bytes(whole.read_bytes()[:-9])
    done = dump("stacks", cut, check=1)
    assert done.stdout == shown
    assert done.stderr.startswith("shmrec-dump: cut.shmrec is damaged, stacks may be missing: ")
    assert done.stderr.count("\n") == 1
    assert dump("stacks", cut, "--pid", "100", check=1).stdout.startswith("pid 100 (w 0), dead")
    assert dump_json("stacks", cut, check=1)["damage"]
    assert dump_json("stacks", whole)["damage"] == []
    # And with those that are.
    cut.write_bytes(whole.read_bytes()[: len(whole.read_bytes()) // 2])
    done = dump("stacks", cut, check=1)
    assert done.stdout != shown
    assert "stacks may be missing" in done.stderr


def test_the_json_of_stacks(tmp_path: Path) -> None:
    found = dump_json("stacks", a_file(tmp_path), "--pid", "101")
    (only,) = found["producers"]
    assert (only["pid"], only["state"], only["missing"]) == (101, "running", "")
    assert only["open_spans"][0]["args"] == {"path": "/y"}
    (stack,) = only["stacks"]
    assert stack["text"].startswith("Thread 0x")
    assert stack["cut"]
    assert len(stack["dumps"]) == 2
    frame = stack["dumps"][0]["threads"][1]["frames"][1]
    assert frame == {
        "file": "/srv/app/views.py",
        "line": 12,
        "function": "crash",
        "library": False,
    }
