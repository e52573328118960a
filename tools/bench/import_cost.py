"""What `import shmrec` costs over `import msgpack, posix_ipc`, in fresh interpreters.

They start without `site`, so that nothing which the environment preloads (an editable
install's finder, for one) hides a module's cost, and with compiled bytecode, as installed
packages have it.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgpack
import posix_ipc

import shmrec
from tools.bench import timing
from tools.bench.report import Options, Result

_FLOOR = "import msgpack, posix_ipc"
_ALL = "import msgpack, posix_ipc, shmrec"
_MARK = "shmrec-begins"
_LISTED = 12
_LINE = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)")


def measure(options: Options) -> list[Result]:
    """Wall time of whole interpreters that import and end."""
    rounds = 5 if options.quick else 25
    with tempfile.TemporaryDirectory(prefix="shmrec-bench-") as bytecode:
        candidates = {code: _interpreter(code, bytecode) for code in ("pass", _FLOOR, _ALL)}
        samples = timing.interleaved(candidates, rounds)
        details = _modules(bytecode, 1 if options.quick else 5) if options.verbose else ()
    over = [whole - below for whole, below in zip(samples[_ALL], samples[_FLOOR], strict=True)]
    return [
        Result(
            "import",
            "import shmrec, over msgpack and posix_ipc",
            statistics.median(over),
            "ms",
            {
                _FLOOR: round(timing.ratio(samples, _ALL, _FLOOR), 3),
                "bare interpreter": round(timing.ratio(samples, _ALL, "pass"), 3),
            },
            notes=f"whole interpreter {statistics.median(samples[_ALL]):.0f} ms",
            details=details,
        )
    ]


def _command(code: str, bytecode: str, *options: str) -> list[str]:
    """An isolated interpreter that finds what this one has imported."""
    modules = (msgpack, posix_ipc, shmrec)
    files = [Path(module.__file__ or "").resolve() for module in modules]
    # A package's file is inside its folder, a module's beside it.
    folders = [file.parents[1] if file.stem == "__init__" else file.parent for file in files]
    paths = list(dict.fromkeys(map(str, folders)))
    return [
        sys.executable,
        *("-I", "-S", "-X", f"pycache_prefix={bytecode}", *options),
        *("-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"),
    ]


def _interpreter(code: str, bytecode: str) -> timing.Sample:
    command = _command(code, bytecode)

    def sample() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True)
        return (time.perf_counter() - began) * 1e3

    return sample


def _modules(bytecode: str, runs: int) -> tuple[str, ...]:
    """The modules that take the most of what `import shmrec` adds, each without its imports."""
    code = f"{_FLOOR}\nsys.stderr.write({_MARK + chr(10)!r})\nimport shmrec"
    command = _command(code, bytecode, "-X", "importtime")
    costs: dict[str, list[int]] = {}
    for _ in range(runs):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for line in done.stderr.partition(_MARK)[2].splitlines():
            matched = _LINE.match(line)
            if matched:
                costs.setdefault(matched[2], []).append(int(matched[1]))
    least = {name: min(found) / 1e3 for name, found in costs.items()}
    total = sum(least.values())
    most = sorted(least.items(), key=lambda item: item[1], reverse=True)[:_LISTED]
    return (
        f"{len(least)} modules, {total:.1f} ms while being timed; the most by themselves:",
        *(f"{cost:6.2f} ms  {name}" for name, cost in most),
    )
