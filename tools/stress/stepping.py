"""A build of shmrec that can be stopped at every step which its code names (`step: NAME`).

Runs in the trials of steps and in their tests. What is installed stays untouched: the package is
copied into a folder, a stop is put before and after each statement that bears a step's name, and
the extension is compiled there. Programs run from that folder find the copy.

Invariants: a statement with a stop is the one that was written, unchanged; where two steps follow
each other at once there is one stop between them, for what comes after the first is what comes
before the second.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tools.stress.tally import Impossible

__all__ = ["Build", "Stop", "build", "load_stops"]

ROOT: Final = Path(__file__).resolve().parents[2]
MODULE: Final = "shmrec_stops"
_STEP: Final = re.compile(r"(?:#|/\*) step: (?P<step>[a-z-]+)")
_STATEMENT: Final = re.compile(r"^(?P<indent> +)(?P<code>\S.*;)(?P<rest> +/\* step: .*\*/)?$")
_LIST: Final = "stops.json"


class Stop(NamedTuple):
    """A place to stop: `edge` is "before" or "after" the step."""

    number: int
    step: str
    edge: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.edge} {self.step} ({self.file}:{self.line})"


class Build(NamedTuple):
    """A folder with the instrumented package in it, and the stops that it has."""

    folder: Path
    stops: list[Stop]

    @classmethod
    def of(cls, folder: Path) -> Build:
        """The one that was built there."""
        rows = json.loads((folder / _LIST).read_text())
        return cls(folder, [Stop(*row) for row in rows])

    def program(self, module: str, *args: str, engine: str) -> subprocess.Popen[str]:
        """Start a program of this folder, with `engine` recording; its output is a pipe."""
        environment = {**os.environ, "SHMREC_ENGINE": engine}
        environment.pop("SHMREC_RECORDING", None)
        environment.pop("PYTHONPATH", None)
        return subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )


def compiler() -> str:
    """The C compiler; `Impossible` if there is none."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise Impossible("no C compiler, and the stops are in C")


def build(folder: Path) -> Build:
    """Make the instrumented copy in `folder`, which must not exist yet."""
    folder.mkdir(parents=True)
    stops: list[Stop] = []
    for name in ("shmrec", "tools/stress"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        )
    for path in sorted((folder / "shmrec").iterdir()):
        if path.suffix == ".py":
            text = _python(path, stops)
        elif path.suffix in (".c", ".h"):
            text = _c(path, stops)
        else:
            continue
        if text is not None:
            path.write_text(text)
    _compile(folder, "tools/stress/stops.c", f"{MODULE}{_suffix()}", "-O1")
    _compile(folder, "shmrec/_native.c", f"shmrec/_native{_suffix()}", "-O1")
    (folder / _LIST).write_text(json.dumps(stops))
    return Build(folder, stops)


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _compile(folder: Path, source: str, target: str, *flags: str) -> None:
    include = sysconfig.get_path("include")
    command = [compiler(), "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", *flags]
    command += [f"-I{include}", "-o", target, source]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Impossible(f"{source} does not compile with stops: {done.stderr.strip()}")


def _python(path: Path, stops: list[Stop]) -> str | None:
    """The module's text with stops, or None if it names no step."""
    text = path.read_text()
    lines = text.splitlines()
    named = {
        number: found["step"]
        for number, line in enumerate(lines, 1)
        if (found := _STEP.search(line)) is not None
    }
    if not named:
        return None
    added: dict[int, list[str]] = {}
    tree = ast.parse(text)
    bodies = [
        getattr(node, field)
        for node in ast.walk(tree)
        for field in ("body", "orelse", "finalbody")
        if isinstance(getattr(node, field, None), list)
    ]

    def put(number: int, indent: int, step: str, edge: str, line: int) -> None:
        stops.append(Stop(len(stops), step, edge, path.name, line))
        added.setdefault(number, []).append(f"{' ' * indent}_STOP[{stops[-1].number}]")

    for line, step in named.items():
        at = line + 1 if lines[line - 1].lstrip().startswith("#") else line
        body, place = _innermost(bodies, at)
        statement = body[place]
        put(statement.lineno, statement.col_offset, step, "before", line)
        inner = getattr(statement, "body", None)
        if inner:
            put(inner[0].lineno, inner[0].col_offset, step, "after", line)
        elif not _followed(statement, body[place + 1 : place + 2], named):
            end = statement.end_lineno or statement.lineno
            put(end + 1, statement.col_offset, step, "after", line)
    done: list[str] = []
    for number, line_text in enumerate([*lines, ""], 1):
        done += [*added.get(number, ()), line_text]
        if line_text.startswith("from __future__"):
            done.append(f"from {MODULE} import stop as _STOP")
    return "\n".join(done)


def _innermost(bodies: Sequence[list[ast.stmt]], line: int) -> tuple[list[ast.stmt], int]:
    """Where the smallest statement that spans the line is."""
    found = [
        (statement.lineno, body, place)
        for body in bodies
        for place, statement in enumerate(body)
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno)
    ]
    _, body, place = max(found, key=lambda row: row[0])
    return body, place


def _followed(statement: ast.stmt, rest: list[ast.stmt], named: dict[int, str]) -> bool:
    """Whether the next statement is a step too, and so has a stop before it."""
    if not rest:
        return False
    end = statement.end_lineno or statement.lineno
    return any(line in named for line in range(end + 1, rest[0].lineno + 1))


def _c(path: Path, stops: list[Stop]) -> str | None:
    """The same of C, where a step is a statement on a line of its own."""
    lines = path.read_text().splitlines()
    if not any(map(_STEP.search, lines)):
        return None
    done: list[str] = []
    pending = ""
    for number, line in enumerate(lines, 1):
        found = _STEP.search(line)
        if found and line.lstrip().startswith("/*"):
            pending = found["step"]
            done.append(line)
            continue
        step = found["step"] if found else pending
        pending = ""
        if not step:
            done.append(line)
            continue
        statement = _STATEMENT.match(line)
        assert statement is not None, f"{path.name}:{number}: a step is one statement on one line"
        indent = statement["indent"]
        stops.append(Stop(len(stops), step, "before", path.name, number))
        done += [f"{indent}SHMREC_STOP({stops[-1].number});", line]
        after = [each for each in lines[number : number + 1] if _STEP.search(each)]
        if not after:
            stops.append(Stop(len(stops), step, "after", path.name, number))
            done.append(f"{indent}SHMREC_STOP({stops[-1].number});")
    return _DECLARED + "\n".join(done) + "\n"


_DECLARED: Final = """\
#ifndef SHMREC_STOP
#define SHMREC_STOP(number) \\
    do { \\
        if (__builtin_expect(shmrec_stops_armed, 0)) { \\
            shmrec_stop(number); \\
        } \\
    } while (0)
extern int shmrec_stops_armed;
void shmrec_stop(int number);
#endif
"""


def load_stops() -> Any:
    """The stops, before shmrec is imported; None where shmrec has none."""
    if importlib.util.find_spec(MODULE) is None:
        return None
    flags = sys.getdlopenflags()
    # The extension's stops are the same ones as the python modules'.
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        return importlib.import_module(MODULE)
    finally:
        sys.setdlopenflags(flags)
