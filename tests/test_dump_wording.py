"""How the tools say things: durations, sizes, escapes, arguments, JSON values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmrec.commands.jsonform import dumps
from shmrec.commands.wording import (
    age,
    arguments,
    counted,
    moment,
    safe,
    size,
    some,
    span_named,
    thread_said,
    wall,
)


@pytest.mark.parametrize(
    ("ns", "said"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (250_000, "250 µs"),
        (999_499, "999 µs"),
        (999_500, "1.0 ms"),
        (4_200_000, "4.2 ms"),
        (120_000_000, "120 ms"),
        (999_499_999, "999 ms"),
        (999_500_000, "1.0 s"),
        (4_200_000_000, "4.2 s"),
        (59_940_000_000, "59.9 s"),
        (59_950_000_000, "1 min 0 s"),
        (192_000_000_000, "3 min 12 s"),
        (3_599_600_000_000, "1 h 0 min"),
        (18_180_000_000_000, "5 h 3 min"),
        (273_600_000_000_000, "3 d 4 h"),
        (-4_200_000_000, "-4.2 s"),
    ],
)
def test_age(ns: int, said: str) -> None:
    assert age(ns) == said


@given(st.integers(-(1 << 65), 1 << 65))
def test_every_time_can_be_said(ns: int) -> None:
    assert age(ns)
    assert moment(ns)
    shown = wall(ns)
    assert shown is None or shown.endswith("Z")


def test_wall_has_microseconds_and_says_utc() -> None:
    assert wall(1_790_000_000_000_000_999) == "2026-09-21T14:13:20.000000Z"
    assert wall(1_790_000_000_123_456_789) == "2026-09-21T14:13:20.123456Z"


def test_sizes_and_numbers() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5352, 1 << 21, 5 << 30)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "5.2 KiB",
        "2.0 MiB",
        "5.0 GiB",
    ]
    assert counted(1, "event") == "1 event"
    assert counted(12_345, "event") == "12,345 events"
    assert [counted(n, "process") for n in (0, 1, 2)] == ["0 processes", "1 process", "2 processes"]
    assert counted(2, "batch") == "2 batches"
    assert some("abc", 3) == "a, b, c"
    assert some("abcd", 3) == "a, b, c and 1 more"


@given(st.text(st.characters(codec=None)))
def test_safe_text_prints(text: str) -> None:
    shown = safe(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
_KEYS = st.text() | st.integers()
_LISTS = st.lists(_SCALARS | st.dictionaries(_KEYS, _SCALARS, max_size=3), max_size=3)
_VALUES = _SCALARS | _LISTS | st.dictionaries(_KEYS, _SCALARS | _LISTS, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), _VALUES, max_size=3))
def test_arguments_print_and_are_json(args: dict[str, Any]) -> None:
    shown = arguments(args)
    assert shown.isprintable()
    assert len(arguments(args, 10)) <= 10
    line = dumps(args)
    assert line.isascii()
    assert "\n" not in line
    json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


def test_arguments() -> None:
    args = {"method": "GET", "path": "/a b", "n": 1, "none": None, "raw": b"\x00", "l": [1, "x"]}
    assert arguments(args) == r'method=GET path="/a b" n=1 none=None raw=b' + r"'\x00' l=[1, x]"
    assert arguments({"q": 'say "hi"\\'}) == r'q="say \"hi\"\\"'
    assert arguments({"d": {"a": {"b": "\n"}}}) == r'd={a: {b: "\n"}}'
    assert arguments({"path": "/" + "x" * 50}, 10) == "path=/xxx…"


def test_spans_and_threads() -> None:
    assert span_named("query", {}) == "query"
    assert span_named("que\nry", {"n": 1}, gap="  ") == r"que\nry  n=1"
    assert span_named("query", {"text": "x" * 99}, 8) == "query text=xx…"
    assert thread_said("pool\x1b", 7) == r"pool\x1b"
    assert thread_said("", 7, 0xA1) == "thread 7"
    assert thread_said("", 0, 0xA1) == "the thread with ident 0xa1"
    assert thread_said("", 0) == "a thread"
