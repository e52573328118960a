"""Fuzzes the engines' encoders: both leave the same bytes, whatever is recorded.

An input is a program of recording calls, drawn byte by byte. The native engine is built with the
sanitizers for this, and its own code counts towards coverage as the python engine's does.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from shmrec import _engine, events
from shmrec._engine import Engine
from shmrec.bulk import Runs
from shmrec.decoder import decode
from shmrec.layout import CONTROL, SegmentState
from tests.arena import Arena, bytes_left
from tools.fuzz.draw import Draw
from tools.fuzz.sameness import flat

HELP: Final = "the engines' encoders: python and native leave the same bytes"
LONGEST: Final = 1024
SANITIZED: Final = True
_SLOT_SIZES: Final = (128, 192, 256, 448, 512, 1024, 2048, 4096, 16 * 1024)
_STEPS: Final = 60
_SPANS: Final = 64


class _Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class _Lies:
    def __repr__(self) -> str:
        return 7  # type: ignore[return-value]


class _Text(str):
    pass


class _Colour(enum.IntEnum):
    RED = 1


class _Odd:
    def __repr__(self) -> str:
        return "<\ud800 odd\0>" * 90


_VIEW: Final = memoryview(b"abc")
"""One for both engines: its `repr` is its address."""


def _recursive() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


_OBJECTS: Final[tuple[Callable[[], Any], ...]] = (
    _Raises,
    _Lies,
    _Odd,
    _recursive,
    lambda: _Text("sub"),
    lambda: _Colour.RED,
    lambda: {1, 2},
    lambda: deque([1, 2]),
    lambda: OrderedDict(a=1),
    lambda: bytearray(b"abc"),
    lambda: _VIEW,
    lambda: 1j,
    lambda: object,
    lambda: {_Text("key"): 1},
    lambda: {1: 2, "\udc80": 3},
    lambda: ["x" * 512] * 9,
)


def check(data: bytes) -> None:
    """What holds of any program."""
    left = []
    for name in ("python", "native"):
        if _engine.refusal(name):
            continue
        draw = Draw(data)
        arena = Arena(slots=4 + draw.below(3), slot_size=draw.choice(_SLOT_SIZES))
        _perform(arena, arena.writer(engine=name), draw)
        left.append(bytes_left(arena))
        _check_readable(arena)
    assert left[0] == left[-1], "the engines left different bytes"


def _perform(arena: Arena, writer: Engine, draw: Draw) -> None:
    spans: list[Any] = []
    entered: list[Any] = []
    for _ in range(_STEPS):
        if draw.empty:
            break
        _step(arena, writer, draw, spans, entered)
    while entered:
        entered.pop().__exit__(None, None, None)


def _step(arena: Arena, writer: Engine, draw: Draw, spans: list[Any], entered: list[Any]) -> None:
    what = draw.below(16)
    if what < 3:
        writer.instant(_name(draw), **_arguments(draw))
    elif what < 5:
        span = writer.begin(_name(draw), **_arguments(draw))
        if len(spans) < _SPANS:
            spans.append(span)
    elif what < 7:
        at = draw.below(len(spans) + 1)
        writer.end(spans[at] if at < len(spans) else _value(draw, 0), **_arguments(draw))
    elif what == 7 and len(entered) < _SPANS:
        entered.append(writer.span(_name(draw), **_arguments(draw)))
        entered[-1].__enter__()
    elif what == 8 and entered:
        error = ValueError(_name(draw)) if draw.below(2) else None
        entered.pop().__exit__(type(error) if error else None, error, None)
    elif what == 9:
        writer.counter(_name(draw), _value(draw, 0))
    elif what == 10:
        writer.record(draw.choice((events.EXCEPTION, events.LOG)), _name(draw), _arguments(draw))
    elif what == 11:
        arena.set_generation(draw.integer() % (1 << 40) + 1)
    elif what == 12:
        for n in range(draw.below(60)):
            writer.instant(f"noise-{n % 4}", n=n)
    elif what == 13:
        writer.lose(draw.choice(("oversized", "unencodable", "reentrant")), draw.below(5))
    elif what == 14:
        _rebind(arena, writer, draw)
    elif what == 15 and draw.below(8) == 0:
        arena.words[CONTROL.word("state")] = SegmentState.CLOSED


def _rebind(arena: Arena, writer: Engine, draw: Draw) -> None:
    if draw.below(2):
        writer.unbind()
    else:
        writer.forget()
    if draw.below(4):
        writer.bind(
            arena.view,
            arena.words,
            entry=arena.entry,
            ring=arena.geometry.ring(0),
            slot_size=arena.geometry.slot_size,
            slots=arena.geometry.slots,
            fenced=bool(draw.below(2)),
        )


def _name(draw: Draw) -> Any:
    how = draw.below(8)
    if how < 4:
        return draw.choice(("a", "b", "request", "é", "MainThread", "", "n" * 256, "€" * 300))
    return draw.text() if how < 7 else _value(draw, 3)


def _arguments(draw: Draw) -> dict[str, Any]:
    return {draw.text() or "n": _value(draw, 0) for _ in range(draw.choice((0, 0, 1, 2, 3, 17)))}


def _value(draw: Draw, depth: int) -> Any:
    how = draw.below(12)
    if how < 3:
        return draw.integer()
    if how < 5:
        return draw.text()
    if how == 5:
        return draw.real()
    if how == 6:
        return draw.raw()
    if how == 7:
        return draw.choice((None, True, False))
    if how == 8:
        return draw.choice(_OBJECTS)()
    if depth > 6:
        return 0
    if how == 9:
        return {draw.text(): _value(draw, depth + 1) for _ in range(draw.length())}
    items = [_value(draw, depth + 1) for _ in range(draw.length())]
    return tuple(items) if how == 11 else items


def _check_readable(arena: Arena) -> None:
    """Every batch that is left decodes, to as many events as were counted."""
    reader = arena.reader()
    scan = reader.scan()
    assert not scan.damage, scan.damage
    for head in scan.heads:
        batch = reader.copy(head)
        assert batch is not None
        whose: Any = {"start_ns": head.start_ns, "generation": head.generation, "flags": head.flags}
        decoded = decode(batch.payload, **whose)
        found = list(decoded)
        assert not decoded.damage, decoded.damage
        assert len(found) == head.count
        runs = Runs(batch.payload, **whose)
        assert flat([event for run in runs for event in run]) == flat(found)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Programs of every kind of step, with every kind of value."""
    for step in range(16):
        program = bytes((0, step % len(_SLOT_SIZES)))
        for kind in range(12):
            program += bytes((step, 2, 1, 3, 1, kind, kind + 5, 2, 65, 66, kind))
        yield f"step-{step:02}", program
    yield "many-spans", bytes((1, 3)) + bytes((3, 2, 0)) * 55 + bytes((12, 59)) * 5
    for name, kind in (("bytes", 6), ("text", 3)):
        # Three of them, which together are too large to be left as they are.
        program = bytes((0, 8, 0, 0, 0, 4))
        for key in b"klm":
            program += bytes((0, 1, key, 0, kind, *([0] if kind == 3 else []), 8)) + b"abcdefgh\x08"
        yield f"long-{name}", program
    yield "nothing", b""
