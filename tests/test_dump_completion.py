"""Completion in real shells: verbs, options, recordings, snapshots; and what it costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .dumping import DUMP, environment
from .recordings import unserved
from .terminals import Tmux, needs_tmux

SNAPSHOTS = (
    "shop-20260131T120000Z-requested-1.shmrec",
    "shop-20260131T120001Z-death-of-w-first-1.shmrec",
)


def complete(
    *words: str, tool: str = "shmrec-dump", env: dict[str, str] | None = None
) -> list[str]:
    """What is offered for the last word, asked as bash does."""
    module = {"shmrec-dump": "dump", "shmrec-collect": "collect"}[tool]
    done = subprocess.run(
        [sys.executable, "-m", f"shmrec.commands.{module}"],
        capture_output=True,
        text=True,
        env=environment(
            {
                f"_{tool.replace('-', '_').upper()}_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join((tool, *words)),
                "COMP_CWORD": str(len(words)),
                **(env or {}),
            }
        ),
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in SNAPSHOTS:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "x\n\x1b[31m-20260131T120000Z-requested-1.shmrec").write_bytes(b"x")
    return tmp_path


def test_what_is_offered(recording_name: str, directory: Path) -> None:
    assert complete("ver") == ["plain,verify"]
    assert "plain,info" in complete("")
    assert "plain,--version" in complete("--")
    assert {"plain,--kind", "plain,--json"} <= set(complete("events", "--"))
    assert complete("events", "--kind", "exc") == ["plain,exception"]
    assert complete("help", "rec") == ["plain,recover"]
    assert complete("completion", "z") == ["plain,zsh"]
    assert complete("nonsense", "") == complete("")
    assert "plain,--trigger" in complete("--tri", tool="shmrec-collect")
    with unserved(recording_name):
        for verb in ("ps", "top", "tail", "snapshot", "recover"):
            assert complete(verb, recording_name[:-1]) == [f"plain,{recording_name}"]
    found = sorted(f"plain,{name}" for name in SNAPSHOTS)
    env = {"SHMREC_DIR": str(directory)}
    for verb in ("info", "events", "stacks", "verify", "diff"):
        assert sorted(complete(verb, "", env=env)) == found
    assert sorted(complete("info", "--dir", str(directory), "sho")) == found
    # Any other file is the shell's to complete.
    assert complete("info", "/tmp/x", env=env) == ["file,/tmp/x"]
    assert complete("info", "", env={"SHMREC_DIR": "/nowhere"}) == ["file,"]


def test_verbs_are_completed_without_importing_them() -> None:
    program = (
        "import sys; from shmrec.commands.dump import dump; import click\n"
        "found = dump.shell_complete(click.Context(dump), '')\n"
        "assert all(each.help for each in found), found\n"
        "heavy = ('rich', 'shmrec.commands.verbs.')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


SHELLS = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "zsh": ("zsh", "-f", "-i"),
}


@needs_tmux
@pytest.mark.parametrize("shell", SHELLS)
def test_in_a_real_shell(shell: str, recording_name: str, directory: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    tools = directory / "bin"
    tools.mkdir()
    for tool, module in (("shmrec-dump", "dump"), ("shmrec-collect", "collect")):
        run = tools / tool
        run.write_text(f'#!/bin/sh\nexec {DUMP[0]} -m shmrec.commands.{module} "$@"\n')
        run.chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "SHMREC_DIR": str(directory), "PS1": "$ "}
    with unserved(recording_name), Tmux(*SHELLS[shell], columns=150, env=env) as terminal:
        start = "autoload -Uz compinit && compinit -u -D; " * (shell == "zsh")
        terminal.type(f'PS1="$ "; {start}eval "$(shmrec-dump completion {shell})"; echo re""ady')
        terminal.keys("Enter")
        terminal.see("ready")
        for typed, completed in (
            ("shmrec-dump veri", "shmrec-dump verify "),
            ("shmrec-dump events --co", "shmrec-dump events --count "),
            (f"shmrec-dump ps {recording_name[:-1]}", f"shmrec-dump ps {recording_name}"),
            ("shmrec-dump info shop-20260131T120001", f"shmrec-dump info {SNAPSHOTS[1]}"),
            ("shmrec-collect --quota-c", "shmrec-collect --quota-count"),
        ):
            terminal.keys("C-l")
            terminal.type(typed)
            terminal.keys("Tab")
            terminal.see(completed.rstrip())
            terminal.keys("C-u")
