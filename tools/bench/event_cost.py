"""The cost of recording one event, attached and not, in this process's own ring.

Floors: a Python function that takes the same arguments and does nothing; one look at the
clock; packing the same event with a reused `msgpack.Packer`, its tuple and dictionary built at
the call as the event's arguments are. Packing a tuple that exists already is shown too: it is
less than a caller with fresh values could ever pay.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import msgpack

import shmrec
from tools.bench import timing
from tools.bench.report import Options, Result
from tools.bench.rig import attached

TARGET = 5.0
_DELTA = 5_000
_NAME_ID = 5
_SPAN = 1_000


@dataclass(frozen=True)
class Case:
    """A way to record: the call, the call that does nothing, the tuples of its events."""

    title: str
    call: str
    empty_call: str
    packs: tuple[str, ...]
    target: bool = False


_CASES = (
    Case("instant(name)", 'instant("request")', 'empty("request")', ("(3, delta, name)",)),
    Case(
        'instant(name, n=3, path="/x")',
        'instant("request", n=3, path="/x")',
        'empty("request", n=3, path="/x")',
        ('(3, delta, name, {"n": 3, "path": "/x"})',),
        target=True,
    ),
    Case(
        "with span(name)",
        'with span("request"):\n    pass',
        'with scope("request"):\n    pass',
        ("(4, delta, name, span_id)", "(5, delta, name, delta, span_id)"),
    ),
    Case(
        "begin(name), end(id)",
        'end(begin("request"))',
        'empty(empty("request"))',
        ("(4, delta, name, span_id)", "(5, delta, name, delta, span_id)"),
    ),
    Case("counter(name, 7)", 'counter("request", 7)', "empty_2(7, 7)", ("(6, delta, name, 7)",)),
)

_CLOCK = "monotonic_ns"
_PACK = "pack"
_PACK_MADE = "pack of a ready tuple"


class _Scope:
    __slots__ = ()

    def __enter__(self) -> _Scope:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _scope(name: str, /, **args: Any) -> _Scope:
    return _SCOPE


_SCOPE = _Scope()


def _empty(name: object, /, **args: Any) -> None:
    pass


def _empty_2(name: object, value: object, /) -> None:
    pass


def _calls(recorder: shmrec.Recorder) -> dict[str, Any]:
    calls = ("instant", "span", "begin", "end", "counter")
    return {name: getattr(recorder, name) for name in calls}


def measure(options: Options) -> list[Result]:
    """Every case attached, then every case unattached."""
    rounds, number = (15, 100) if options.quick else (200, 300)
    # Of a type that nothing else packs here: a Packer that others use would be reset by them.
    values = {
        "pack": msgpack.Packer().pack,
        "delta": _DELTA,
        "name": _NAME_ID,
        "span_id": _SPAN,
    }
    empties = {"empty": _empty, "empty_2": _empty_2, "scope": _scope}
    candidates = {_CLOCK: timing.statement("clock()", {"clock": time.monotonic_ns}, number)}
    with attached(options.directory) as recorder:
        if not recorder.attached:
            raise RuntimeError("this process is not attached: nothing would be measured")
        unattached = shmrec.Recorder()
        for case in _CASES:
            packs = "; ".join(f"pack({value})" for value in case.packs)
            ready = [eval(value, dict(values)) for value in case.packs]
            made = {f"event{index}": event for index, event in enumerate(ready)}
            made_packs = "; ".join(f"pack({name})" for name in made)
            candidates |= {
                case.title: timing.statement(case.call, _calls(recorder), number),
                _without(case): timing.statement(case.call, _calls(unattached), number),
                _floor(case, "call"): timing.statement(case.empty_call, empties, number),
                _floor(case, _PACK): timing.statement(packs, values, number),
                _floor(case, _PACK_MADE): timing.statement(
                    made_packs, {"pack": values["pack"], **made}, number
                ),
            }
        samples = timing.interleaved(candidates, rounds)
    return [
        *(_result(samples, case, case.title, (_PACK, "call", _PACK_MADE)) for case in _CASES),
        *(_result(samples, case, _without(case), (_PACK, "call")) for case in _CASES),
    ]


def _without(case: Case) -> str:
    return f"{case.title}, unattached"


def _floor(case: Case, floor: str) -> str:
    return f"{floor} for {case.title}"


def _result(samples: timing.Samples, case: Case, name: str, floors: tuple[str, ...]) -> Result:
    ratios = {floor: timing.ratio(samples, name, _floor(case, floor)) for floor in floors}
    ratios["clock"] = timing.ratio(samples, name, _CLOCK)
    promised = case.target and name == case.title
    return Result(
        "events",
        name,
        statistics.median(samples[name]),
        "ns",
        {floor: round(found, 3) for floor, found in ratios.items()},
        judged=ratios[_PACK] if promised else None,
        target=TARGET if promised else None,
        target_text=f"{TARGET:g}x pack" if promised else "",
    )
