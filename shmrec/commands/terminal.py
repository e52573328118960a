"""What all command-line tools share: how they end.

A user's mistake is one line on stderr: status 2 for wrong usage, 1 for a failure. A reader
that goes away (``| head``) ends the tool quietly.
"""

from __future__ import annotations

import contextlib
import os
import sys

import click

from shmrec.errors import ShmrecError

__all__ = ["run"]


def run(command: click.Command, name: str) -> None:
    """Run a tool and exit with its status."""
    try:
        command.main(prog_name=name, standalone_mode=False)
        status = 0
    except click.exceptions.Exit as leave:
        status = leave.exit_code
    except click.UsageError as error:
        hint = f" (see {name} --help)" if error.ctx is None else f" (see {_path(error)} --help)"
        _say(f"{name}: {error.format_message()}{hint}")
        status = 2
    except click.ClickException as error:
        _say(f"{name}: {error.format_message()}")
        status = 1
    except (click.Abort, KeyboardInterrupt):
        _say(f"{name}: interrupted")
        status = 130
    except ShmrecError as error:
        _say(f"{name}: {error}")
        status = 1
    except BrokenPipeError:
        # Whoever read the output has seen enough; keep the interpreter from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        _say(f"{name}: {about}{error.strerror or error}")
        status = 1
    with contextlib.suppress(BrokenPipeError, ValueError):
        sys.stdout.flush()
    sys.exit(status)


def _path(error: click.UsageError) -> str:
    assert error.ctx is not None
    return error.ctx.command_path


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(" ".join(line.split()), file=sys.stderr)
