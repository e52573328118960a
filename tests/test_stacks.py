"""Stacks that faulthandler leaves in shared memory: real processes, dying or asked by signal."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shmrec import guarded, layout, process, segment
from shmrec.entry import Entry
from shmrec.extension import EXTENSION
from shmrec.layout import ENTRY, STACK, Geometry, StackFlag
from shmrec.manifest import Stack
from shmrec.ring import readers
from shmrec.segment import Segment
from shmrec.stack_area import POLITE_SECONDS, Asking, fatal_stack, take_stacks
from shmrec.stacks import polite_signal, stack_signal

from .arena import Arena
from .conftest import Script, end_recording, wait_until

WHEN_ASKED = StackFlag.ASKED | StackFlag.POLITE
ALL = WHEN_ASKED | StackFlag.FATAL
JOIN = """
import faulthandler, os, re, signal, sys, threading, time
import shmrec
def join():
    return shmrec.attach(label="dumped", required=True)
def say(*what):
    # At once, and in a signal handler that comes in the middle of another one too.
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())
"""
STAY = "\nsay('in')\nsys.stdin.readline()\n"

Start = Callable[..., Script]


@pytest.fixture
def memory(recording_name: str) -> Iterator[Segment]:
    made = segment.create(
        recording_name, Geometry.of(0, 4), keep_size=1 << 20, keep_period_ns=10**10
    )
    with made:
        yield made


@pytest.fixture
def start(script: Callable[..., Script], memory: Segment) -> Start:
    """A program that may `join` the recording; what it is not told by `env` is the default."""

    def run(source: str, **env: str) -> Script:
        clean = {"SHMREC_RECORDING": memory.name, "PYTHONFAULTHANDLER": "", "SHMREC_SIGNAL": ""}
        return script(JOIN + source, env={**clean, **env})

    return run


def entry_of(memory: Segment, pid: int) -> Entry:
    everybody = [reader.entry() for reader in readers(memory)]
    entries = [entry for entry in everybody if entry.pid == pid]
    return max(entries, key=lambda entry: entry.attached_ns)


def asked(memory: Segment, pid: int, **options: Any) -> list[Stack]:
    (found,) = take_stacks(memory, [Asking(entry_of(memory, pid), -1)], **options).values()
    return found


def ask(memory: Segment, pid: int) -> Stack:
    (found,) = asked(memory, pid, deadline_seconds=20.0)
    return found


def area(memory: Segment, index: int) -> bytes:
    at = memory.geometry.stack(index)
    return bytes(memory.view[at : at + layout.STACK_SIZE])


# When asked.


def test_a_process_that_holds_the_gil_leaves_the_stacks_of_all_its_threads(
    memory: Segment, start: Start
) -> None:
    held = """
join()
def beside():
    with shmrec.span("beside"):
        say("in")
        time.sleep(60)
threading.Thread(target=beside, daemon=True).start()
sys.stdin.readline()
def stuck():
    say("stuck")
    re.match(r"(a+)+$", "a" * 60 + "b")
stuck()
"""
    held_one = start(held)
    assert held_one.line() == "in"
    held_one.say()
    assert held_one.line() == "stuck"
    # It says so before it is.
    wait_until(lambda: "in match" in ask(memory, held_one.pid).text)
    stack = ask(memory, held_one.pid)
    assert (stack.kind, stack.cut, stack.note) == ("asked", False, "")
    assert " in stuck\n" in stack.text
    assert " in beside\n" in stack.text
    # Idents lead to the threads that events are of.
    idents = {int(text, 16) for text in re.findall(r"hread (0x[0-9a-f]+)", stack.text)}
    assert idents == stack.idents.keys()
    assert set(stack.idents.values()) == set(process.tasks(held_one.pid))
    main = [each for each, thread in stack.idents.items() if thread == held_one.pid]
    assert stack.text.rindex(f"{main[0]:x}") < stack.text.index(" in stuck\n")


def test_the_next_stack_starts_anew_once_the_process_has_recorded(
    memory: Segment, start: Start
) -> None:
    # All on one line, and in no other function, so that every stack is the same.
    steady = start(
        "join()\ndef waiting():\n    while os.write(1, b'in\\n') and sys.stdin.readline():"
        " shmrec.instant('turn')\nwaiting()\n"
    )
    steady.line()
    first = ask(memory, steady.pid).text
    assert " in waiting\n" in first
    room = layout.STACK_SIZE // len(first)
    for _ in range(room + 2):
        # A new generation, so that it opens a batch.
        memory.bump("generation")
        steady.say()
        steady.line()
        stack = ask(memory, steady.pid)
        assert (stack.text, stack.cut) == (first, False)
    # Without a sign of life it goes on behind the last one, until there is no room.
    stacks = [ask(memory, steady.pid) for _ in range(room + 1)]
    assert [stack.text for stack in stacks[:3]] == [first] * 3
    assert stacks[-1].text == ""
    assert "no room was left" in stacks[-1].note
    assert any(stack.cut for stack in stacks)
    memory.bump("generation")
    steady.say()
    steady.line()
    assert ask(memory, steady.pid).text == first


def test_a_dump_that_is_too_long_is_cut_and_touches_nothing_else(
    memory: Segment, start: Start
) -> None:
    long = """
