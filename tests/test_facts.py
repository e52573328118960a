"""What is sampled of a process: rows, what is read seldom, and of whom never."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from shmrec import process
from shmrec.facts import RARELY, ROWS, Facts
from shmrec.manifest import FACTS, Producer
from shmrec.syscalls import named

from .conftest import wait_until

MIB = 1 << 20
GROWING = f"""
import os, sys, threading
print(flush=True)
for line in sys.stdin:
    held = bytearray(os.urandom(1)) * {64 * MIB}
    files = [open(os.devnull) for _ in range(20)]
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    print(flush=True)
"""


@pytest.fixture
def growing() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as made:
        assert made.stdout is not None
        made.stdout.readline()
        yield made
        made.kill()


def of(pid: int) -> Facts:
    return Facts(pid, process.start_ticks(pid))


def row(facts: Facts) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(FACTS, facts.rows[-1], strict=True)))


def test_rows_tell_what_a_process_uses(growing: subprocess.Popen[str]) -> None:
    assert growing.stdin is not None
    assert growing.stdout is not None
    facts = of(growing.pid)
    assert facts.sample(1)
    before = row(facts)
    growing.stdin.write("grow\n")
    growing.stdin.flush()
    growing.stdout.readline()
    assert facts.sample(2, closely=True)
    after = row(facts)
    assert (before.time_ns, after.time_ns) == (1, 2)
    assert 60 * MIB < after.rss - before.rss < 80 * MIB
    assert facts.peak_rss >= after.rss
    assert after.threads == before.threads + 1
    assert after.files == before.files + 20 == len(os.listdir(f"/proc/{growing.pid}/fd"))
    assert after.cpu_ns >= before.cpu_ns
    assert after.state in "RS"


def test_a_minute_of_rows_is_kept() -> None:
    facts = of(os.getpid())
    for n in range(ROWS + 5):
        assert facts.sample(n)
    assert [each[0] for each in facts.rows] == list(range(5, ROWS + 5))


def test_a_close_look_stands_until_the_next_row() -> None:
    facts = of(os.getpid())
    for n in range(ROWS):
        facts.sample(n)
    for n in range(ROWS, 3 * ROWS):
        assert facts.sample(n, closely=True)
    assert [each[0] for each in facts.rows] == [*range(ROWS), 3 * ROWS - 1]
    facts.sample(3 * ROWS)
    assert [each[0] for each in facts.rows] == [*range(1, ROWS), 3 * ROWS]


def test_the_highest_mark_is_the_kernels_where_no_sample_saw_it() -> None:
    held = bytearray(b"x") * (96 * MIB)
    del held
    facts = of(os.getpid())
    assert facts.sample(1)
    assert facts.peak_rss > row(facts).rss + 32 * MIB


def test_what_costs_more_is_read_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    # As before Linux 6.2, where the folder's size says nothing.
    lists: list[str] = []
    count = 10

    def listdir(path: str) -> list[str]:
        lists.append(path)
        return ["x"] * count

    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_size=0))
    monkeypatch.setattr(os, "listdir", listdir)
    facts = of(os.getpid())
    for n in range(2 * RARELY):
        assert facts.sample(n)
    files = [each[FACTS.index("files")] for each in facts.rows]
    assert len(lists) == 2
    assert files == [10 if n % RARELY == 0 else -1 for n in range(2 * RARELY)]
    count = 100_000
    for n in range(20 * RARELY):
        facts.sample(n)
    # A hundred thousand take a while: not again for some minutes.
    assert len(lists) == 3


def test_what_cannot_be_read_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: object) -> int:
        raise PermissionError(path)

    monkeypatch.setattr(os, "stat", refuse)
    facts = of(os.getpid())
    assert facts.sample(1)
    assert row(facts).files == -1


def test_another_process_of_the_same_pid_is_not_sampled() -> None:
    other = Facts(os.getpid(), process.start_ticks(os.getpid()) + 1)
    assert not other.sample(1)
    assert other.doing() == {}
    assert other.rows == []
    assert other.peak_rss == 0


def test_a_zombie_is_not_sampled_and_its_rows_stay(growing: subprocess.Popen[str]) -> None:
    facts = of(growing.pid)
    assert facts.sample(1)
    growing.kill()
    wait_until(lambda: process.stat(growing.pid).state == "Z")  # type: ignore[union-attr]
    assert not facts.sample(2)
    assert len(facts.rows) == 1
    growing.wait()
    assert not facts.sample(3)
    assert len(facts.rows) == 1


def test_what_a_process_waits_in(growing: subprocess.Popen[str]) -> None:
    facts = of(growing.pid)
    facts.sample(1)
    wait_until(lambda: process.stat(growing.pid).state == "S")  # type: ignore[union-attr]
    before = time.monotonic_ns()
    doing = facts.doing()
    if not doing:
        pytest.skip("this kernel, or user, may not look into processes")
    assert before <= doing["time_ns"] <= time.monotonic_ns()
    assert doing.get("syscall", "read") == "read"
    assert "pipe" in doing.get("wchan", "pipe")


def test_which_threads_run() -> None:
    """Of several: one that spins in C without the GIL, beside those that wait."""
    script = (
        "import hashlib, threading\n"
        "def spin():\n"
        "    print(threading.get_native_id(), flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)\n"
        "threading.Thread(target=spin, daemon=True).start()\n"
        "threading.Thread(target=input, daemon=True).start()\n"
        "threading.Event().wait()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as child:
        try:
            assert child.stdout is not None
            spinning = int(child.stdout.readline())
            facts = of(child.pid)
            facts.sample(1)
            if not facts.doing():
                pytest.skip("this kernel, or user, may not look into processes")
            wait_until(lambda: facts.doing().get("running") == [spinning])
        finally:
            child.kill()


def test_rows_are_what_a_snapshot_wants() -> None:
    facts = of(os.getpid())
    facts.sample(1)
    producer = Producer(facts=facts.rows)
    assert [len(each) for each in producer.facts] == [len(FACTS)]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("202 0x1 0x2 0x7ffd8cc2aee8 0x7f496ae062ad", "futex"),
        ("9999 0x1", "system call 9999"),
        ("running", "running"),
        ("-1 0x7ffd8cc2aee8 0x7f496ae062ad", ""),
        ("", ""),
        ("\u0661 0x1", ""),
        ("9" * 5000, "system call 999999999"),
    ],
)
def test_system_calls_have_names(line: str, name: str) -> None:
    assert named(line, {202: "futex"}) == name
