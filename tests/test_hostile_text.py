"""Whatever was recorded, no tool's output drives a terminal: all verbs, as text and as JSON."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgpack
import pytest

from shmrec import log, requests, store, wakeup
from shmrec.collector import Collector
from shmrec.commands import formats
from shmrec.commands.dump import dump as tool
from shmrec.errors import ShmrecError
from shmrec.events import BEGIN, COUNTER, END, EXCEPTION, INSTANT, LOG, NAME, OPEN, THREAD
from shmrec.layout import ENTRY, SLOT, EntryState, Status, Verb
from shmrec.manifest import Cause, Header, Producer, Stack
from shmrec.ring import Batch, Head
from shmrec.segment import Segment
from shmrec.takeover import Settings

from .dumping import DUMP, dump, environment, on_terminal, write_file
from .recordings import Answering, unserved
from .terminals import Bare

HOSTILE = "\x1b]0;owned\x07\x1b[31m\x9b2J\r\n\u202eevil\u2066\u2028\x00\x7f\t[bold]x[/]"
"""Escape sequences, seven and eight bits wide; line ends; overrides of direction; markup."""
RAW = HOSTILE.encode() + b"\xff\xc3\xed\xa0\x80"
"""The same with what is no UTF-8."""
BINARY = ("parquet", "perfetto")
"""Formats that no terminal gets; `test_exports` reads what they say."""
NOW = 10_000_000_000
WALL = 1_700_000_000_000_000_000


def raw(text: bytes) -> bytes:
    """A msgpack string of any bytes."""
    return b"\xdb" + len(text).to_bytes(4) + text


def event(*fields: Any) -> bytes:
    """An event whose bytes are texts, valid or not; what is a dict has such keys and values."""
    packed = bytes((0x90 | len(fields),))
    for each in fields:
        if isinstance(each, bytes):
            packed += raw(each)
        elif isinstance(each, dict):
            packed += bytes((0x80 | len(each),)) + b"".join(
                raw(key) + (raw(value) if isinstance(value, bytes) else msgpack.packb(value))
                for key, value in each.items()
            )
        else:
            packed += msgpack.packb(each)
    return packed


ARGS = {RAW: RAW, b"message": RAW, b"where": [HOSTILE], b"path": RAW, b"n": {HOSTILE: [HOSTILE]}}
PAYLOAD = b"".join(
    (
        event(NAME.number, 0, 0, RAW),
        event(THREAD.number, 0, 11, 0),
        event(OPEN.number, 0, 0, 5, 1000, ARGS),
        event(BEGIN.number, 1, 0, 6, ARGS),
        event(INSTANT.number, 1, 0, ARGS),
        event(EXCEPTION.number, 1, 0, ARGS),
        event(LOG.number, 1, 0, ARGS),
        event(COUNTER.number, 1, 0, RAW),
        event(END.number, 1, 0, 9, 6, ARGS),
        event(BEGIN.number, 1, 0, 7, ARGS),
    )
)
COUNTED = 7
STACK = (
    f"Fatal Python error: {HOSTILE}\n\nCurrent thread 0x0000a1 (most recent call first):\n"
    f'  File "{HOSTILE}", line 3 in {HOSTILE}\n'
    '  File "/a/\x1b[31m.py", line 3 in \x1b]0;owned\x07\n'
    '  File "/a/b.py", line 3 in \u202ef\x9b2J\n\nThread 0xzz \x1b[31m:\n  \x1b[31m\n'
)


def batch(number: int = 1) -> Batch:
    start = NOW - 1000
    return Batch(Head(number, 1, start, len(PAYLOAD), COUNTED, 0, 0, 0), PAYLOAD)


def hostile_file(path: Path, taken_ns: int = NOW) -> Path:
    """A snapshot in which every text is hostile."""
    header = Header(
        recording=HOSTILE,
        reason=HOSTILE,
        trigger=HOSTILE,
        version=HOSTILE,
        run_id=HOSTILE,
        host=HOSTILE,
        taken_mono_ns=taken_ns,
        taken_wall_ns=WALL + taken_ns - NOW,
        requests=[{"pid": 3, "reason": HOSTILE}],
        notes=[HOSTILE],
        suppressed={HOSTILE: 3},
        suspects=[0],
    )
    producers = []
    for index, state in enumerate(("dead", "running", "stalled", HOSTILE)):
        producer = Producer(
            index=index,
            pid=7 + index,
            identity=HOSTILE,
            label=HOSTILE,
            engine=HOSTILE,
            state=state,
            evidence="stalled" if state == "stalled" else HOSTILE,
            ended_ns=NOW if state == "dead" else 0,
            losses={HOSTILE: 3, "oversized": 1},
            damage=[HOSTILE],
            cause=Cause(HOSTILE, HOSTILE, 11, None) if state == "dead" else None,
            facts=[[NOW, 1 << 20, 5, 3, 4, HOSTILE], [NOW + 1, 1 << 20, 5, 3, 4, "D"]],
            memory={"source": HOSTILE, "limit": 1 << 20, "kills": 1, "limit_source": HOSTILE},
            host={"timeout_ms": 30_000, "told_ns": NOW},
            doing={"wchan": HOSTILE, "syscall": HOSTILE, "time_ns": NOW},
            stack_flags=3,
        )
        for kind in ("fatal", "asked", HOSTILE):
            producer.stacks.append(Stack(kind, NOW, STACK, True, HOSTILE, {0xA1: 11}))
        producer.stacks.append(Stack("asked", NOW, "", False, HOSTILE))
        producers.append((producer, [batch(), batch(2)]))
    damaged = Batch(batch(3).head, PAYLOAD[:-3] + b"\xc1")
    producers[1][1].append(damaged)
    thief = event(THREAD.number, 0, 1, RAW)
    producers[2][1].append(Batch(Head(3, 1, NOW, len(thief), 0, 0, 0, 0), thief))
    return write_file(path, header, producers)


def harmless(text: str, *, styled: bool = False) -> None:
    """No character but line ends does anything, nor is anything else than it looks like."""
    if styled:
        # What the tool itself colours with.
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    bad = {
        char
        for char in text
        if char != "\n" and (unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
    }
    assert not bad, (sorted(bad), [line for line in text.split("\n") if bad & set(line)][:3])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile") / f"a{HOSTILE.replace(chr(0), '')[:9]}\udcff"
    place.mkdir()
    recording = "".join(char for char in HOSTILE if char not in "\0/\n")
    return hostile_file(place / next(store.file_names(recording, HOSTILE, WALL)))


READING = [
    ("info",),
    ("stacks",),
    ("stacks", "--pid", "99"),
    ("events",),
    ("events", "--facts"),
    ("events", "--tail", "3"),
    ("verify",),
]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("verb", READING, ids=" ".join)
def test_what_reads_a_snapshot(file: Path, verb: tuple[str, ...], as_json: bool) -> None:
    done = dump(verb[0], file, *verb[1:], *["--json"] * as_json, check=None)
    # One of its batches is damaged.
    assert done.returncode == (1 if verb[0] in ("verify", "events") else 0), done.stderr
    harmless(done.stdout)
    harmless(done.stderr)
    assert "evil" in done.stdout or verb in (("verify",), ("stacks", "--pid", "99"))
    if as_json:
        assert done.stdout.isascii()
        for line in done.stdout.splitlines():
            json.loads(line)


def test_a_process_that_is_not_there(file: Path) -> None:
    done = dump("events", file, "--pid", 99, check=1)
    harmless(done.stderr)
    assert "no process 99 is in" in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_two_snapshots(file: Path, tmp_path: Path, as_json: bool) -> None:
    other = hostile_file(tmp_path / "b.shmrec", NOW + 2_000_000_000)
    done = dump("diff", file, other, *["--json"] * as_json, check=None)
    assert done.returncode == 0, done.stderr
    harmless(done.stdout)
    assert "evil" in done.stdout


LOOKING = [
    ("list",),
    ("list", "--all"),
    ("list", "--json"),
    ("clean", "--dry-run", "--keep", "0"),
    ("doctor",),
    ("doctor", "--json"),
]


@pytest.mark.parametrize("args", LOOKING, ids=" ".join)
def test_what_looks_into_a_directory(file: Path, args: tuple[str, ...]) -> None:
    directory = file.parent
    done = dump(*args, "--dir", directory, check=None)
    harmless(done.stdout)
    harmless(done.stderr)
    assert ("evil" in done.stdout) == (args[0] != "doctor")


@pytest.mark.parametrize("verb", ["info", "stacks", "verify"])
def test_what_cannot_be_read(file: Path, verb: str) -> None:
    other = file.with_name(f"{HOSTILE[:9]}none")
    for path in (other, file.parent):
        done = dump(verb, path, check=1)
        harmless(done.stdout)
        harmless(done.stderr)


@pytest.mark.parametrize("verb", ["info", "stacks", "events"])
def test_on_a_terminal(file: Path, verb: str) -> None:
    status = int(verb == "events")
    harmless(on_terminal(verb, file, columns=60, check=status), styled=True)


def test_scrubbing(file: Path, tmp_path: Path) -> None:
    done = dump("scrub", file, "-o", tmp_path / f"c{HOSTILE[:9]}", "--arg", f"{HOSTILE[:-15]}*")
    harmless(done.stdout)
    harmless(dump("info", tmp_path / f"c{HOSTILE[:9]}").stdout)


@pytest.mark.parametrize("name", [name for name in formats.names() if name not in BINARY])
def test_exporting(file: Path, tmp_path: Path, name: str) -> None:
    done = dump("export", file, "--format", name)
    harmless(done.stdout)
    assert done.stderr == ""
    out = tmp_path / f"c{HOSTILE[:9]}"
    done = dump("export", file, "--format", name, "-o", out)
    harmless(done.stdout)
    harmless(dump("export", file, "--format", name, "-o", out, check=1).stderr)
    harmless(on_terminal("export", file, "--format", name))


def test_wrong_usage() -> None:
    for args in ((HOSTILE,), ("info", f"--{HOSTILE}"), ("events", "--since", HOSTILE)):
        harmless(dump(*args, check=2).stderr)


def test_every_verb_is_looked_at() -> None:
    looked_at = {verb for verb, *_ in READING} | {"list", "clean", "doctor", "diff", "scrub"}
    looked_at |= {"ps", "snapshot", "recover", "tail", "top", "export"}
    # Nothing that was recorded is in what these print, but for a page: see test_page.
    looked_at |= {"completion", "help", "report"}
    assert isinstance(tool, click.Group)
    assert set(tool.list_commands(click.Context(tool))) == looked_at


# Live.


@pytest.fixture
def memory(recording_name: str) -> Iterator[Segment]:
    """A recording whose only producer's entry, and batch, are hostile."""
    with unserved(recording_name) as made:
        words, geometry = made.words, made.geometry
        entry, ring = geometry.entry(0), geometry.ring(0)
        label = ENTRY.bytes_at("label", entry)
        made.view[label] = RAW[:64].ljust(label.stop - label.start, b"\0")
        for word, value in {
            "incarnation": 1,
            "pid": 1 << 21,
            "state": EntryState.LIVE,
            "opening": 1,
        }.items():
            words[ENTRY.word(word, entry)] = value
        made.view[ring + SLOT.size : ring + SLOT.size + len(PAYLOAD)] = PAYLOAD
        for word, value in {
            "number": 1,
            "generation": 1,
            "start_ns": time.monotonic_ns(),
            "committed": COUNTED << 32 | len(PAYLOAD),
        }.items():
            words[SLOT.word(word, ring)] = value
        stack = geometry.stack(0) + 8 * 4096
        made.view[stack : stack + 4000] = STACK.encode().ljust(4000, b"\0")
        yield made


