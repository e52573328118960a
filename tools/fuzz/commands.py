"""The command-line tools, run in this process over hostile input: how they must behave.

Used by the targets. Whatever there is to read, a tool prints text that drives no terminal, or
ASCII JSON, and ends with a status that is documented; no exception but shmrec's own leaves it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pkgutil
import unicodedata
from typing import Final
from unittest import mock

import click

from shmrec.commands import screen, verbs
from shmrec.commands.dump import dump
from shmrec.errors import ShmrecError

__all__ = ["run"]

# The tools import them as they are needed: too late for a fuzzer to count what they cover.
for _each in pkgutil.iter_modules(verbs.__path__, f"{verbs.__name__}."):
    importlib.import_module(_each.name)

_STATUS: Final = (0, 1)
_WIDTH: Final = 4096
"""Of tables. rich first fills each line with blanks up to it, which takes nearly all the time."""
_DRIVING: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that do something, or are not what they look like."""


def run(*args: object) -> tuple[object, str]:
    """The tool's status and what it printed; fails at what no tool may do."""
    words = [str(arg) for arg in args]
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(screen, "_UNBROKEN", _WIDTH),
        ):
            dump.main(words, prog_name="shmrec-dump", standalone_mode=False)
    except SystemExit as left:
        status = left.code
    except (ShmrecError, click.ClickException):
        status = 1
    assert status in _STATUS, f"{words[0]} ended with {status}"
    printed = out.getvalue()
    assert "Traceback" not in err.getvalue()
    if "--json" in words:
        assert printed.isascii(), f"{words[0]} --json is not ASCII"
        for line in printed.splitlines():
            json.loads(line, parse_constant=_no_number)
    for text in (printed, err.getvalue()):
        _harmless(words[0], text)
    return status, printed


def _harmless(verb: str, text: str) -> None:
    if text.isascii() and text.replace("\n", "").isprintable():
        return
    bad = {each for each in text if each != "\n" and unicodedata.category(each) in _DRIVING}
    assert not bad, f"{verb} printed {sorted(map(ascii, bad))}"


def _no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")
