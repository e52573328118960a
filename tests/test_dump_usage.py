"""``shmrec-dump`` as a command: help, verbs by their files, statuses, one-line errors."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import re
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import shmrec
from shmrec.commands import verbs
from shmrec.commands.dump import dump as command

from .dumping import DUMP, dump, environment, failure
from .recordings import unserved

VERBS = sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))


def help_of(*args: str) -> str:
    result = CliRunner().invoke(command, [*args], prog_name="shmrec-dump")
    assert result.exit_code == 0
    return result.output


def test_verbs_are_the_files() -> None:
    assert VERBS == [
        "clean",
        "completion",
        "diff",
        "doctor",
        "events",
        "export",
        "help",
        "info",
        "list",
        "ps",
        "recover",
        "report",
        "scrub",
        "snapshot",
        "stacks",
        "tail",
        "top",
        "verify",
    ]
    shown = help_of("--help")
    assert re.findall(r"^  (\w+) ", shown[shown.index("Commands:") :], re.M)[: len(VERBS)] == VERBS
    assert "Examples:" in shown
    assert "NO_COLOR" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    shown = help_of(verb, "-h")
    assert shown == help_of(verb, "--help")
    assert f"Usage: shmrec-dump {verb}" in shown
    assert f"  shmrec-dump {verb}" in shown[shown.index("Examples:") :]
    assert max(map(len, shown.splitlines())) <= 100
    reading = verb in (
        "diff", "doctor", "list", "ps", "info", "events", "stacks", "tail", "top", "verify",
    )  # fmt: skip
    assert ("--json" in shown[: shown.index("Examples:")]) == reading


def test_events_help_defines_moments() -> None:
    shown = help_of("events", "-h")
    for part in ("5s ago", "before the snapshot was taken", "UTC", "ISO 8601"):
        assert part in shown


@pytest.mark.parametrize("verb", VERBS)
def test_help_as_a_verb(verb: str) -> None:
    assert dump("help", verb).stdout == dump(verb, "--help").stdout
    assert "Examples:" in dump("help", verb).stdout


def test_help_of_all_verbs() -> None:
    assert dump("help").stdout == dump("--help").stdout


def reference() -> dict[str, str]:
    """Of each verb, its row in the README's reference."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    part = text[text.index("\n## Reference\n") :]
    rows = re.findall(
        r"^\| `shmrec-dump (\w+)[^`]*` \| (.*)$", part[: part.index("\n## ", 4)], re.M
    )
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_the_readme_has_every_verb_and_every_option_and_no_others() -> None:
    assert isinstance(command, click.Group)
    rows = reference()
    assert sorted(rows) == VERBS
    for verb, row in rows.items():
        found = command.get_command(click.Context(command), verb)
        assert found is not None
        options = {
            name
            for parameter in found.params
            if isinstance(parameter, click.Option) and not parameter.hidden
            for name in parameter.opts
            if name.startswith("--")
        }
        assert set(re.findall(r"`(--[a-z-]+)", row)) == options, verb


def test_version() -> None:
    assert dump("--version", env={}).stdout == f"shmrec-dump {shmrec.__version__}\n"


def test_list_is_the_default_verb(tmp_path: Path) -> None:
    shown = dump(env={"SHMREC_DIR": str(tmp_path)}).stdout
    assert f"No snapshots in {tmp_path}." in shown
    assert dump("--json", "--dir", tmp_path).stdout.startswith('{"recordings": ')


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("info", "a", "b"),
        ("diff", "a", "b", "c"),
        ("info", "--nonsense"),
        ("list", "--dir"),
        ("events", "--kind", "name"),
        ("events", "--tail", "-1"),
        ("events", "--pid", "x"),
        ("events", "--since", "x"),
        ("snapshot", "web", "--timeout", "0"),
        ("snapshot", "web", "--reason", "x" * 600),
        ("x.shmrec",),
        ("help", "nonsense"),
        ("completion", "fish"),
        ("top", "web", "--interval", "0"),
        ("tail", "web", "-n", "-1"),
    ],
)
def test_wrong_usage(args: tuple[str, ...]) -> None:
    line = failure(*args, check=2)
    assert "--help" in line


def test_statuses_of_the_process(tmp_path: Path) -> None:
    assert failure("info", "--dir", tmp_path, env={})
    assert failure("info", "--nonsense", check=2, env={})
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"x")
    assert dump("verify", damaged, check=1, env={}).stderr == ""


@pytest.mark.parametrize("verb", ["info", "events", "verify", "diff"])
def test_no_snapshots_at_all(verb: str, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        line = failure(verb, "--dir", directory)
        assert f"no snapshot in {directory}" in line
        assert "shmrec-dump snapshot NAME" in line


def test_the_directory_follows_the_environment(tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path), "HOME": "/nowhere"}
    assert f"{tmp_path}/shmrec" in failure("info", env=state)
    given = {**state, "SHMREC_DIR": str(tmp_path / "given")}
    assert f"{tmp_path}/given" in failure("info", env=given)
    assert f"{tmp_path}/option" in failure("info", "--dir", tmp_path / "option", env=given)
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": ""}
    assert f"{tmp_path}/.local/state/shmrec" in failure("info", env=home)


def test_errors_are_harmless(tmp_path: Path) -> None:
    for args in (("info", "\x1b[31mx\n\x9b"), ("verify", "\u202e"), ("list", "--\x1b[2J")):
        done = dump(*args, check=None)
        assert done.returncode in (1, 2)
        assert all(char.isprintable() or char == "\n" for char in done.stderr)
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("recordings", [False, True])
def test_closed_output(recording_name: str, tmp_path: Path, recordings: bool) -> None:
    with unserved(recording_name) if recordings else contextlib.nullcontext():
        assert closed_output(tmp_path) == (141, b"")


def closed_output(tmp_path: Path) -> tuple[int, bytes]:
    """How `list` ends whose output nobody reads: its status, and what it says."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*DUMP, "list", "--dir", str(tmp_path)],
        stdout=write,
        stderr=subprocess.PIPE,
        # What is printed meets the closed pipe late, as it does for people.
        env=environment({"PYTHONUNBUFFERED": ""}),
    )
    os.close(write)
    return done.returncode, done.stderr


def test_an_output_without_unicode(tmp_path: Path) -> None:
    done = dump("list", "--dir", tmp_path / "é", env={"PYTHONIOENCODING": "ascii"})
    assert r"\xe9" in done.stdout
