"""``shmrec-dump info``: what its first screen answers, of deaths and of all other causes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shmrec.layout import TRIGGERS, StackFlag
from shmrec.manifest import Cause, Header, Producer
from shmrec.ring import Batch

from .dumping import HOSTILE, batch, dump, dump_json, write_file
from .findings import (
    MIB,
    SECOND,
    TAKEN,
    crash_stack,
    died,
    exception,
    facts,
    header,
    in_threads,
    inside,
    producer,
)

SCREEN = 40
SEGV = Cause("signal 11 (SIGSEGV)", "kernel (pidfd)", signal=11)
INSIDE = inside(("request", 1.3, {"path": "/export"}), ("checksum", 1.2, {"size": 40960}))


def info(path: Path, head: Header, *producers: tuple[Producer, list[Batch]]) -> list[str]:
    shown = dump("info", write_file(path / "x.shmrec", head, list(producers))).stdout
    return shown.splitlines()


def crashed(**fields: Any) -> tuple[Producer, list[Batch]]:
    values = {
        "cause": SEGV,
        "stacks": [crash_stack()],
        "stack_flags": StackFlag.FATAL,
        "facts": facts(100 * MIB, 102 * MIB),
        "losses": {"overwritten": 800},
        "recorded": 802,
    }
    return died(**{**values, **fields}), INSIDE


def test_the_first_screen_of_a_death(tmp_path: Path) -> None:
    waiting = [
        (producer(n, label=f"w {n}"), inside(("lock.acquire", 2.5, {"name": "orders"})))
        for n in range(1, 6)
    ]
    idle: list[tuple[Producer, list[Batch]]] = [(producer(n, label=f"w {n}"), []) for n in (6, 7)]
    reason = "death of w 0 pid 100: signal 11 (SIGSEGV)"
    head = header(trigger="death", reason=reason)
    lines = info(tmp_path, head, crashed(), *waiting, *idle)
    first = "\n".join(lines[:SCREEN])
    assert lines[0] == "Death of w 0 pid 100: signal 11 (SIGSEGV)"
    expected = [
        "Died: pid 100 (w 0), 1.3 s into `request path=/export`",
        "  cause     Fatal signal: SIGSEGV in `string_at` (ctypes/__init__.py:519), called by the "
        "application in `crash` (/srv/app/views.py:12).",
        "  evidence  signal 11 (SIGSEGV), known from kernel (pidfd)",
        "            faulthandler wrote its stacks at 'Segmentation fault'",
        "  memory    102.0 MiB resident, 1.0 s before its end; it grew by 2.0 MiB in 10.0 s",
        "  It was in the middle of, the newest first:",
        "    checksum  for 1.2 s  size=40960  in MainThread",
        "    request   for 1.3 s  path=/export  in MainThread",
        "      Segmentation fault in this thread:",
        "        string_at         ctypes/__init__.py:519",
        "      > crash             /srv/app/views.py:12",
        "        dispatch_request  flask/app.py:880",
        "    thread 4243: in idle  /srv/app/pool.py:7",
        "  Mind: its history starts 1.3 s before: 800 older events overwritten",
        "In common:",
        "  5 of 8 ws inside `lock.acquire name=orders`",
        "The others at that moment:",
    ]
    assert [line for line in first.splitlines() if line in expected] == expected
    assert "Last 2 events of pid 100" in "\n".join(lines[SCREEN - 10 :])
    # The details come behind.
    assert lines.index("The others at that moment:") < len(lines) - 12


def test_the_longest_open_of_parallel_threads_comes_first(tmp_path: Path) -> None:
    threads = batch(
        [1, 0, 1, "pool_0"], [4, 0, "request", 1, {"path": "/old"}], [4, 5, "query", 2],
        [1, 0, 2, "pool_1"], [4, SECOND, "request", 3, {"path": "/young"}],
        start_ns=TAKEN - 9 * SECOND,
    )  # fmt: skip
    lines = info(tmp_path, header(trigger="death", reason="x"), (died(), [threads]))
    assert "Died: pid 100 (w 0), 9.0 s into `request path=/old`, the oldest of 2 open" in lines
    at = lines.index("  It was in the middle of, in 2 threads, the newest of each first:")
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["query", "request", "request"]
    assert "path=/old" in lines[at + 2]
    assert "path=/young" in lines[at + 3]


def test_many_calls_are_summed_up(tmp_path: Path) -> None:
    def calls(name: str, file: str, number: int) -> str:
        return "".join(f'  File "{file}", line {n} in {name}{n}\n' for n in range(number))

    site = "/srv/.venv/lib/python3.11/site-packages"
    text = "Fatal Python error: Aborted\n\nCurrent thread 0xa1 (most recent call first):\n" + (
        calls("wait", "/usr/lib/python3.11/threading.py", 9)
        + calls("mine", "/srv/app.py", 20)
        + calls("call", f"{site}/flask/app.py", 3)
        + calls("deep", f"{site}/werkzeug/x.py", 30)
        + "  ...\n"
    )
    shown = "\n".join(info(tmp_path, header(), crashed(stacks=[crash_stack(text=text)])))
    assert "  8 calls in threading\n" in shown
    assert re.search(r"> mine4 +/srv/app.py:4\n +14 calls of the application between\n", shown)
    assert re.search(r"> mine19 +/srv/app.py:19\n", shown)
    assert "and 32 older calls" in shown
    assert "and older calls, which were not written" in shown
    assert "Mind: its stack is cut off: threads or calls are missing" in shown


def test_an_installed_application_is_not_summed_up(tmp_path: Path) -> None:
    site = "/srv/.venv/lib/python3.11/site-packages"
    text = "Fatal Python error: Aborted\n\nCurrent thread 0xa1 (most recent call first):\n" + (
        f'  File "{site}/werkzeug/x.py", line 1 in deep\n'
        f'  File "{site}/shop/views.py", line 7 in view\n'
        + "".join(f'  File "{site}/flask/app.py", line {n} in call{n}\n' for n in range(20))
    )
    shown = "\n".join(info(tmp_path, header(), crashed(stacks=[crash_stack(text=text)])))
    assert re.search(r" +deep +werkzeug/x.py:1\n +view +shop/views.py:7\n", shown)
    assert "and 12 older calls" in shown


def test_why_there_is_no_stack(tmp_path: Path) -> None:
    shown = info(tmp_path, header(), crashed(stacks=[], stack_flags=0))
    assert "            no stack: faulthandler was not armed in it" in shown
    shown = info(tmp_path, header(), crashed(cause=None, stacks=[], stack_flags=0))
    assert "    (no stack: faulthandler was not armed in it)" in shown


def test_a_suspect_is_shown_like_a_death(tmp_path: Path) -> None:
    text = crash_stack().text.split("\n\n", 1)[1]
    hung = producer(
        1,
        stacks=[crash_stack(kind="asked", text=text)],
        facts=facts(80 * MIB, 80 * MIB, every=1, cpu=0.99, state="R"),
    )
    head = header(
        trigger="slow_span",
        reason="request open for 1.3 s in pid 101",
        suspects=[1],
        triggered_ns=TAKEN - 2 * SECOND,
        first=True,
        suppressed={"log": 3, "stall": 0, "odd": "x"},
    )
    lines = info(tmp_path, head, (producer(0), []), (hung, INSIDE))
    assert lines[0] == "Request open for 1.3 s in pid 101"
    assert any(
        line.endswith("2.0 s after the trigger, the first of its incident") for line in lines
    )
    assert "  not taken  snapshots because of limits: 3 by log" in lines
    assert "Suspect: pid 101 (w 1), 1.3 s into `request path=/export`" in lines
    assert "  because     the trigger names it" in lines
    assert "  it was      running (its main thread), using 99% of a processor" in lines
    assert "      > crash             /srv/app/views.py:12" in lines
    assert "At that moment:" in lines
    assert "Last 2 events of pid 101 (w 1), in seconds before the snapshot:" in lines


@pytest.mark.parametrize("trigger", [*TRIGGERS, "recover", "of tomorrow"])
def test_every_trigger_has_its_line(tmp_path: Path, trigger: str) -> None:
    shown = {
        said: info(tmp_path, header(trigger=trigger, reason=said), (producer(), INSIDE))[0]
        for said in ("because", "")
    }
    asked = {
        "request": ("Snapshot on request: ", "no reason given"),
        "recover": ("Read from memory that nobody served: ", "recovered"),
    }
    if trigger in asked:
        assert list(shown.values()) == [asked[trigger][0] + "because", "".join(asked[trigger])]
    else:
        assert list(shown.values()) == ["Because", f"Snapshot because of {trigger}"]


def test_who_else_stands_out(tmp_path: Path) -> None:
    others = [(producer(n), exception("thread", ago=1 + n)) for n in range(1, 7)]
    lines = info(tmp_path, header(trigger="death", reason="x"), crashed(), *others)
    at = lines.index("Conspicuous besides:")
    assert lines[at + 1] == (
        "  pid 101 (w 1): unhandled 2.0 s before: ValueError: no such thing, raised at "
        "/srv/app/views.py:3 f"
    )
    assert lines[at + 5] == "  and 2 more"


def test_the_json_of_it(tmp_path: Path) -> None:
    pair = [
        (producer(n), inside(("lock", 2, {"name": "a", "raw": b"\xff"}), thread=n)) for n in (1, 2)
    ]
    ends = [batch([1, 0, 1, "m"], [5, 0, "request", 7, 1], start_ns=TAKEN - 9 * SECOND)]
    head = header(suspects=[2])
    write_file(tmp_path / "x.shmrec", head, [crashed(), *pair, (producer(3), ends)])
    found = dump_json("info", tmp_path / "x.shmrec")
    analysis = found["analysis"]
    assert [(each["pid"], each["rank"]) for each in analysis["culprits"]] == [
        (100, "died"),
        (102, "suspect"),
    ]
    (group,) = analysis["groups"]
    assert group["text"] == "2 of 4 ws inside `lock name=a raw=b'\\xff'`"
    assert group["members"][1] == {"producer": 2, "pid": 102, "thread": 2}
    assert analysis["durations"] == {"request": {"count": 1, "median_ns": 7, "longest_ns": 7}}
    assert found["suspects"] == [2]
    dead, living = found["producers"][:2]
    assert dead["verdict"]["kind"] == "fatal signal"
    assert dead["verdict"]["evidence"]
    assert [each["name"] for each in dead["last_events"]] == ["request", "checksum"]
    assert dead["requests"] == [dead["threads"][0]["spans"][-1]]
    assert (dead["stack_missing"], living["stack_missing"]) == (
        "",
        "no stack: it is not set up to give its stacks when asked",
    )
    assert dead["facts"][0]["rss"] == 100 * MIB
    assert dead["trend"]["growth"] == 2 * MIB
    assert dead["threads"][0]["stack"]["frames"][0]["function"] == "string_at"
    assert dead["threads"][0]["spans"] == [each["span"] for each in dead["open_spans"]][::-1]
    (stack,) = dead["stacks"]
    assert (stack["kind"], stack["fatal"], stack["cut"]) == ("fatal", "Segmentation fault", False)
    assert stack["dumps"][0]["threads"][1]["thread"] == 4242
    assert living["verdict"] is None
    assert living["silence_ns"] == 2 * SECOND
    assert json.dumps(found)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = (
        f"Fatal Python error: {HOSTILE}\n"
        f"Current thread 0xa1 [{HOSTILE}] (most recent call first):\n"
        f'  File "{HOSTILE}", line 3 in f\x1b]0;x\n  File "a", line 1 in \x1b[31m\n\x1b[31m\n'
    )
    stack = crash_stack(text=text, note=HOSTILE)
    hostile = crashed(
        stacks=[stack],
        memory={"limit": 1, "kills": 1, "source": HOSTILE},
        cause=Cause(HOSTILE, HOSTILE, signal=9),
        damage=[HOSTILE],
        losses={HOSTILE: 5},
    )
    living = producer(1, doing={"wchan": HOSTILE, "syscall": HOSTILE}, label=HOSTILE)
    group = producer(2, label=HOSTILE)
    spans = inside((HOSTILE, 9, {HOSTILE: HOSTILE}))
    head = header(trigger=HOSTILE, suspects=[1, HOSTILE], suppressed={HOSTILE: 3})
    file = write_file(
        tmp_path / "x.shmrec",
        head,
        [hostile, (living, spans), (group, spans), (producer(3), exception(HOSTILE, ago=1))],
    )
    for verb in ("info", "stacks"):
        shown = dump(verb, file).stdout
        assert all(char.isprintable() or char == "\n" for char in shown)
        assert dump(verb, file, "--json").stdout.isascii()


def test_the_stack_of_a_thread_is_not_that_of_one_of_its_greenlets(tmp_path: Path) -> None:
    turns = batch(
        [1, 0, 4242, "MainThread"], [4, 0, "request", 1, {"path": "/a"}],
        [4, SECOND, "request", 2, {"path": "/b"}],
        start_ns=TAKEN - 9 * SECOND,
    )  # fmt: skip
    head = header(trigger="death", reason="x")
    dead = died(cause=SEGV, stacks=[crash_stack()])
    said = "      Segmentation fault in this thread, which takes turns at these:"
    lines = info(tmp_path, head, (dead, [turns]))
    assert lines[lines.index(said) - 1].split()[-3:] == ["path=/a", "in", "MainThread"]
    # One inside of the other is the same call's.
    assert "takes turns" not in "\n".join(info(tmp_path, head, (dead, INSIDE)))
    asked = producer(stacks=[crash_stack(kind="asked", text=crash_stack().text.split("\n\n")[2])])
    lines = info(tmp_path, header(suspects=[0]), (asked, [turns]))
    assert "      its thread takes turns at these, and was executing:" in lines


def test_every_thread_with_a_request_shows_where_it_is(tmp_path: Path) -> None:
    idents = {0xA0 + n: n for n in range(1, 7)}
    text = "Fatal Python error: Aborted\n\n" + "\n".join(
        f"{'Current thread' if n == 6 else 'Thread'} 0x{ident:016x} (most recent call first):\n"
        f'  File "/srv/app.py", line {n} in at{n}\n'
        for ident, n in idents.items()
    )
    spans = in_threads(*(("request", 10 - n, {"path": f"/{n}"}) for n in range(1, 6)))
    dead = died(cause=SEGV, stacks=[crash_stack(text=text, idents=idents)])
    shown = "\n".join(info(tmp_path, header(trigger="death", reason="x"), (dead, spans)))
    for n in range(1, 6):
        assert re.search(rf"path=/{n}  in pool_{n}\n      (> |in )at{n} +/srv/app.py:{n}\n", shown)


def test_what_began_after_the_moment_has_no_age(tmp_path: Path) -> None:
    late = batch(
        [1, 0, 1, "MainThread"], [4, 0, "request", 1, {"path": "/late"}],
        start_ns=TAKEN + SECOND,
    )  # fmt: skip
    lines = info(tmp_path, header(trigger="death", reason="x"), crashed(), (producer(1), [late]))
    (row,) = [line for line in lines if "path=/late" in line]
    assert row.split() == ["101", "w", "1", "just", "then", "request", "path=/late", "0", "ns"]


def test_the_one_at_it_for_longest_is_shown_of_many_threads(tmp_path: Path) -> None:
    spans = in_threads(*(("request", 9 - n, {"path": f"/{n}"}) for n in range(1, 7)))
    lines = info(tmp_path, header(), (producer(1), spans))
    at = next(n for n, line in enumerate(lines) if "inside of" in line)
    assert ["path=/1" in lines[at + 1], "and 3 more" in lines[at + 4]] == [True, True]


def test_of_memory_read_cold_ages_are_up_to_its_last_event(tmp_path: Path) -> None:
    """When it was taken is known from heartbeats and batches' beginnings only."""
    cold = header(trigger="recover", reason="recovered", flushes=0, fenced=False)
    unseen = {"state": "dead", "ended_ns": 0}
    late = batch(
        [1, 0, 1, "MainThread"], [4, 0, "request", 1, {"path": "/late"}], [3, SECOND, "x"],
        start_ns=TAKEN - SECOND // 2,
    )  # fmt: skip
    producers: list[tuple[Producer, list[Batch]]] = [
        (producer(0, **unseen), []),
        (producer(1, **unseen), [late]),
    ]
    lines = info(tmp_path, cold, *producers, (producer(2, **unseen), INSIDE))
    # The one that was at something for longest comes first.
    assert [line for line in lines if line.startswith("Died: ")] == [
        "Died: pid 102 (w 2), 1.8 s into `request path=/export`",
        "Died: pid 101 (w 1), 1.0 s into `request path=/late`",
        "Died: pid 100 (w 0)",
    ]
    assert "  -1.000000  begin     request  path=/late" in lines
    found = dump_json("info", tmp_path / "x.shmrec")
    assert found["taken_ns"] == TAKEN + SECOND // 2
    # Flushed, it was taken when it says so.
    dump_json("info", write_file(tmp_path / "y.shmrec", header(), producers))
    assert dump_json("info", tmp_path / "y.shmrec")["taken_ns"] == TAKEN


