"""Long reports through a pager, and how far reading has come: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shmrec
from shmrec.commands import progress
from shmrec.commands.progress import Tick
from shmrec.manifest import Header, Producer

from .conftest import wait_until
from .dumping import DUMP, batch, dump, environment, on_terminal, write_file
from .terminals import Bare

PAGER = "sed 's/^/paged: /'"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A snapshot of many events."""
    header = Header(recording="web", reason="x", taken_mono_ns=10**9, flushes=2, generation=1)
    producer = Producer(index=0, pid=7, label="w", state="running")
    batches = [batch(*[[3, 1, f"e{n}"] for n in range(500)], number=n + 1) for n in range(20)]
    return write_file(tmp_path / "web-20260131T123005Z-x-1.shmrec", header, [(producer, batches)])


@pytest.mark.parametrize(
    "args", [("info",), ("stacks",), ("events", "--tail", "3"), ("help", "info")], ids=" ".join
)
def test_what_goes_to_a_terminal_is_paged(file: Path, args: tuple[str, ...]) -> None:
    named = () if args[0] == "help" else (file,)
    paged = on_terminal(*args, *named, env={"PAGER": PAGER})
    lines = paged.splitlines()
    assert lines
    assert all(line.startswith("paged: ") for line in lines)
    plain = on_terminal(*args, *named, "--no-pager", env={"PAGER": PAGER})
    # Colours and widths are those of the terminal.
    assert [line.removeprefix("paged: ") for line in lines] == plain.splitlines()


def test_which_pager(file: Path) -> None:
    plain = on_terminal("info", file, "--no-pager", env={"PAGER": PAGER})
    for pager in ("", "cat", "no-such-program -x"):
        assert on_terminal("info", file, env={"PAGER": pager}) == plain
    both = {"PAGER": "false", "SHMREC_PAGER": PAGER}
    assert on_terminal("info", file, env=both).startswith("paged: ")
    assert "paged: " not in dump("info", file, env={"PAGER": PAGER}).stdout


def test_json_is_not_paged(file: Path) -> None:
    for verb in ("info", "events", "stacks"):
        assert "paged: " not in on_terminal(verb, file, "--json", env={"PAGER": PAGER})


def test_less_goes_away_by_itself_where_all_fits(file: Path) -> None:
    env = {"PAGER": "less", "LESSHISTFILE": "-"}
    assert "w[7]" in on_terminal("events", file, "--tail", "2", env=env)


@pytest.mark.parametrize("before_q", ["", "\x03"])
def test_leaving_the_pager_is_no_failure(file: Path, before_q: str) -> None:
    env = {"PAGER": "less", "LESSHISTFILE": "-"}
    with Bare([*DUMP, "events", str(file)], env=env) as terminal:
        before = terminal.modes
        terminal.see("e9")
        # Ctrl-C is for the pager, and so is what follows.
        terminal.keys(before_q)

        def left() -> bool:
            # Of what is typed with Ctrl-C less takes nothing.
            terminal.keys("q")
            return terminal.running.poll() is not None

        wait_until(left)
        assert terminal.wait() == 0
        assert terminal.modes == before
        assert b"Traceback" not in terminal.sent


# How far it has come.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        tick = Tick("reading \x1b[31m[bold]x")
        tick.expect(200)
        tick(50)
        assert terminal.getvalue() == ""
        monkeypatch.setattr(tick, "_due", 0.0)
        tick(50)
        assert "reading \\x1b[31m[bold]x" in terminal.getvalue()
        assert "50%" in terminal.getvalue()
        monkeypatch.setattr(tick, "_due", 0.0)
        tick(10_000)
        assert "100%" in terminal.getvalue()
        # Whoever is killed meanwhile leaves the cursor as it was.
        assert "\x1b[?25" not in terminal.getvalue()
        tick.stop()
        said = terminal.getvalue()
        monkeypatch.setattr(tick, "_due", 0.0)
        tick(1)
        assert terminal.getvalue() == said


def test_no_bar_where_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    piped = io.StringIO()
    with contextlib.redirect_stderr(piped):
        tick = Tick("reading")
        monkeypatch.setattr(tick, "_due", 0.0)
        tick(1)
    assert piped.getvalue() == ""


AT_ONCE = (
    "import sys; from shmrec.commands import progress, dump; progress._AFTER = 0.0; "
    "progress._EVERY = 0.0; sys.argv[0] = 'shmrec-dump'; dump.main()"
)


@pytest.mark.parametrize(
    "args",
    [
        ("verify",),
        ("info",),
        ("stacks",),
        ("events", "--count"),
        ("diff",),
        ("scrub", "-o"),
        ("report", "-o"),
    ],
    ids=" ".join,
)
def test_what_reads_files_says_how_far_it_is(file: Path, args: tuple[str, ...]) -> None:
    assert progress._AFTER > 0
    other = file.with_name("web-20260131T123015Z-x-1.shmrec")
    if args[0] == "diff":
        write_file(other, Header(recording="web", taken_mono_ns=2 * 10**9), [])
    more = [str(other)] if args[0] == "diff" else [str(file) + ".new"] if "-o" in args else []
    given = [args[0], str(file), *args[1:], *more]
    with Bare([sys.executable, "-c", AT_ONCE, *given]) as terminal:
        assert terminal.wait() == 0
        terminal.see("%")
        doing = {"scrub": b"scrubbing", "report": b"drawing"}.get(args[0], b"reading web-2026")
        assert doing in terminal.sent
    for name in more:
        if name.endswith(".new"):
            os.unlink(name)
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, *given], capture_output=True, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_plain_name_is_looked_for_in_the_directory(file: Path) -> None:
    assert "intact" in dump("verify", file.name, "--dir", file.parent).stdout
    assert "cannot read" in dump("verify", "other.shmrec", "--dir", file.parent, check=1).stderr


@pytest.mark.parametrize(
    ("args", "doing"),
    [
        (("recover", "--force", "--dir", "."), b"recovering"),
        (("snapshot",), b"waiting for the collector"),
        (("tail", "--until", "0"), b"looking back"),
    ],
    ids=lambda args: args[0] if isinstance(args, tuple) else "",
)
def test_what_reads_memory_says_so_while_it_takes(
    args: tuple[str, ...],
    doing: bytes,
    recording_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with shmrec.FlightRecorder(recording_name, directory=tmp_path) as flight:
        for number in range(2000):
            shmrec.instant(f"e{number}")
        verb, *options = args
        given = [verb, flight.name, *options]
        with Bare([sys.executable, "-c", AT_ONCE, *given]) as terminal:
            assert terminal.wait() == 0
            assert doing in terminal.sent
