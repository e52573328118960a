"""``shmrec-dump help``: what a verb does, its options, examples."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import CompletionItem

from shmrec.commands.pager import paged, pager_option

_EPILOG: Final = """\b
Examples:
  shmrec-dump help
  shmrec-dump help events
"""


def _complete(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    group = context.find_root().command
    assert isinstance(group, click.Group)
    return [
        CompletionItem(name) for name in group.list_commands(context) if name.startswith(incomplete)
    ]


@click.command("help", epilog=_EPILOG, short_help="Say what a verb does, with examples.")
@click.argument("verb", required=False, shell_complete=_complete)
@pager_option
def command(verb: str | None, no_pager: bool) -> None:
    """Say what VERB does, with its options and examples; without one, which verbs there are."""
    context = click.get_current_context()
    above = context.parent
    assert above is not None
    group = above.command
    assert isinstance(group, click.Group)
    shown = above.get_help()
    if verb is not None:
        found = group.get_command(above, verb)
        if found is None:
            raise click.UsageError(
                f"there is no verb {verb!r}: `shmrec-dump help` lists them", context
            )
        shown = found.get_help(
            click.Context(found, above, info_name=verb, **found.context_settings)
        )
    with paged(no_pager):
        click.echo(shown)
