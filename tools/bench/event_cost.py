"""The cost of recording one event, by every engine, attached and not, in its own ring.

Floors: calls of C functions with the very same arguments, which do nothing, read the clock, or
copy an event besides (`floors.c`); and packing the same event with a reused `msgpack.Packer`,
its tuple and dictionary built at the call as the event's arguments are. The native engine is
held to the C floors, the python engine to the packing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

import shmrec
from tools.bench import engines, floors, timing
from tools.bench.report import NotMeasuredError, Options, Result

_DELTA = 5_000
_NAME_ID = 5
_SPAN = 1_000
_UNATTACHED = 1.5, 1.2
_PYTHON_TARGET = 5.0

NOOP = "no-op"
CLOCK = "no-op+clock"
COPY = "no-op+clock+copy"
PACK = "pack"
_LOOK = "monotonic_ns()"
_C_FLOORS = {NOOP: "noop", CLOCK: "clock", COPY: "copy"}


@dataclass(frozen=True)
class Case:
    """A way to record: the call, and what stands for it in the floors.

    `idle` is the floor's code when nothing is attached. `target` and `prize` are those of the
    native engine, attached, as multiples of the no-op that looks at the clock.
    """

    title: str
    call: str
    arguments: str
    idle: str
    packs: tuple[str, ...] = ()
    target: float | None = None
    prize: float | None = None
    python_target: float | None = None

    @property
    def attached(self) -> bool:
        """Whether it is measured attached too."""
        return bool(self.packs)


_NAME = '"request"'
_ARGS = '"request", n=3, path="/x"'
_SPAN_PACKS = ("(4, delta, name, span_id)", "(5, delta, name, delta, span_id)")
INSTANT = Case(
    'instant(name, n=3, path="/x")',
    f"instant({_ARGS})",
    _ARGS,
    f"noop({_ARGS})",
    ('(3, delta, name, {"n": 3, "path": "/x"})',),
    2.2,
    1.8,
    python_target=_PYTHON_TARGET,
)
SPAN = Case(
    "with span(name)",
    f"with span({_NAME}):\n    pass",
    _NAME,
    f"with scope({_NAME}):\n    pass",
    _SPAN_PACKS,
    3.3,
    2.5,
)
COUNTER = Case(
    "counter(name, 7)",
    f"counter({_NAME}, 7)",
    f"{_NAME}, 7",
    f"noop({_NAME}, 7)",
    ("(6, delta, name, 7)",),
    1.6,
    1.3,
)
_CASES = (
    Case(
        "instant(name)",
        f"instant({_NAME})",
        _NAME,
        f"noop({_NAME})",
        ("(3, delta, name)",),
        1.5,
        1.25,
    ),
    INSTANT,
    SPAN,
    Case(
        "begin(name) + end(id)",
        f"end(begin({_NAME}))",
        _NAME,
        f"noop(noop({_NAME}))",
        _SPAN_PACKS,
        2.8,
        2.2,
    ),
    COUNTER,
    # Its own case only where a with statement would drown it.
    Case("span(name)", f"span({_NAME})", _NAME, f"noop({_NAME})"),
)


def calls(recorder: shmrec.Recorder) -> dict[str, Any]:
    """The recorder's hot calls by name."""
    names = ("instant", "span", "begin", "end", "counter")
    return {name: getattr(recorder, name) for name in names}


def c_floors() -> dict[str, Any]:
    """The C floors by name; none where they cannot be built."""
    found = floors.load()
    if isinstance(found, NotMeasuredError):
        return {}
    return {name: getattr(found, name) for name in ("noop", "clock", "copy", "scope")}


def floor_code(floor: str, arguments: str) -> str:
    """A C floor's call; it names the floor's candidate too."""
    return f"{_C_FLOORS[floor]}({arguments})"


