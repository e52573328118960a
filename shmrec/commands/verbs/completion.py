"""``shmrec-dump completion``: has bash or zsh complete what is typed."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from shmrec.commands.terminal import completion_variable

_TOOLS: Final = ("shmrec-dump", "shmrec-collect")

_EPILOG: Final = """\b
It completes verbs, options, names of recordings, and snapshots in --dir.

\b
Examples:
  shmrec-dump completion bash >> ~/.bashrc
  eval "$(shmrec-dump completion bash)"
  eval "$(shmrec-dump completion zsh)"          in ~/.zshrc, behind `compinit`
"""


@click.command("completion", epilog=_EPILOG, short_help="Complete what is typed in a shell.")
@click.argument("shell", type=click.Choice(("bash", "zsh")))
def command(shell: str) -> None:
    """Print what bash or zsh reads to complete the command lines of shmrec's tools."""
    completion = get_completion_class(shell)
    assert completion is not None
    root = click.get_current_context().find_root().command
    for tool in _TOOLS:
        click.echo(completion(root, {}, tool, completion_variable(tool)).source())