@pytest.mark.parametrize("as_json", [False, True])
def test_what_each_process_is_doing(memory: Segment, as_json: bool) -> None:
    done = dump("ps", memory.name, *["--json"] * as_json)
    harmless(done.stdout)
    assert "owned" in done.stdout


@pytest.mark.parametrize("args", [("--once",), ("--once", "--threads"), ("--json",)])
def test_what_each_process_was_doing_meanwhile(memory: Segment, args: tuple[str, ...]) -> None:
    done = dump("top", memory.name, "--interval", "0.1", *args)
    harmless(done.stdout)
    assert "owned" in done.stdout


def test_the_whole_screen(memory: Segment) -> None:
    with Bare([*DUMP, "top", memory.name, "--threads"], columns=300) as terminal:
        terminal.see("owned")
        terminal.keys("/\x07\x1b]0;mine\x07\r\x1b?")
        terminal.see("this help")
        terminal.keys("x")
        terminal.keys("q")
        assert terminal.wait() == 0
        sent = terminal.sent.decode()
    # What the tool itself moves and colours with, and how the terminal ends a line.
    sent = re.sub(r"\x1b\[(\?1049[hl]|\?25[hl]|H|[0-9;]*m)", "", sent).replace("\r\n", "\n")
    harmless(sent)


