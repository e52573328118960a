"""`bulk` and `decoder` say the same of every payload: usual, unusual, and damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shmrec import bulk
from shmrec.bulk import WHOLE, Runs
from shmrec.decoder import MALFORMED, Damage, Event, decode
from shmrec.events import BEGIN, COUNTER, END, EXCEPTION, INSTANT, KINDS, NAME, OPEN, THREAD
from shmrec.layout import SLOT_SIZE

from .arena import Arena, batches

# However busy the machine is.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HEAD: dict[str, Any] = {"start_ns": 10**12, "generation": 7}
WHOSE: dict[str, Any] = {"pid": 42, "label": "worker", "producer": 3}


def carefully(payload: bytes) -> tuple[list[Event], str]:
    decoded = decode(payload, **HEAD, **WHOSE)
    return list(decoded), decoded.damage


def in_bulk(payload: bytes, size: int = WHOLE) -> tuple[list[Event], str]:
    runs = Runs(payload, **HEAD, **WHOSE, size=size)
    found = list(runs)
    assert all(1 <= len(run) <= size for run in found)
    return [event for run in found for event in run], runs.damage


def typed(value: Any) -> Any:
    """Equal only if the types are equal too: 1, 1.0 and True are not the same here."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    return type(value), repr(value)


def check(payload: bytes, size: int) -> None:
    expected, told = carefully(payload)
    found, damage = in_bulk(payload, size)
    assert typed(found) == typed(expected)
    assert damage == told


def packed(*items: Any) -> bytes:
    return b"".join(map(msgpack.packb, items))


NAMED = ([NAME.number, 0, 0, "main"], [THREAD.number, 0, 11, 0], [NAME.number, 0, 1, "request"])

scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=6), values, max_size=3)
deltas = st.integers(0, 2**32)
spans = st.integers(1, 2**40)
name = st.sampled_from((0, 1))


def event(number: int, *fields: Any, args: bool = True) -> Any:
    whole = [st.tuples(st.just(number), deltas, name, *fields)]
    if args:
        whole.append(st.tuples(st.just(number), deltas, name, *fields, arguments))
    return st.one_of(whole).map(list)


usual = st.one_of(
    event(INSTANT.number),
    event(EXCEPTION.number),
    event(BEGIN.number, spans),
    event(END.number, deltas, spans),
    event(COUNTER.number, values, args=False),
    event(OPEN.number, spans, deltas),
    st.tuples(st.just(NAME.number), deltas, name, st.text(max_size=6)).map(list),
    st.tuples(st.just(THREAD.number), deltas, spans, name).map(list),
)
# Of the right shape or nearly so, with anything in it.
odd = st.one_of(
    values,
    st.tuples(st.integers(-1, len(KINDS)) | scalars, deltas | scalars)
    .flatmap(lambda start: st.lists(values, max_size=5).map(lambda rest: [*start, *rest]))
    .map(list),
    st.builds(
        lambda usual, at, value: [*usual[:at], value, *usual[at + 1 :]],
        usual,
        st.integers(0, 6),
        values,
    ),
    st.builds(
        lambda usual, keys: [*usual, keys],
        st.sampled_from(([3, 1, 0], [4, 1, 0, 5], [5, 1, 0, 9, 5], [2, 1, 0, 5, 9])),
        st.dictionaries(scalars, scalars, max_size=2),
    ),
)
sizes = st.sampled_from((1, 2, 3, 7, WHOLE))


@PATIENT
@given(st.lists(usual, max_size=30), sizes)
def test_usual_batches_are_read_alike_and_without_a_second_look(
    items: list[Any], size: int
) -> None:
    payload = packed(*NAMED, *items)
    check(payload, size)
    runs = Runs(payload, **HEAD, **WHOSE, size=size)
    assert typed([event for run in runs._usual() for event in run]) == typed(in_bulk(payload)[0])


@PATIENT
@given(st.lists(usual | odd, max_size=12), sizes)
@example([[True, 5, 0, "x"], [3, 1, 0]], 2)
@example([[3.0, 5, 0]], 2)
@example([[3, True, 0]], 2)
@example([[3, 5, 0, {b"k": 1}]], 2)
@example([[3, 5, 0, {True: 1}]], 2)
@example([b"\x03\x05\x00"], 2)
@example([{3: 0, 5: 0, 0: 0}], 2)
@example([[3, 5, 0, ["k"]]], 2)
@example([[3, 5, 0, {}, "later versions'"]], 2)
@example([[6, 5, 0]], 2)
@example([[0, 5, 0, 0]], 2)
@example([[0, 5, [], "x"]], 2)
@example([[1, 5, 1.0, 0]], 2)
@example([[2, 5, 0, 1, 2, []]], 2)
@example([[2, 5, 0, True, 2]], 2)
@example([[2, 5, 9, 1, 2]], 2)
@example([[4, 5, 0, False]], 2)
@example([[5, 5, 0, 1.0, 1]], 2)
@example([[5, 5, 0, 1, None]], 2)
@example([[8, 5, 0]], 2)
@example([[]], 2)
def test_odd_batches_are_read_alike(items: list[Any], size: int) -> None:
    check(packed(*NAMED, *items), size)


