"""How a producer's history ends, from its newest batches."""

from __future__ import annotations

from typing import Any

import pytest

from shmrec.ending import find_ending
from shmrec.layout import SlotFlag
from shmrec.ring import Batch, Head

from .dumping import batch

THREAD = [1, 0, 7, "MainThread"]


def names(*batches: Batch) -> list[str]:
    """The names of the spans open at the end."""
    by_number = {each.head.number: each.payload for each in batches}
    found = find_ending([each.head for each in batches], lambda head: by_number[head.number])
    return [span.name for span in found.open_spans]


def partial(made: Batch) -> Batch:
    made.head.flags |= SlotFlag.PARTIAL_PREAMBLE
    return made


def begin(name: str, span: int, after: int = 1) -> list[Any]:
    return [4, after, name, span]


def still(name: str, span: int, age: int = 5) -> list[Any]:
    return [2, 0, name, span, age]


def end(name: str, span: int) -> list[Any]:
    return [5, 1, name, 1, span]


def test_nothing() -> None:
    found = find_ending([], lambda head: b"")
    assert (found.open_spans, found.newest_ns, found.damage) == ([], 0, [])


def test_the_newest_batch_suffices() -> None:
    assert names(batch(THREAD, begin("a", 1)), batch(THREAD, still("b", 2), number=2)) == ["b"]


def test_a_batch_without_its_preamble_says_nothing() -> None:
    """A producer was killed, or is seen, between opening a batch and naming its open spans."""
    first = batch(THREAD, begin("a", 1), begin("b", 2), start_ns=100)
    opened = batch(number=2, start_ns=200)
    assert opened.payload == b""
    assert names(first, opened) == ["a", "b"]
    found = find_ending(
        [first.head, opened.head], lambda head: (first, opened)[head.number - 1].payload
    )
    assert found.newest_ns == 102


def test_partial_preambles_are_put_together() -> None:
    batches = [
        batch(THREAD, still("lost", 9), begin("a", 1)),
        partial(batch(THREAD, still("b", 2), end("a", 1), number=2)),
        partial(batch(THREAD, still("c", 3), begin("d", 4), number=3)),
    ]
    assert sorted(names(*batches)) == ["b", "c", "d", "lost"]


def test_what_partial_preambles_leave_open() -> None:
    whole = batch(THREAD, still("a", 1))
    cut = partial(batch(THREAD, still("b", 2), number=2))
    payloads = {1: whole.payload, 2: cut.payload}
    for batches, missing in (([whole, cut], False), ([cut], True), ([whole], False)):
        found = find_ending([each.head for each in batches], lambda head: payloads[head.number])
        assert found.partial is missing


def test_by_the_time_they_began() -> None:
    made = batch(THREAD, still("young", 1, 5), still("old", 2, 50), start_ns=100)
    assert names(made) == ["old", "young"]


@pytest.mark.parametrize("bad", [b"\x92\x01\x00", b"\x93\x01\x00\x07", b"\x92\x04\x00", b"\xc1"])
def test_bad_bytes_are_damage(bad: bytes) -> None:
    made = batch(THREAD, begin("a", 1))
    made.payload += bad
    found = find_ending([made.head], lambda head: made.payload)
    assert [span.name for span in found.open_spans] == ["a"]
    assert len(found.damage) == 1


def test_open_spans_are_known_up_to_a_limit_and_the_rest_is_said() -> None:
    made = [
        partial(
            batch(THREAD, *(still(f"s{n}", 100 * number + n) for n in range(50)), number=number)
        )
        for number in range(1, 4)
    ]
    payloads = {each.head.number: each.payload for each in made}
    heads = [each.head for each in made]
    found = find_ending(heads, lambda head: payloads[head.number], limit=60)
    assert sorted(span.span for span in found.open_spans)[-50:] == list(range(300, 350))
    assert len(found.open_spans) == 60
    assert found.partial
    assert found.damage == ["90 open spans more than can be known were left out"]


def test_batches_are_decoded_for_open_spans_up_to_a_limit() -> None:
    fetched: list[int] = []
    made = [partial(batch(THREAD, still("s", n), number=n)).head for n in range(1, 2000)]

    def payload(head: Head) -> bytes:
        fetched.append(head.number)
        return batch(THREAD, still("s", head.number)).payload

    assert find_ending(made, payload).partial
    assert len(fetched) == 256