@pytest.mark.parametrize("as_json", [False, True])
def test_events_as_they_are_recorded(memory: Segment, as_json: bool) -> None:
    running = subprocess.Popen(
        [*DUMP, "tail", memory.name, *["--json"] * as_json],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert running.stdout is not None
    shown = "".join(running.stdout.readline() for _ in range(COUNTED))
    running.send_signal(signal.SIGINT)
    rest, said = running.communicate()
    harmless(shown + rest)
    harmless(said)
    assert "owned" in shown


def test_completions(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, number in ((f"shmrec-dump info --dir {shlex.quote(str(file.parent))} ", 4),):
        done = subprocess.run(
            [*DUMP],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=environment(
                {
                    "_SHMREC_DUMP_COMPLETE": "bash_complete",
                    "COMP_WORDS": words,
                    "COMP_CWORD": str(number),
                }
            ),
        )
        harmless(done.stdout)
        harmless(done.stderr)


def test_a_recording_that_is_recovered(memory: Segment, tmp_path: Path) -> None:
    directory = tmp_path / "a\x1b[31m"
    done = dump("recover", memory.name, "--force", "--dir", directory, "--reason", HOSTILE)
    harmless(done.stdout)
    (taken,) = directory.iterdir()
    assert done.stdout == f"{tmp_path}/a\\x1b[31m/{taken.name}\n"
    harmless(dump("info", taken).stdout)
    shown = on_terminal("recover", memory.name, "--force", "--dir", directory, columns=500)
    assert shown.startswith(f"{tmp_path}/a\\x1b[31m/")


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.SUPPRESSED])
@pytest.mark.parametrize(
    "answer", [HOSTILE, f"/a{HOSTILE}/web-20231114T221320Z-x-1.shmrec", f"/a/{HOSTILE}"]
)
def test_an_answer_through_shared_memory(memory: Segment, status: int, answer: str) -> None:
    with Answering(memory, answer, status):
        done = dump("snapshot", memory.name, check=None)
        copied = dump("snapshot", memory.name, "-o", "/tmp/none.shmrec", check=1)
        if status != Status.DONE:
            # A program's own messages are printed as well, by whoever catches them.
            with pytest.raises(ShmrecError) as raised:
                requests.ask(memory, None, Verb.SNAPSHOT, timeout=9.0)
            harmless(str(raised.value))
    harmless(done.stdout)
    harmless(done.stderr)
    harmless(copied.stderr)
    assert done.returncode == (0 if status == Status.DONE and "web-" in answer else 1)


def test_the_collectors_log(
    memory: Segment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(memory.name, tmp_path, log=log.log_to_stderr)
    collector = Collector(memory, settings)
    wakeup.remove_wakeup(memory)
    collector.stop()
    collector.run()
    said = capsys.readouterr().err
    log.log_to_stderr(f"no snapshot of {HOSTILE}")
    said += capsys.readouterr().err
    harmless(said)
    assert "owned" in said