def measure(options: Options) -> list[Result]:
    """The floors, then by engine every case attached, then every case unattached."""
    rounds, number = (15, 100) if options.quick else (200, 300)
    candidates = {_LOOK: timing.statement("clock()", {"clock": time.monotonic_ns}, number)}
    c_calls = c_floors()
    if c_calls:
        codes = [floor_code(floor, case.arguments) for floor in _C_FLOORS for case in _CASES]
        codes += [case.idle for case in _CASES]
        candidates |= {code: timing.statement(code, c_calls, number) for code in codes}
    # Of a type that nothing else packs here: a Packer that others use would be reset by them.
    values = {
        "pack": msgpack.Packer().pack,
        "delta": _DELTA,
        "name": _NAME_ID,
        "span_id": _SPAN,
    }
    for case in _CASES:
        if case.packs:
            packs = "; ".join(f"pack({value})" for value in case.packs)
            candidates[_pack(case)] = timing.statement(packs, values, number)
    shown = list(candidates)
    idle = engines.unattached()
    with engines.attached(options.directory) as recorders:
        for engine, recorder in recorders.items():
            for case in _CASES:
                names = {True: calls(recorder), False: calls(idle[engine])}
                for attached in (True, False) if case.attached else (False,):
                    candidates[_name(engine, case, attached)] = timing.statement(
                        case.call, names[attached], number
                    )
        samples = timing.interleaved(candidates, rounds)
    results = [_floor_result(samples, name) for name in shown]
    results += absent(floors.load(), "floors", "in C")
    for engine, reason in engines.availability().items():
        for attached in (True, False):
            results += [
                _result(samples, engine, case, attached, reason)
                for case in _CASES
                if case.attached or not attached
            ]
    return results


def absent(found: object, measurement: str, case: str) -> list[Result]:
    """The line that stands for what could not be measured, if that is what was found."""
    if not isinstance(found, NotMeasuredError):
        return []
    return [Result(measurement, case, None, "", notes=str(found))]


def _name(engine: str, case: Case, attached: bool) -> str:
    return f"{engine}: {case.title}{'' if attached else ', unattached'}"


def _pack(case: Case) -> str:
    return f"pack for {case.title}"


def _floor_result(samples: timing.Samples, name: str) -> Result:
    return Result("floors", _one_line(name), statistics.median(samples[name]), "ns")


def _one_line(code: str) -> str:
    return " ".join(code.split())


def _floors(case: Case, attached: bool, engine: str) -> dict[str, str]:
    """The candidates that are this case's floors, the one that judges it first."""
    if not attached:
        return {_one_line(case.idle): case.idle}
    in_c = {floor: floor_code(floor, case.arguments) for floor in (CLOCK, NOOP, COPY)}
    if case is SPAN:
        # For information: two of a with statement's three calls are in no other floor.
        in_c[_one_line(case.idle)] = case.idle
    pack = {PACK: _pack(case)}
    return in_c | pack if engine == engines.NATIVE else pack | in_c


def _promise(case: Case, attached: bool, engine: str) -> tuple[float | None, float | None]:
    """Target and prize."""
    if engine != engines.NATIVE:
        return case.python_target if attached else None, None
    return (case.target, case.prize) if attached else _UNATTACHED


def _result(
    samples: timing.Samples, engine: str, case: Case, attached: bool, reason: str
) -> Result:
    name = _name(engine, case, attached)
    wanted = _floors(case, attached, engine)
    judge = next(iter(wanted))
    target, prize = _promise(case, attached, engine)
    ratios = ratios_to(samples, name, wanted) if name in samples else {}
    return Result(
        "events",
        name,
        statistics.median(samples[name]) if name in samples else None,
        "ns",
        {floor: round(ratio, 3) for floor, ratio in ratios.items()},
        judged=ratios.get(judge) if target is not None else None,
        target=target,
        target_text=f"{target:g}x {judge}" if target is not None else "",
        prize=prize,
        prize_text=f"{prize:g}x" if prize is not None else "",
        notes=f"no {engine} engine" if reason else "" if ratios else "no floors in C",
    )


def ratios_to(samples: timing.Samples, name: str, wanted: Mapping[str, str]) -> dict[str, float]:
    """Ratios of a candidate to those floors, given as title and candidate, that were measured."""
    return {
        title: timing.ratio(samples, name, floor)
        for title, floor in wanted.items()
        if floor in samples
    }
