"""``shmrec-dump``: looks at recordings and snapshots.

Runs on a person's behalf, beside the recording or long after it. A verb is a module of
`shmrec.commands.verbs` whose `command` is a click command: it is found by its name.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from shmrec import cuts
from shmrec._version import __version__
from shmrec.commands import verbs
from shmrec.commands.terminal import run
from shmrec.store import SUFFIX

_DEFAULT: Final = "list"

_EPILOG: Final = """\b
Examples:
  shmrec-dump                      what is being recorded, and which snapshots there are
  shmrec-dump info                 what the newest snapshot says: read this first
  shmrec-dump events --tail 50     what happened last, in all processes
  shmrec-dump diff                 what changed since the snapshot before it
  shmrec-dump ps web               what every process of "web" is doing right now
  shmrec-dump top web              the same, again and again
  shmrec-dump tail web             its events as they are recorded
  shmrec-dump snapshot web         take a snapshot of it
  shmrec-dump recover web          read what is left when everything has been killed

Snapshots are looked for in --dir, by default $SHMREC_DIR, else $XDG_STATE_HOME/shmrec,
else ~/.local/state/shmrec. Where a FILE may be left out, the newest one is meant; where
a NAME is, the only recording that there is. `shmrec-dump help VERB` tells more of a verb.

\b
Exit status: 0, 1 if something could not be done (or verify found damage), 2 for wrong
usage. NO_COLOR=1 turns colours off; output that goes to a pipe has none. Long reports go
through $PAGER. For completion: eval "$(shmrec-dump completion bash)", or zsh.
"""


class _Verbs(click.Group):
    """The verbs, imported as they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"{verbs.__name__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        mine = {name for option in self.get_params(ctx) for name in option.opts}
        # What is only looked at for its completion is left as it was typed.
        if not ctx.resilient_parsing and (
            not args or (args[0].startswith("-") and args[0] not in mine)
        ):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        typed = args[0].endswith(SUFFIX) and not ctx.resilient_parsing
        if typed and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"{args[0]!r} is not a verb: did you mean `{ctx.command_path} info FILE`?")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs by their files, options as usual: nothing is imported that is not needed."""
        found = [
            CompletionItem(name, help=_described(name))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


def _described(verb: str) -> str:
    """What a verb's file says of it in its first line."""
    with open(Path(verbs.__path__[0]) / f"{verb}.py", encoding="utf-8") as source:
        said = source.readline().strip().strip('"')
    return said.partition("``: ")[2].rstrip(".")


@click.command(
    cls=_Verbs,
    epilog=_EPILOG,
    subcommand_metavar="[VERB] ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="shmrec-dump %(version)s")
def dump() -> None:
    """Look at recordings and snapshots of shmrec, the flight recorder.

    Without a VERB, does what `list` does.
    """


def main() -> None:
    """The entry point of ``shmrec-dump``."""
    # Those who record have the memory open, and may cut it short while it is read.
    cuts.bear_cuts()
    run(dump, "shmrec-dump")


if __name__ == "__main__":
    main()