def made(seed: int) -> bytes:
    """What a writer writes, all kinds of it."""
    arena = Arena(slots=8, slot_size=2048)
    writer = arena.writer()
    outer = writer.begin("job", number=seed)
    for n in range(60):
        with writer.span("request", path=f"/{n}"):
            writer.instant("hit", key=f"k{n}", size=n)
            writer.counter("queue", n / 2)
        writer.record(EXCEPTION, "ValueError", {"message": "no", "where": ["a", "b"]})
    writer.end(outer)
    return batches(arena.reader())[-2].payload


MADE = [made(seed) for seed in range(2)]


@PATIENT
@given(
    st.sampled_from(MADE),
    st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=4),
    st.integers(0, 2048),
    sizes,
)
def test_damaged_batches_are_read_alike(
    payload: bytes, flips: list[tuple[int, int]], length: int, size: int
) -> None:
    damaged = bytearray(payload)
    for at, value in flips:
        damaged[at % len(damaged)] ^= value
    check(bytes(damaged), size)
    check(bytes(damaged[:length]), size)


@PATIENT
@given(st.binary(max_size=200), sizes)
def test_garbage_is_read_alike(payload: bytes, size: int) -> None:
    check(payload, size)


@pytest.mark.parametrize(
    "value",
    [
        *(b"\xc4\x03abc", b"\xa3abc", b"\xcc\x07", b"\xd3" + bytes(8), b"\xcb" + bytes(8)),
        *(b"\x92\x01\x02", b"\x81\xa1k\x07", b"\xc7\x02\x05ab", b"\x91\xc0"),
    ],
)
def test_a_batch_that_is_cut_inside_its_last_event_says_so(value: bytes) -> None:
    before = packed(*NAMED, [3, 1, 1, {"n": 1}])
    payload = before + b"\x94\x03\x01\x01\x81\xa1v" + value
    assert in_bulk(payload) == carefully(payload)
    assert (len(in_bulk(payload)[0]), in_bulk(payload)[1]) == (2, "")
    for length in range(len(before) + 1, len(payload)):
        found, damage = in_bulk(payload[:length])
        assert (found, damage) == carefully(payload[:length])
        assert len(found) == 1
        assert "not a whole event" in damage
    assert in_bulk(before)[1] == ""


def test_the_events_before_the_damage_come_once_each() -> None:
    payload = packed(*NAMED, *([3, 1, 1, {"n": n}] for n in range(10)), [3, 1, 99], [3, 1, 1])
    for size in (1, 3, 10, WHOLE):
        found, damage = in_bulk(payload, size)
        assert [event.args["n"] for event in found] == list(range(10))
        assert damage.startswith(f"undecodable after {10**12 + 11} ns: KeyError")
        assert {(event.pid, event.label, event.producer) for event in found} == {(42, "worker", 3)}


def test_a_batch_that_ends_inside_an_event_is_damaged_wherever_it_ends() -> None:
    last = packed([3, 1, 1, {"n": 1, "text": "some", "more": [None, 1 << 40]}])
    whole = packed(*NAMED, [3, 1, 1, {"n": 0}])
    for end in range(1, len(last)):
        events, damage = carefully(whole + last[:end])
        assert [event.args["n"] for event in events] == [0]
        assert "not a whole event" in damage, f"cut behind byte {end}"
        check(whole + last[:end], WHOLE)
    assert carefully(whole + last)[1] == ""


@pytest.mark.parametrize("payload", [b"\xdd\xff\xff\xff\xff", b"\x90" * SLOT_SIZE, b"\xc1" * 99])
def test_no_payload_raises(payload: bytes) -> None:
    events, damage = in_bulk(payload)
    assert not events
    assert damage


def test_what_is_usual_is_not_left_to_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [carefully(payload)[0] for payload in MADE]
    never: Callable[..., Any] = pytest.fail
    monkeypatch.setattr(bulk, "decode", never)
    assert [in_bulk(payload, 5)[0] for payload in MADE] == expected


def test_an_event_is_made_by_name_and_has_arguments_of_its_own() -> None:
    first = Event(time_ns=5, kind="instant", name="x", thread=1, thread_name="t", generation=2)
    second = Event(5, "instant", "x", 1, "t", 2)
    assert first == second
    assert (first.span, first.args, first.value, first.duration_ns) == (0, {}, None, None)
    assert (first.pid, first.label, first.producer) == (0, "", 0)
    assert first.args is not second.args
    assert repr(first).startswith("Event(time_ns=5, kind='instant'")
    assert issubclass(Damage, MALFORMED)
