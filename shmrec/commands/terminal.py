"""What all command-line tools share: how they end.

A user's mistake is one line on stderr: status 2 for wrong usage, 1 for a failure. A reader
that goes away (``| head``) ends the tool quietly. click's own ``main`` is not used, because it
answers a closed pipe, an interrupt and a command's status in its own way.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import click

from shmrec.commands.wording import safe
from shmrec.errors import ShmrecError
from shmrec.log import say

__all__ = ["completion_variable", "print_path", "run", "warn"]

_INTERRUPTED = 128 + signal.SIGINT
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\N{ARABIC LETTER MARK}\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}"
    "\N{LINE SEPARATOR}-\N{RIGHT-TO-LEFT OVERRIDE}"
    "\N{LEFT-TO-RIGHT ISOLATE}-\N{POP DIRECTIONAL ISOLATE}]"
)
_PIPE_CLOSED = 128 + signal.SIGPIPE


def run(command: click.Command, name: str) -> None:
    """Run a tool and exit with its status; or complete its command line, as a shell asked."""
    _prepare_streams()
    asked = os.environ.get(completion_variable(name))
    if asked:
        sys.exit(_completed(command, name, asked))
    try:
        status = _status_of(command, name)
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    sys.exit(_flushed(status, name))


def warn(text: str) -> None:
    """A line on stderr beside the tool's answer."""
    context = click.get_current_context(silent=True)
    name = context.find_root().info_name if context is not None else "shmrec"
    _say(f"{name}: {text}")


def completion_variable(name: str) -> str:
    """The variable by which a shell asks a tool to complete its command line."""
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


def _completed(command: click.Command, name: str, asked: str) -> int:
    """Answer the shell, in click's own way; whatever goes wrong, nothing is in its way."""
    from click.shell_completion import shell_complete

    try:
        return shell_complete(command, {}, name, completion_variable(name), asked)
    except (click.ClickException, ShmrecError, OSError, KeyError, ValueError):
        return 1


def print_path(path: str | Path) -> None:
    """A path as the tool's answer: on a terminal as a text, elsewhere for programs to take.

    Those get its very bytes, but for controls of terminals, lines and directions, which are in
    no path that means well.
    """
    if sys.stdout.isatty():
        click.echo(safe(path))
    else:
        click.echo(os.fsencode(_CONTROL.sub(lambda found: safe(found[0]), str(path))))


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Started with the descriptor closed: there is nobody to tell.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif hasattr(stream, "reconfigure"):
            # What a terminal's encoding lacks is shown escaped, not refused.
            stream.reconfigure(errors="backslashreplace")


def _status_of(command: click.Command, name: str) -> int:
    try:
        with command.make_context(name, sys.argv[1:]) as context:
            command.invoke(context)
        return 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else name
        _say(f"{name}: {error.format_message()} (see {path} --help)")
        return 2
    except click.ClickException as error:
        _say(f"{name}: {error.format_message()}")
        return 1
    except (click.Abort, KeyboardInterrupt):
        _say(f"{name}: interrupted")
        return _INTERRUPTED
    except ShmrecError as error:
        _say(f"{name}: {error}")
        return 1
    except BrokenPipeError:
        return _PIPE_CLOSED
    except OSError as error:
        _say(f"{name}: {_described(error)}")
        return 1
    except MemoryError:
        _say(f"{name}: out of memory")
        return 1


def _flushed(status: int, name: str) -> int:
    """Write out what is buffered; the tool's status afterwards."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or _PIPE_CLOSED
    except (OSError, ValueError) as error:
        _say(f"{name}: cannot write the output: {_described(error)}")
        status = status or 1
    else:
        return status
    # The interpreter flushes once more at its end, and would complain.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _described(error: Exception) -> str:
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _say(line: str) -> None:
    say(safe(" ".join(line.split())))
