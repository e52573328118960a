"""The floors in C, and the compiler that makes them, for this run alone.

Nothing is installed or kept: the extension is built into a temporary directory that is gone
once it is loaded. Where there is no compiler the reason takes the floors' place.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

from tools.bench.report import NotMeasuredError

_SOURCE = Path(__file__).with_name("floors.c")
_BUILD_SECONDS = 120


def compiler() -> list[str]:
    """The C compiler's command: ``CC``, or the one that this Python was built with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def compiler_version() -> str:
    """The first line of what the compiler says of itself, or why it says nothing."""
    try:
        said = _run([*compiler(), "--version"])
    except NotMeasuredError as error:
        return str(error)
    return said.splitlines()[0] if said else shlex.join(compiler())


def compile_c(source: Path, target: Path, *options: str) -> None:
    """Compile and link one file; raises `NotMeasuredError` with the compiler's first error."""
    _run([*compiler(), "-O3", "-DNDEBUG", "-std=gnu11", str(source), "-o", str(target), *options])


@functools.cache
def load() -> ModuleType | NotMeasuredError:
    """The extension with `noop`, `clock`, `copy` and `scope`, or why there is none.

    Each takes any arguments. All but `scope`, whose result is a context manager that does
    nothing, return None.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="shmrec-bench-") as made:
            target = Path(made, "floors.so")
            include = sysconfig.get_path("include")
            compile_c(_SOURCE, target, "-shared", "-fPIC", f"-I{include}")
            loader = importlib.machinery.ExtensionFileLoader("floors", str(target))
            spec = importlib.util.spec_from_loader("floors", loader)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
    except NotMeasuredError as error:
        return error
    except (ImportError, OSError) as error:
        return NotMeasuredError(f"the floors in C do not load: {error}")
    return module


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "it took too long"
        raise NotMeasuredError(f"no C compiler: {command[0]}: {reason}") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        told = [line for line in lines if "error" in line] or lines or [f"exit {done.returncode}"]
        raise NotMeasuredError(f"{command[0]} failed: {told[0].strip()}")
    return done.stdout