def test_who_left_before_and_who_because_of_it(tmp_path: Path) -> None:
    def left(index: int, at: int) -> tuple[Producer, list[Batch]]:
        return producer(index, state="detached", detached_ns=at), []

    dead = crashed(ended_ns=TAKEN - SECOND)
    head = header(trigger="death", reason="x")
    lines = info(tmp_path, head, dead, left(1, TAKEN - 2 * SECOND), left(2, TAKEN))
    assert "Left in order before: pid 101 (w 1)." in lines
    assert "Left in order after that: pid 102 (w 2)." in lines
    lines = info(tmp_path, header(), left(1, TAKEN))
    assert "Left in order before: pid 101 (w 1)." in lines


def test_where_the_stacks_of_the_others_are(tmp_path: Path) -> None:
    text = crash_stack().text.split("\n\n", 1)[1]
    asked = producer(1, stacks=[crash_stack(kind="asked", text=text)])
    head = header(trigger="death", reason="x")
    said = f"  Their stacks: `shmrec-dump stacks {tmp_path / 'x.shmrec'}`"
    assert said in info(tmp_path, head, crashed(), (asked, INSIDE))
    assert said not in info(tmp_path, head, crashed(), (producer(1), INSIDE))
    # Shown already.
    assert said not in info(tmp_path, header(suspects=[1]), (asked, INSIDE))


