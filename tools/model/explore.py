"""Explores the model of the protocol: what holds, and which mutants are caught.

`tools/model/run` starts it. Every exploration is exhaustive (no bitstate hashing) and stays
under MEMORY_MB; one that does not end so proves nothing and counts as failed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).with_name("protocol.pml")
MEMORY_MB: Final = 1950
MISSING: Final = 77

PROPERTIES: Final = {"KEPT": 1001, "WHOLE": 1002, "COMPLETE": 1003, "ENDS": 1004}
_NAMES: Final = {str(number): name for name, number in PROPERTIES.items()}

TWO: Final = "RINGS=2 PROCESSES=2 COARSE"
"""Two rings; each is read in one step, for how one is read is explored with one producer."""
LATE: Final = "RINGS=1 PROCESSES=2 EVENTS=1 JOIN FLUSHES=1"


@dataclass(frozen=True)
class Case:
    """One exploration: macros for the model, and the property that it must break, if any."""

    name: str
    macros: str
    broken: str = ""
    quick: bool = False


HOLDS: Final = (
    Case("one producer, one flush, quick", "EVENTS=2 FLUSHES=1 KILL STOP", quick=True),
    Case("one producer, two flushes, quick", "EVENTS=2", quick=True),
    Case("one producer laps its ring, one flush", "EVENTS=4 FLUSHES=1"),
    Case("one flush, death or stop at any step", "EVENTS=4 FLUSHES=1 KILL STOP"),
    Case("two flushes", "EVENTS=4"),
    Case("two flushes, death or stop at any step", "EVENTS=3 KILL STOP"),
    Case("two events a batch, one flush", "EVENTS=5 CAPACITY=2 FLUSHES=1"),
    Case("two events a batch, two flushes", "EVENTS=4 CAPACITY=2"),
    Case("two snapshots, one flush each", "EVENTS=3 FLUSHES=1 SNAPSHOTS=2"),
    Case("the producer's own fence, one flush", "EVENTS=4 OWN_FENCE FLUSHES=1"),
    Case("no fence, two flushes, quick", "EVENTS=2 NO_FENCE", quick=True),
    Case("no fence, two flushes", "EVENTS=3 NO_FENCE"),
    Case("weak order, native fences", "EVENTS=4 WEAK FLUSHES=1"),
    Case("two producers, one flush", f"{TWO} EVENTS=2 FLUSHES=1"),
    Case("two producers, two flushes", f"{TWO} EVENTS=2"),
    Case("two producers, one flush, deaths, stops", f"{TWO} EVENTS=2 FLUSHES=1 KILL STOP"),
    Case("two producers, no fence, two flushes", f"{TWO} EVENTS=1 NO_FENCE"),
    Case("fork between two events", f"{TWO} EVENTS=2 FLUSHES=1 FORK=1"),
    Case("late join of a free ring", f"{TWO} EVENTS=1 FLUSHES=1 JOIN"),
    Case("late join of a ring that was left", f"{LATE} EVENTS=2 DETACH"),
    Case("late join of a dead producer's ring", f"{LATE} KILL SNAPSHOTS=2"),
    Case("three want one ring, deaths", f"{LATE} PROCESSES=3 KILL COARSE"),
    Case("collector killed at any step, quick", "EVENTS=1 RESTART", quick=True),
    Case("collector killed at any step", "EVENTS=3 RESTART"),
    Case("opening late, deaths", "EVENTS=4 FLUSHES=1 KILL M_OPENING_LATE"),
    Case("opening late, a dead producer's ring", f"{LATE} KILL SNAPSHOTS=2 M_OPENING_LATE"),
    Case("opening not read again, deaths", "EVENTS=4 FLUSHES=1 KILL M_OPENING_ONCE"),
    Case("number not zeroed, deaths", "EVENTS=4 FLUSHES=1 KILL M_NO_ZERO"),
    Case("number not read again, deaths", "EVENTS=4 FLUSHES=1 KILL M_NUMBER_ONCE"),
    Case("it ends, deadline only when stopped", f"{TWO} EVENTS=1 FLUSHES=1 KILL STOP PATIENT"),
)

MUTANTS: Final = (
    Case("returned before committed", "EVENTS=1 FLUSHES=1 M_RETURN_EARLY", "KEPT", True),
    Case("the cut a generation early", "EVENTS=3 FLUSHES=1 SNAPSHOTS=2 M_CUT_EARLY", "KEPT"),
    Case("lapped during the scan, no second", "EVENTS=4 FLUSHES=1 M_LAPPED", "KEPT", True),
    Case("a dead ring claimed unsettled", f"{LATE} KILL COARSE M_CLAIM_UNSETTLED", "KEPT"),
    Case("committed before the payload", "EVENTS=2 FLUSHES=1 M_COMMITTED_EARLY", "WHOLE", True),
    Case("number before the fields", "EVENTS=2 FLUSHES=1 M_NUMBER_EARLY", "WHOLE", True),
    Case("python engine, weak order", "EVENTS=1 FLUSHES=1 WEAK M_NO_WALLS", "WHOLE"),
    Case("an old owner's numbers stay", f"{LATE} DETACH M_NUMBERS_STAY", "WHOLE", True),
    Case("incarnation not read again", f"{LATE} DETACH M_OWNER_ONCE", "WHOLE", True),
    Case("no fence and one flush", "EVENTS=2 FLUSHES=1 NO_FENCE", "COMPLETE", True),
    Case("no fence, the first look trusted", "EVENTS=2 NO_FENCE M_FIRST_LOOK", "COMPLETE", True),
    Case("generation read too early", "EVENTS=2 FLUSHES=1 M_GENERATION_EARLY", "COMPLETE", True),
    Case("producers counted before the advance", f"{TWO} EVENTS=1 FLUSHES=1 JOIN M_ENUMERATE_EARLY",
         "COMPLETE"),
    Case("a new collector counts anew", "EVENTS=3 RESTART FLUSHES=1 M_GENERATION_ANEW", "COMPLETE"),
    Case("a child writes into its parent's ring", f"{TWO} EVENTS=3 FLUSHES=1 FORK=1 M_GUARD_STAYS",
         "COMPLETE", True),
    Case("no deadline", "EVENTS=1 FLUSHES=1 STOP PATIENT M_NO_DEADLINE", "ENDS", True),
    Case("the dead not looked for", "EVENTS=1 FLUSHES=1 KILL PATIENT M_NO_ENDED", "ENDS", True),
    Case("a lock that outlives its holder", f"{LATE} PROCESSES=3 KILL COARSE M_LOCK_STAYS", "ENDS",
         True),
)  # fmt: skip

GUARDS: Final = (
    ("M_OPENING_LATE", "opening published late"),
    ("M_OPENING_ONCE", "opening not read again"),
    ("M_NO_ZERO", "number not zeroed"),
    ("M_NUMBER_ONCE", "number not read again"),
)
_QUICK: Final = {
    ("M_OPENING_LATE", "M_NO_ZERO"),
    ("M_OPENING_LATE", "M_NUMBER_ONCE"),
    ("M_OPENING_ONCE", "M_NO_ZERO"),
    ("M_OPENING_ONCE", "M_NUMBER_ONCE"),
}


def guards() -> Iterator[Case]:
    """What protects a copy, in all combinations: whole unless one of each pair is missing."""
    for missing in product((False, True), repeat=len(GUARDS)):
        gone = [guard for guard, out in zip(GUARDS, missing, strict=True) if out]
        names = tuple(macro for macro, _ in gone)
        torn = (missing[0] or missing[1]) and (missing[2] or missing[3])
        for order in ("", "WEAK"):
            yield Case(
                (", ".join(text for _, text in gone) or "all guards") + (order and ", weak order"),
                " ".join(("EVENTS=4", "FLUSHES=1", f"ONLY={PROPERTIES['WHOLE']}", order, *names)),
                "WHOLE" if torn else "",
                names in _QUICK and not order,
            )


@dataclass(frozen=True)
class Verdict:
    """What an exploration found: the property broken, or "" for none; `failure` if it failed."""

    broken: str
    states: int
    seconds: float
    failure: str = ""


def explore(case: Case, compiler: str) -> Verdict:
    """Explore one case in a folder of its own."""
    began = time.monotonic()
    macros: dict[str, str] = {}
    for macro in case.macros.split():
        name, _, value = macro.partition("=")
        macros[name] = f"-D{name}={value or 1}"
    if case.broken:
        macros.setdefault("ONLY", f"-DONLY={PROPERTIES[case.broken]}")
    with tempfile.TemporaryDirectory(prefix="shmrec-model-") as folder:

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, cwd=folder, capture_output=True, text=True)

        made = run("spin", "-a", *macros.values(), str(MODEL))
        if made.returncode:
            return Verdict("", 0, 0, f"spin: {(made.stdout + made.stderr).strip()[:300]}")
        # Small ones take longer to compile than to explore.
        optimized = "-O2" if not case.quick else "-O0" if case.broken else "-O1"
        options = ("-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={MEMORY_MB}")
        made = run(compiler, "-w", optimized, *options, "-o", "pan", "pan.c")
        if made.returncode:
            return Verdict("", 0, 0, f"{compiler}: {made.stderr.strip()[:300]}")
        # -E: who waits for ever is told by the model's own Watch, which knows who may.
        said = run("./pan", "-E", "-m200000").stdout
    stored = re.search(r"(\d+) states, stored", said)
    states = int(stored[1]) if stored else 0
    seconds = time.monotonic() - began
    violated = re.search(r"assertion violated .*?\((\d+)==0\)", said)
    if violated:
        return Verdict(_NAMES.get(violated[1], "?"), states, seconds)
    whole = re.search(r"errors: 0\b", said) and "Search not completed" not in said
    if not whole or "max search depth too small" in said:
        return Verdict("", states, seconds, "not explored to the end: " + said[:200])
    return Verdict("", states, seconds)


def judge(case: Case, verdict: Verdict) -> tuple[bool, str]:
    """Whether it is as it should be, and what to say about it."""
    if verdict.failure:
        return False, f"FAILED ({verdict.failure})"
    if not case.broken:
        told = "holds: " + ("WHOLE" if "ONLY" in case.macros else " ".join(PROPERTIES))
        return not verdict.broken, f"BROKEN: {verdict.broken}" if verdict.broken else told
    if verdict.broken == case.broken:
        return True, f"caught: {case.broken}"
    return False, f"NOT CAUGHT by {case.broken}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/model/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the part that takes half a minute")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose name has this")
    given = parser.parse_args()
    compiler = shutil.which("cc") or shutil.which("gcc")
    if shutil.which("spin") is None:
        print("spin is not installed (Debian: apt-get install spin)", file=sys.stderr)
        return MISSING
    if compiler is None:
        print("there is no C compiler (cc or gcc)", file=sys.stderr)
        return MISSING
    parts = ("configuration", HOLDS), ("mutant", MUTANTS), ("guards", tuple(guards()))
    wrong = total = states = 0
    for part, cases in parts:
        for case in cases:
            if (given.quick and not case.quick) or given.only not in case.name:
                continue
            verdict = explore(case, compiler)
            right, told = judge(case, verdict)
            total += 1
            wrong += not right
            states += verdict.states
            print(
                f"{part}: {case.name}: {told} ({verdict.states} states, {verdict.seconds:.1f} s)",
                flush=True,
            )
    print(f"{total - wrong} of {total} as they should be, {states} states")
    return 1 if wrong or not total else 0


if __name__ == "__main__":
    sys.exit(main())
