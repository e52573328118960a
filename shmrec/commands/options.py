"""An option whose default ``--help`` shows, declared in one way by both tools.

Runs in the command-line tools. Imports nothing of what it is an option for: the collector starts
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["defaulted"]

_F = TypeVar("_F", bound=Callable[..., Any])


def defaulted(
    names: str, kind: Any, default: Any, said: str, *, shown: str | bool = True, unit: str = ""
) -> Callable[[_F], _F]:
    """The option of these names, written as in ``--help``; `said` is its help.

    `shown` is the default as a person writes it, `unit` what stands for a value of no usual kind.
    """
    return click.option(
        *names.split(", "),
        type=kind,
        default=default,
        help=said,
        show_default=shown,
        metavar=unit or None,
    )