def test_the_headline_says_what_a_status_does_not(tmp_path: Path) -> None:
    status = Cause("exit code 0", "kernel (pidfd)", exit_code=0)
    dead = died(cause=status, host={"timeout_ms": 2000, "told_ns": 0})
    head = header(trigger="death", reason="death of w 0 pid 100: exit code 0")
    lines = info(tmp_path, head, (dead, INSIDE))
    assert lines[0] == "Death of w 0 pid 100: exit code 0, host timeout"
    other = (died(1, cause=SEGV), INSIDE)
    lines = info(tmp_path, head, (dead, INSIDE), other)
    assert lines[0] == "Death of w 0 pid 100: exit code 0"


def test_those_that_the_trigger_names_come_before_those_that_stand_out(tmp_path: Path) -> None:
    odd = (producer(0), exception("thread", ago=1))
    asked = [{"pid": 101, "reason": "bad"}, {"pid": 100, "reason": "bad"}]
    head = header(trigger="exception", reason="w 1: bad", suspects=[1], requests=asked)
    lines = info(tmp_path, head, odd, (producer(1), INSIDE))
    assert [line[:16] for line in lines if line.startswith("Suspect")] == ["Suspect: pid 101"]
    assert any(line.startswith("  pid 100 (w 0): unhandled") for line in lines)
    # The headline has said who asked, and why.
    assert [line for line in lines if "asked for by" in line] == ["  asked for by  pid 100 (w 0)"]
    lines = info(tmp_path, header(trigger="exception", reason="x"), odd)
    assert any(line.startswith("Suspect: pid 100") for line in lines)


def test_of_many_that_died_the_evidence_is_brief(tmp_path: Path) -> None:
    memory = {"kills": 0, "source": "/x/memory.events"}
    killed = Cause("signal 9 (SIGKILL)", "kernel (pidfd)", signal=9)
    those = [
        (died(n, cause=killed, memory=memory, facts=facts(MIB), peak_rss=MIB), INSIDE)
        for n in range(3)
    ]
    lines = info(tmp_path, header(trigger="death", reason="x"), *those)
    assert sum("it had 1.0 MiB resident" in line for line in lines) == 2
    assert sum("not for want of memory: the kernel" in line for line in lines) == 3
    assert "            and 1 more, with --json" in lines