recorder = join()
name = "f" * 400
scope = {"say": say, "sys": sys}
exec(f"def {name}(n):\\n    {name}(n - 1) if n else (say('in'), sys.stdin.readline())", scope)
say("joined")
sys.stdin.readline()
threading.Thread(target=scope[name], args=(90,)).start()
"""
    deep, neighbours = start(long), [start("join()" + STAY) for _ in range(2)]
    for each in (deep, *neighbours):
        each.line()
    others = [n for n in range(4) if n != entry_of(memory, deep.pid).index]
    before = [area(memory, n) for n in others], memory.field("name")
    deep.say()
    deep.line()
    stack = ask(memory, deep.pid)
    room = STACK.bytes_at("asked")
    assert stack.cut
    assert len(stack.text) == room.stop - room.start
    assert ([area(memory, n) for n in others], memory.field("name")) == before
    # The parts are each other's neighbours too.
    assert fatal_stack(memory, entry_of(memory, deep.pid)) is None
    deep.kill(signal.SIGSEGV)
    assert deep.wait() == -signal.SIGSEGV
    fatal = fatal_stack(memory, entry_of(memory, deep.pid))
    assert fatal is not None
    assert fatal.cut
    assert fatal.text.startswith("Fatal Python error: Segmentation fault\n")
    assert len(fatal.text) == STACK["asked"] - STACK["fatal"]
    assert area(memory, entry_of(memory, deep.pid).index)[STACK["asked"] :].strip(b"\0") == b""


def test_who_cannot_answer_is_not_asked_and_why_is_said(memory: Segment, start: Start) -> None:
    plain = start("join()" + STAY)
    plain.line()
    at = memory.geometry.entry(entry_of(memory, plain.pid).index)
    plain.kill(signal.SIGSTOP)
    wait_until(lambda: process.stat(plain.pid).state == "T")  # type: ignore[union-attr]
    assert asked(memory, plain.pid)[0].note == "it is stopped"
    plain.kill(signal.SIGCONT)
    wait_until(lambda: process.stat(plain.pid).state != "T")  # type: ignore[union-attr]
    word = ENTRY.word("stack_signal", at)
    for number, why in (
        (signal.SIGKILL, "signal 9, which is no real-time signal"),
        (signal.SIGRTMAX + 1, "no real-time signal"),
        (signal.SIGRTMAX, "does not listen to signal 64 any more"),
    ):
        memory.words[word] = number
        assert why in asked(memory, plain.pid)[0].note
    memory.words[word] = stack_signal()
    memory.words[ENTRY.word("start_ticks", at)] += 1
    assert asked(memory, plain.pid)[0].note == "it has ended"
    memory.words[ENTRY.word("start_ticks", at)] -= 1
    memory.words[ENTRY.word("stacks", at)] = 0
    assert asked(memory, plain.pid)[0].note == "it leaves none when asked"
    memory.words[ENTRY.word("stacks", at)] = ALL
    assert ask(memory, plain.pid).text
    plain.say()
    assert plain.wait() == 0


def test_a_process_that_keeps_the_signal_blocked_is_given_up(memory: Segment, start: Start) -> None:
    blocks = "join()\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    deaf = start(
        blocks + STAY + "signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())" + STAY
    )
    deaf.line()
    for seconds in (0.05, 2 * POLITE_SECONDS):
        (stack,) = asked(memory, deaf.pid, deadline_seconds=seconds)
        assert (stack.text, stack.note) == ("", "it did not answer in time")
    deaf.say()
    deaf.line()
    # Its answer came after all; it is not taken for the next one.
    late, stack = asked(memory, deaf.pid, deadline_seconds=20.0)
    assert "earlier request" in late.note
    assert late.text
    assert stack.text
    assert stack.note == ""


def test_a_collector_that_is_told_to_stop_wants_no_answer_any_more(
    memory: Segment, start: Start
) -> None:
    deaf = start("join()\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))" + STAY)
    deaf.line()
    wanted = ENTRY.word("stack_wanted", memory.geometry.entry(entry_of(memory, deaf.pid).index))
    assert (
        asked(memory, deaf.pid, deadline_seconds=20.0, stop=lambda: memory.words[wanted] != 0) == []
    )
    assert memory.words[wanted] == 0


def test_a_process_that_can_is_asked_politely(memory: Segment, start: Start) -> None:
    # While its handler writes, with the GIL, the busy threads stand still.
    busy = start(
        "join()\ndef beside():\n    while True: pass\n"
        "for _ in range(3): threading.Thread(target=beside, daemon=True).start()\n"
        "def waiting():\n    say('in')\n    sys.stdin.readline()\nwaiting()" + STAY
    )
    busy.line()
    at = memory.geometry.entry(entry_of(memory, busy.pid).index)
    answered = ENTRY.word("stack_answered", at)
    for _ in range(20):
        before = memory.words[answered]
        stack = ask(memory, busy.pid)
        if memory.words[answered] == before:
            continue  # On a loaded machine it may not have come to it in time.
        newest = stack.text.partition("Current thread ")[2].splitlines()[1]
        assert newest.endswith((" in waiting", " in say"))
        assert stack.text.count(" in beside\n") == 3
        assert memory.words[ENTRY.word("stack_wanted", at)] == 0
        break
    else:
        pytest.fail("it never answered")
    assert "_leave_stacks" not in stack.text
    # One that comes late is not wanted any more.
    memory.bump("generation")
    busy.kill(polite_signal(stack_signal()))
    busy.say()
    busy.line()
    assert area(memory, entry_of(memory, busy.pid).index)[STACK["asked"] :].strip(b"\0") == b""


def test_a_polite_request_is_answered_once(memory: Segment, start: Start) -> None:
    # The main thread may come to an earlier signal when it has just been asked again.
    plain = start("join()" + 3 * STAY)
    plain.line()
    entry = entry_of(memory, plain.pid)
    at = memory.geometry.entry(entry.index)
    memory.words[ENTRY.word("stack_wanted", at)] = 7
    for _ in range(2):
        plain.kill(polite_signal(stack_signal()))
        plain.say()
        plain.line()
        assert memory.words[ENTRY.word("stack_answered", at)] == 7
    assert area(memory, entry.index)[STACK["asked"] :].count(b"Current thread ") == 1


def test_one_that_was_too_slow_for_politeness_answers_once(memory: Segment, start: Start) -> None:
    slow = start(
        "from shmrec import stacks\n"
        "real = stacks._descriptors.ours\n"
        "def held(name):\n    stacks._descriptors.ours = real\n    say('held')\n    os.read(0, 1)\n"
        "    return real(name)\n"
        "join()\nstacks._descriptors.ours = held\nsay('in')\nos.read(0, 1)"
    )
    slow.line()
    assert ask(memory, slow.pid).text
    assert slow.line() == "held"
    slow.say()
    slow.say()
    assert slow.wait() == 0
    assert area(memory, entry_of(memory, slow.pid).index)[STACK["asked"] :].strip(b"\0") == b""


def test_after_a_polite_request_it_is_looked_at_anew(memory: Segment, start: Start) -> None:
    # While it was given time it became one that must not be sent the other signal.
    changed = start(
        "join()\ndef closes(*_):\n    os.closerange(3, 1024)\n"
        f"signal.signal({polite_signal(stack_signal())}, closes)" + STAY
    )
    changed.line()
    assert "closed the descriptor" in ask(memory, changed.pid).note


@pytest.mark.parametrize("raised", ["MemoryError", "TypeError"])
def test_the_polite_handler_raises_nothing(memory: Segment, start: Start, raised: str) -> None:
    plain = start(
        "from shmrec import stacks\n"
        "real = stacks._descriptors.ours\n"
        "def fails(name):\n    stacks._descriptors.ours = real\n    say('failed')\n"
        f"    raise {raised}\n"
        "join()\nstacks._descriptors.ours = fails" + STAY
    )
    plain.line()
    assert ask(memory, plain.pid).text
    assert plain.line() == "failed"
    plain.say()
    assert plain.wait() == 0


def test_the_polite_handler_raises_nothing_at_the_end_of_the_stack(start: Start) -> None:
    # Python itself cannot call a handler where there is room for no call at all.
    deep = start(
        "import _thread\njoin()\n"
        f"send, me, number = os.kill, os.getpid(), {polite_signal(stack_signal())}\n"
        "def deeper(n):\n    if n: return deeper(n - 1)\n    send(me, number)\n"
        "def fits(n):\n"
        "    try: deeper(n)\n    except RecursionError: return False\n    return True\n"
        "sent, send = send, lambda *_: None\n"
        "n = next(n for n in range(2000, 0, -1) if fits(n))\n"
        "send = sent\nsay([n - k for k in range(10) if not fits(n - k)])"
    )
    assert deep.line() == "[]"


def test_it_is_written_by_the_thread_that_runs(memory: Segment, start: Start) -> None:
    # Any other would read what that one is changing.
    busy = start(
        # The application has the polite signal.
        f"signal.signal({polite_signal(stack_signal())}, lambda *_: None)\n"
        "join()\ndef beside():\n    say('in')\n    while True: pass\n"
        "threading.Thread(target=beside, daemon=True).start()\nsys.stdin.readline()"
    )
    busy.line()
    wait_until(lambda: not process.running(busy.pid, busy.pid))

    def current() -> str:
        stack = ask(memory, busy.pid)
        assert (stack.cut, stack.note) == (False, "")
        return stack.text.partition("Current thread ")[2].partition("\n\n")[0]

    # On a loaded machine it may not be seen running at once.
    wait_until(lambda: " in beside\n" in current())


def test_threads_that_never_take_signals_do_not_hold_it_up(memory: Segment, start: Start) -> None:
    plain = start(
        "join()\ndef deaf():\n    signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))\n"
        "    say('deaf')\n    time.sleep(60)\n"
        "threading.Thread(target=deaf, daemon=True).start()" + STAY
    )
    assert {plain.line(), plain.line()} == {"in", "deaf"}
    stack = ask(memory, plain.pid)
    assert " in deaf\n" in stack.text
    assert not stack.cut


@pytest.mark.parametrize("setting", ["0", "x", "9"])
def test_they_can_be_switched_off(memory: Segment, start: Start, setting: str) -> None:
    without = start("join()\nsay(faulthandler.is_enabled())" + STAY, SHMREC_SIGNAL=setting)
    assert [without.line(), without.line()] == ["False", "in"]
    assert entry_of(memory, without.pid).stacks == 0


def test_a_signal_that_is_taken_stays_whose_it_is(memory: Segment, start: Start) -> None:
    other = start(
        f"signal.signal({signal.SIGRTMIN}, lambda *_: say('mine'))\njoin()" + STAY,
        SHMREC_SIGNAL=str(int(signal.SIGRTMIN)),
    )
    other.line()
    assert entry_of(memory, other.pid).stacks == StackFlag.FATAL
    assert asked(memory, other.pid)[0].text == ""
    other.kill(signal.SIGRTMIN)
    assert other.line() == "mine"


def test_signals_that_are_ignored_are_nobodys(memory: Segment, start: Start) -> None:
    numbers = stack_signal(), polite_signal(stack_signal())
    heir = start(f"for n in {numbers}: signal.signal(n, signal.SIG_IGN)\njoin()" + STAY)
    heir.line()
    assert entry_of(memory, heir.pid).stacks == ALL
    assert ask(memory, heir.pid).text


@pytest.mark.parametrize("where", ["", "from_thread"])
def test_a_signal_that_comes_too_late_ends_nobody(
    memory: Segment, start: Start, where: str
) -> None:
    # The default action of a real-time signal would.
    left = start(
        "def from_thread():\n    other = threading.Thread(target=join)\n"
        "    other.start()\n    other.join()\n"
        f"{where or 'join'}()\nshmrec.detach()\nsay('out')\nsys.stdin.readline()\n"
        "join()" + STAY
    )
    left.line()
    left.kill(stack_signal())
    left.say()
    assert left.line() == "in"
    # It was ignored meanwhile, which is no reason not to listen again.
    assert ask(memory, left.pid).text
    left.say()
    assert left.wait() == 0


def test_whoever_has_closed_the_descriptor_is_not_asked(memory: Segment, start: Start) -> None:
    with tempfile.NamedTemporaryFile() as own:
        closed = start(
            "join()\n"
            "mine = [int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) >= 200]\n"
            f"for fd in mine: os.dup2(os.open({own.name!r}, os.O_WRONLY), fd)\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    shmrec.instant('first')\n    say(os.getpid())\n    sys.stdin.readline()\n"
            "    say(*{os.readlink(f'/proc/self/fd/{fd}') for fd in mine})\n"
            "    os._exit(0)\n"
            "os.waitpid(child, 0)" + STAY
        )
        child = int(closed.line())
        # One that forked since leads nothing of the application's elsewhere.
        assert ask(memory, child).text
        closed.say()
        assert closed.line() == own.name
        closed.line()
        assert "closed the descriptor" in asked(memory, closed.pid)[0].note
        assert own.read() == b""


def test_the_word_of_a_segment_sends_no_signal_to_a_stranger(memory: Segment, start: Start) -> None:
    plain = start("join()" + STAY)
    stranger = start(f"signal.signal({stack_signal()}, lambda *_: say('asked'))" + STAY)
    plain.line()
    stranger.line()
    entry = entry_of(memory, plain.pid)
    at = memory.geometry.entry(entry.index)
    memory.words[ENTRY.word("pid", at)] = stranger.pid
    memory.words[ENTRY.word("start_ticks", at)] = process.start_ticks(stranger.pid)
    (stack,) = asked(memory, stranger.pid)
    assert stack.text == ""
    assert "closed the descriptor" in stack.note
    stranger.say()
    assert stranger.wait() == 0
    assert stranger.process.stdout is not None
    assert stranger.process.stdout.read() == ""


@pytest.mark.parametrize(
    ("rights", "user", "expected"),
    [(1000, 1000, True), (0, 1000, True), (0, 0, False), (0, None, False)],
)
def test_where_root_may_not_look_it_asks_none_of_roots(
    memory: Segment,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    rights: int,
    user: int | None,
    expected: bool,
) -> None:
    plain = start("join()" + STAY)
    plain.line()

    def refuse(path: str) -> str:
        raise PermissionError(path)

    monkeypatch.setattr("shmrec.process.os.readlink", refuse)
    assert process.writes_own_memory(plain.pid) is None
    monkeypatch.setattr(process, "user", lambda _: user)
    monkeypatch.setattr("shmrec.stack_area.os.geteuid", lambda: rights)
    assert bool(ask(memory, plain.pid).text) is expected


def test_one_that_has_not_taken_the_signal_is_not_sent_another(
    memory: Segment, start: Start
) -> None:
    deaf = start(
        "join()\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
        + STAY
        + "signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())"
        + STAY
    )
    deaf.line()
    for _ in range(3):
        (stack,) = asked(memory, deaf.pid, deadline_seconds=0.02)
        assert stack.note == "it did not answer in time"
    deaf.say()
    deaf.line()
    late, _ = asked(memory, deaf.pid, deadline_seconds=20.0)
    assert late.text.count(" in <module>\n") == 1


def test_no_more_time_is_taken_than_there_is(
    memory: Segment, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = start("join()" + STAY)
    plain.line()
    entry = replace(entry_of(memory, plain.pid), stacks=StackFlag.ASKED)
    real, looks = process.tasks, []

    def slow(pid: int) -> list[int]:
        looks.append(pid)
        wait_until(lambda: time.monotonic() > begun + 0.05 * len(looks))
        return real(pid)

    monkeypatch.setattr(process, "tasks", slow)
    begun = time.monotonic()
    wanted = [Asking(replace(entry, incarnation=number), -1) for number in range(40)]
    found = take_stacks(memory, wanted, deadline_seconds=0.1)
    assert len(looks) < 8
    assert [stack.note for stack in found[entry.index, 39]] == [
        "the others took all the time that there was"
    ]


# At a fatal signal.


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE])
def test_a_fatal_signal_leaves_a_stack_and_ends_the_process_as_ever(
    memory: Segment, start: Start, number: int
) -> None:
    dying = start("join()\ndef victim():\n    say('in')\n    sys.stdin.readline()\nvictim()")
    dying.line()
    assert entry_of(memory, dying.pid).stacks == ALL
    dying.kill(number)
    assert dying.wait() == -number
    stack = fatal_stack(memory, entry_of(memory, dying.pid))
    assert stack is not None
    assert stack.text.startswith("Fatal Python error: ")
    assert " in victim\n" in stack.text
    assert not stack.cut


def test_an_application_that_has_faulthandler_keeps_it(memory: Segment, start: Start) -> None:
    with tempfile.TemporaryFile("w+") as own:
        theirs = f"os.open('/proc/{os.getpid()}/fd/{own.fileno()}', os.O_WRONLY)"
        before = start(f"faulthandler.enable({theirs})\njoin()" + STAY)
        before.line()
        assert entry_of(memory, before.pid).stacks == WHEN_ASKED | StackFlag.APPLICATION
        before.kill(signal.SIGSEGV)
        before.wait()
        own.seek(0)
        assert own.read().startswith("Fatal Python error")
    assert fatal_stack(memory, entry_of(memory, before.pid)) is None


def test_an_application_that_takes_it_later_gets_it(memory: Segment, start: Start) -> None:
    with tempfile.TemporaryFile("w+") as own:
        theirs = f"os.open('/proc/{os.getpid()}/fd/{own.fileno()}', os.O_WRONLY)"
        later = start(
            f"recorder = join()\nfaulthandler.enable(file={theirs})\nsay('in')\n"
            "sys.stdin.readline()\nshmrec.detach()\nsay(faulthandler.is_enabled())" + STAY
        )
        later.line()
        assert entry_of(memory, later.pid).stacks == WHEN_ASKED | StackFlag.APPLICATION
        later.say()
        # It is not ours to disable either.
        assert [later.line(), later.line()] == ["True", "in"]
        later.kill(signal.SIGSEGV)
        later.wait()
        own.seek(0)
        assert own.read().startswith("Fatal Python error")


@pytest.mark.parametrize("call", ["enable(own)", "disable()"])
def test_what_it_imported_before_us_counts_too(memory: Segment, start: Start, call: str) -> None:
    kept = start(
        "from faulthandler import disable, enable\nown = open(os.devnull, 'w')\njoin()\n"
        f"{call}\nsay('in')\nsys.stdin.readline()\nshmrec.detach()\n"
        "say(faulthandler.is_enabled())" + STAY
    )
    kept.line()
    theirs = call.startswith("enable")
    expected = WHEN_ASKED | (StackFlag.APPLICATION if theirs else 0)
    assert entry_of(memory, kept.pid).stacks == expected
    kept.say()
    assert kept.line() == str(theirs)


def test_a_handler_that_was_installed_since_outlives_the_detaching(start: Start) -> None:
    own = start(
        "join()\nsignal.signal(signal.SIGABRT, lambda *_: say('mine'))\n"
        "shmrec.detach()\nos.kill(os.getpid(), signal.SIGABRT)" + STAY
    )
    assert own.line() == "mine"


def test_whose_recording_was_closed_leaves_them_in_the_next(memory: Segment, start: Start) -> None:
    again = start(
        "join()\nsay('in')\nsys.stdin.readline()\nshmrec.instant('late')\nshmrec.detach()\n"
        "say([each for each in open('/proc/self/maps') if 'shmrec.' in each],"
        " [fd for fd in os.listdir('/proc/self/fd') if int(fd) >= 200])\n"
        "sys.stdin.readline()\njoin()" + STAY
    )
    again.line()
    memory.set_word("state", layout.SegmentState.CLOSED)
    memory.bump("generation")
    again.say()
    assert again.line() == "[] []"
    memory.set_word("state", layout.SegmentState.OPEN)
    again.say()
    again.line()
    assert entry_of(memory, again.pid).stacks == ALL
    assert ask(memory, again.pid).text


def test_threads_that_have_spoken_before_are_known_again(memory: Segment, start: Start) -> None:
    again = start(
        "join()\ndef beside():\n    shmrec.instant('here')\n    say('in')\n    time.sleep(60)\n"
        "threading.Thread(target=beside, daemon=True).start()\nsys.stdin.readline()\n"
        "shmrec.detach()\njoin()" + STAY
    )
    again.line()
    again.say()
    again.line()
    stack = ask(memory, again.pid)
    assert set(stack.idents.values()) == set(process.tasks(again.pid))


def test_where_memory_cannot_be_written_no_stacks_are_promised(
    memory: Segment, start: Start
) -> None:
    sandboxed = start(
        "def refuse(*_):\n    raise PermissionError\nos.pwrite = refuse\njoin()\n"
        "say(faulthandler.is_enabled())" + STAY
    )
    assert [sandboxed.line(), sandboxed.line()] == ["False", "in"]
    assert entry_of(memory, sandboxed.pid).stacks == 0


def test_an_area_that_cannot_be_had_leaves_nothing_behind(memory: Segment, start: Start) -> None:
    # The second part's descriptor is one too many.
    poor = start(
        "from shmrec import stacks\n"
        "real, calls = stacks.map_guarded, []\n"
        "def fails(*args):\n    calls.append(args)\n"
        "    if len(calls) % 2 == 0: raise OSError('no')\n    return real(*args)\n"
        "stacks.map_guarded = fails\njoin()\n"
        "say(len(calls), len([each for each in open('/proc/self/maps') if 'shmrec.' in each]),"
        " [fd for fd in os.listdir('/proc/self/fd') if int(fd) >= 200],"
        " faulthandler.is_enabled())" + STAY
    )
    assert poor.line() == "2 1 [] False"
    poor.line()
    assert entry_of(memory, poor.pid).stacks == 0


def test_after_detaching_nothing_is_left_behind(memory: Segment, start: Start) -> None:
    left = start(
        "count = lambda: len(os.listdir('/proc/self/fd'))\nrecorder = join()\nwith_it = count()\n"
        "recorder.detach()\nsay(faulthandler.is_enabled(), with_it - count())\n"
        "kept = [each for each in open('/proc/self/maps') if 'shmrec.' in each]\n"
        "recorder = join()\nsay(faulthandler.is_enabled(), with_it - count(), len(kept))" + STAY
    )
    # The segment's, that of its mapping, and those of the two parts.
    assert left.line() == "False 4"
    assert left.line() == "True 0 0"
    left.line()
    assert entry_of(memory, left.pid).stacks == ALL
    assert ask(memory, left.pid).text


def test_the_hosts_handler_of_sigabrt_comes_after_the_stacks(memory: Segment, start: Start) -> None:
    host = start(
        "from shmrec import stacks\njoin()\n"
        "signal.signal(signal.SIGABRT, lambda *_: (say('handled'), sys.exit(1)))\n"
        "stacks.renew()" + STAY
    )
    host.line()
    host.kill(signal.SIGABRT)
    assert host.line() == "handled"
    assert host.wait() == 1
    stack = fatal_stack(memory, entry_of(memory, host.pid))
    # In order, after its detaching.
    assert stack is None or "Aborted" in stack.text
    assert b"Fatal Python error: Aborted" in area(memory, entry_of(memory, host.pid).index)


# Forks.


def test_a_forked_child_writes_nothing_into_its_parents_area(memory: Segment, start: Start) -> None:
    parent = start(
        "join()\nchild = os.fork()\n"
        "if not child:\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "say(os.waitpid(child, 0)[1] & 0x7F)\n"
        "child = os.fork()\n"
        "if not child:\n    shmrec.instant('first')\n    say(os.getpid())\n    time.sleep(60)\n"
        "sys.stdin.readline()\nos.kill(child, signal.SIGSEGV)\n"
        "say(os.waitpid(child, 0)[1] & 0x7F)" + STAY
    )
    assert parent.line() == "11"
    child = int(parent.line())
    assert fatal_stack(memory, entry_of(memory, parent.pid)) is None
    wait_until(lambda: entry_of(memory, child).stacks == ALL)
    assert ask(memory, child).text
    assert ask(memory, parent.pid).text
    parent.say()
    assert parent.line() == "11"
    assert fatal_stack(memory, entry_of(memory, parent.pid)) is None
    assert fatal_stack(memory, entry_of(memory, child)) is not None


@pytest.mark.skipif(EXTENSION is None, reason="there is no extension")
def test_nor_does_one_that_c_code_forked(memory: Segment, start: Start) -> None:
    parent = start(
        "import ctypes\njoin()\nfork = ctypes.PyDLL(None).fork\n"
        "child = fork()\n"
        "if not child:\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "say(os.waitpid(child, 0)[1] & 0x7F)\n"
        "child = fork()\n"
        "if not child:\n    shmrec.instant('first')\n    say(os.getpid())\n"
        "    sys.stdin.readline()\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "say(os.waitpid(child, 0)[1] & 0x7F)" + STAY
    )
    assert parent.line() == "11"
    assert fatal_stack(memory, entry_of(memory, parent.pid)) is None
    child = int(parent.line())
    wait_until(lambda: entry_of(memory, child).stacks == ALL)
    assert ask(memory, child).text
    assert ask(memory, parent.pid).text
    parent.say()
    assert parent.line() == "11"
    assert fatal_stack(memory, entry_of(memory, parent.pid)) is None
    assert fatal_stack(memory, entry_of(memory, child)) is not None


def test_a_child_with_two_recordings_leaves_them_where_it_says(
    memory: Segment, start: Start, recording_name: str
) -> None:
    other = segment.create(
        f"{recording_name}-b", Geometry.of(0, 4), keep_size=1 << 20, keep_period_ns=10**10
    )
    try:
        parent = start(
            f"one, two = join(), shmrec.attach({other.name!r}, required=True)\nchild = os.fork()\n"
            "if not child:\n    one.instant('first')\n    two.instant('first')\n"
            "    say(os.getpid())\n    sys.stdin.readline()\n    os._exit(0)\n"
            "os.waitpid(child, 0)" + STAY
        )
        child = int(parent.line())
        assert entry_of(memory, child).stacks == ALL
        assert ask(memory, child).text
        assert entry_of(other, child).stacks == 0
        parent.say()
        parent.line()
    finally:
        other.close()
        end_recording(other.name)


def test_a_child_forked_while_another_thread_arms_can_have_its_own(
    memory: Segment, start: Start
) -> None:
    forked = start(
        "from shmrec import stacks\n"
        "real, held, go = stacks.map_guarded, threading.Event(), threading.Event()\n"
        "def waits(*args):\n    held.set()\n    go.wait()\n    return real(*args)\n"
        "stacks.map_guarded = waits\n"
        "other = threading.Thread(target=join)\nother.start()\nheld.wait()\n"
        "child = os.fork()\n"
        "if not child:\n    stacks.map_guarded = real\n    join()\n    say(os.getpid())\n"
        "    sys.stdin.readline()\n    os._exit(0)\n"
        "os.waitpid(child, 0)\ngo.set()\nother.join()" + STAY
    )
    child = int(forked.line())
    assert ask(memory, child).text
    forked.say()
    forked.line()
    # Only the main thread can have a handler in Python.
    assert entry_of(memory, forked.pid).stacks == ALL & ~StackFlag.POLITE


# Parts.


@pytest.mark.parametrize("extension", [True, False])
def test_memory_with_a_guard_ends_where_it_says(
    extension: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension:
        monkeypatch.setattr(guarded, "EXTENSION", None)
    elif EXTENSION is None:
        pytest.skip("there is no extension")
    size, page = 2 * layout.PAGE, layout.PAGE
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8 * page))
        file.flush()
        address = guarded.map_guarded(file.fileno(), 2 * page, size)
        with open("/proc/self/mem", "r+b", buffering=0) as all_memory:
            all_memory.seek(address)
            written = 0
            while taken := all_memory.write(b"x" * min(1000, size - written + 1)):
                written += taken
                if written == size:
                    break
            all_memory.seek(address + size)
            with pytest.raises(OSError, match="Input/output error"):
                all_memory.write(b"x")
        guarded.unmap_guarded(address, size)
        assert written == size
        file.seek(0)
        assert file.read() == bytes(2 * page) + b"x" * size + bytes(4 * page)
    with pytest.raises(OSError, match=r"Bad file descriptor|cannot map"):
        guarded.map_guarded(1 << 20, 0, page)


def test_the_writer_rewinds_when_the_collector_has_taken_a_stack() -> None:
    arena = Arena()
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        os.lseek(fd, 500, os.SEEK_SET)
        writer = arena.writer()
        writer.rewinds(fd, 100)
        turn = ENTRY.word("stack_turn", arena.entry)
        for generation, expected in enumerate((500, 100, 100), start=2):
            arena.set_generation(generation)
            writer.instant("turn")
            assert os.lseek(fd, 0, os.SEEK_CUR) == expected
            arena.words[turn] += 1
            if expected == 100:
                os.lseek(fd, 700, os.SEEK_SET)


def test_more_threads_than_rows_use_rows_again(memory: Segment, start: Start) -> None:
    many = start(
        "join()\ndef speak():\n    shmrec.instant('here')\n    barrier.wait()\n"
        "barrier = threading.Barrier(301)\nthreading.stack_size(65536)\n"
        "for _ in range(300):\n    threading.Thread(target=speak).start()\nbarrier.wait()" + STAY
    )
    many.line()
    words = memory.words[
        STACK.word("threads", memory.geometry.stack(entry_of(memory, many.pid).index)) :
    ][: 2 * layout.STACK_THREADS].tolist()
    assert all(words)
    assert len(set(words[::2])) == layout.STACK_THREADS


def test_a_snapshot_carries_them_and_a_reader_has_them(
    memory: Segment, start: Start, tmp_path: Path
) -> None:
    from shmrec import read
    from shmrec.takeover import recover

    dying = start("join()\nwith shmrec.span('work'):\n    say('in')\n    sys.stdin.readline()")
    dying.line()
    dying.kill(signal.SIGSEGV)
    dying.wait()
    (producer,) = read(recover(memory, tmp_path)).producers
    (stack,) = producer.stacks
    assert stack.kind == "fatal"
    assert stack.text.startswith("Fatal Python error: Segmentation fault")
    assert set(stack.idents.values()) == {span.thread for span in producer.open_spans}
    assert producer.stack_flags == ALL
