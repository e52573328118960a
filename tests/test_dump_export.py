"""``shmrec-dump export``: which format, where to, and that nothing is ever half written."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from shmrec import hidden
from shmrec.commands import formats
from shmrec.exports import jsonl

from .conftest import WAIT_SECONDS
from .dumping import DUMP, dump, environment, failure
from .incident import incident, many
from .test_exports import exported


def test_the_end_of_the_name_tells_the_format(tmp_path: Path) -> None:
    file = incident(tmp_path)
    for end in (".jsonl", ".json", ".speedscope.json", ".otlp.jsonl", ".txt"):
        out = tmp_path / f"out{end}"
        done = dump("export", file, "-o", out)
        assert (done.stdout, done.stderr) == (f"{out}\n", "")
        found = formats.by_suffix(out)
        assert found is not None
        assert out.read_bytes() == exported(found.name, file)
        assert out.stat().st_mode & 0o777 == 0o600


def test_the_format_that_is_asked_for(tmp_path: Path) -> None:
    file = incident(tmp_path)
    dump("export", file, "--format", "text", "-o", tmp_path / "x.json")
    assert (tmp_path / "x.json").read_bytes() == exported("text", file)


@pytest.mark.parametrize("output", [(), ("-o", "-")])
def test_standard_output(tmp_path: Path, output: tuple[str, ...]) -> None:
    file = incident(tmp_path)
    done = dump("export", file, "--format", "jsonl", *output)
    assert done.stdout.encode() == exported("jsonl", file)
    assert done.stderr == ""
    assert json.loads(done.stdout.splitlines()[0])["name"] == "boot"


def test_the_newest_snapshot_is_meant(tmp_path: Path) -> None:
    incident(tmp_path).rename(tmp_path / "web-20260131T120000Z-x-1.shmrec")
    done = dump("export", "--dir", tmp_path, "-f", "text")
    assert "recording web on there" in done.stdout


def test_lines_of_json_are_those_of_events(tmp_path: Path) -> None:
    file = incident(tmp_path)
    assert dump("export", file, "-f", "jsonl").stdout == (
        dump("events", file, "--facts", "--json").stdout
    )


def test_nothing_is_replaced(tmp_path: Path) -> None:
    file = incident(tmp_path)
    before = file.read_bytes()
    for output in (file, tmp_path / "there.json", tmp_path / "link.json"):
        if output.name == "there.json":
            output.write_text("mine")
        if output.name == "link.json":
            output.symlink_to(tmp_path / "nowhere")
        line = failure("export", file, "-f", "chrome", "-o", output)
        assert "exists: name another file, none is ever replaced" in line
    assert file.read_bytes() == before
    assert (tmp_path / "there.json").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_what_parquet_writes_beside(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install '.[views]'")
    file = incident(tmp_path)
    beside = tmp_path / "x.producers.parquet"
    beside.write_text("mine")
    assert f"{beside} exists" in failure("export", file, "-o", tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()
    beside.unlink()
    dump("export", file, "-o", tmp_path / "x.parquet")
    assert beside.stat().st_size
    piped = subprocess.run([*DUMP, "export", file, "-f", "parquet"], capture_output=True)
    assert (piped.returncode, piped.stdout[:4], piped.stderr) == (0, b"PAR1", b"")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "say which format: --format chrome|jsonl"),
        (("-o", "-"), "say which format"),
        (("-o", "x.shmrec"), "the name x.shmrec does not tell the format"),
        (("-o", "\x1b[31m"), "does not tell the format"),
        (("--format", "nonsense"), "'nonsense' is not one of"),
        (("a", "b", "--format", "text"), "unexpected extra argument"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], said: str) -> None:
    line = failure("export", *args, check=2)
    assert said in line
    assert "(see shmrec-dump export --help)" in line


def test_what_cannot_be_done(tmp_path: Path) -> None:
    file = incident(tmp_path)
    assert "no snapshot in" in failure("export", "--dir", tmp_path / "none", "-f", "text")
    assert "cannot read" in failure("export", tmp_path / "none", "-f", "text")
    assert "there is no directory" in failure("export", file, "-o", tmp_path / "no" / "x.json")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"x" * 100)
    assert "is not a shmrec snapshot" in failure("export", damaged, "-o", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, out: object) -> None:
        raise OSError(28, "No space left on device")

    file = incident(tmp_path)
    monkeypatch.setattr(jsonl, "export", full)
    assert "No space left on device" in failure("export", file, "-o", tmp_path / "x.jsonl")
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_a_damaged_snapshot_is_exported_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = incident(tmp_path)
    cut = tmp_path / "cut.shmrec"
    cut.write_bytes(whole.read_bytes()[:-700])
    shown = dump("export", cut, "-f", "text").stdout
    assert "# damaged: the file ends early: its trailer is missing" in shown
    assert "boot" in shown


def test_a_terminal_gets_nothing_binary(tmp_path: Path) -> None:
    file = incident(tmp_path)
    primary, side = pty.openpty()
    for name in ("perfetto", "parquet"):
        done = subprocess.run(
            [*DUMP, "export", str(file), "-f", name],
            stdout=side,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 2
        assert f"{name} is no text: name a file with -o" in done.stderr
    os.close(side)
    os.close(primary)


def test_how_far_it_is_stands_on_a_terminal_only(tmp_path: Path) -> None:
    """Shown at once here, for a test does not wait for what takes a second."""
    file = many(tmp_path, 2_000)
    code = (
        "import sys; from shmrec.commands import progress; progress._AFTER = 0.0; "
        "from shmrec.commands.dump import main; main()"
    )
    command = [sys.executable, "-c", code, "export", str(file), "-f", "jsonl"]
    primary, side = pty.openpty()
    shown = environment({"TERM": "xterm"})
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=side, env=shown)
    os.close(side)
    said = os.read(primary, 65536).decode()
    os.close(primary)
    assert done.returncode == 0
    assert "exporting jsonl" in said
    piped = subprocess.run(command, capture_output=True, env=environment())
    assert (piped.returncode, piped.stderr) == (0, b"")
    assert piped.stdout == done.stdout
    assert len(done.stdout.splitlines()) == 2_000


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    file = many(tmp_path, 2_000)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*DUMP, "export", str(file), "-f", "text"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_every_format_is_in_the_help() -> None:
    shown = dump("export", "--help").stdout
    for name in formats.names():
        form = formats.format_named(name)
        assert f"  {name} " in shown
        assert form.suffixes[0] in shown
        assert form.help in shown


def test_a_directory_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubt(unfinished: hidden.Unfinished, name: str) -> None:
        unfinished.doubt = f"{name} may be gone"

    file = incident(tmp_path)
    monkeypatch.setattr(hidden.Unfinished, "_sync_name", doubt)
    done = dump("export", file, "-o", tmp_path / "x.txt")
    assert done.stderr == "shmrec-dump: x.txt may be gone\n"
    assert (tmp_path / "x.txt").exists()
