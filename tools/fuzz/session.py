#!/usr/bin/env python3
"""One target under atheris, in a process of its own: `tools/fuzz/run` starts it.

    session.py TARGET UNTIL [libFuzzer's arguments]

Runs until CLOCK_MONOTONIC shows UNTIL or an input fails; libFuzzer then writes that input down
and ends the process. Only what a target's module imports is seen by the fuzzer.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
from pathlib import Path
from typing import Final

# A program, not a package that is installed: the checkout's root is where `tools` is found.
sys.path[0] = str(Path(__file__).resolve().parents[2])

import atheris  # noqa: E402

from tools.fuzz.limits import limited  # noqa: E402
from tools.fuzz.mutation import by_structure  # noqa: E402
from tools.fuzz.target import Target  # noqa: E402

_SLOWER: Final = 4.0
"""What counting costs, and the sanitizers."""
_ADDRESSES: Final = 1 << 30
"""Bytes of address space beyond what there is at the start."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def _target(name: str) -> Target:
    with atheris.instrument_imports(include=["shmrec"], enable_loader_override=False):
        return importlib.import_module(f"tools.fuzz.{name}")


def _bound_addresses() -> None:
    """No input may even reserve much more: it gets a MemoryError, which no target expects."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * _PAGE + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Fuzz; does not return."""
    target = _target(sys.argv[1])

    def one(data: bytes) -> None:
        with limited(_SLOWER):
            target.check(data)

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        begins: int = target.MSGPACK  # type: ignore[attr-defined]
        return by_structure(data, longest, seed, begins, atheris.Mutate)

    options = {"custom_mutator": mutator} if hasattr(target, "MSGPACK") else {}
    if "SHMREC_SANITIZED" not in os.environ:
        _bound_addresses()
    # Starting takes a while too.
    left = max(1, round(float(sys.argv[2]) - time.monotonic()))
    given = [sys.argv[0], *sys.argv[3:], f"-max_total_time={left}"]
    atheris.Setup(given, one, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
