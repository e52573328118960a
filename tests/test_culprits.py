"""Who is to blame, in which order and why; who waits for the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shmrec.forensics import Analysis
from shmrec.manifest import Producer
from shmrec.ring import Batch

from .dumping import batch
from .findings import MAIN, SECOND, TAKEN, analysed, died, exception, in_threads, inside, producer

Inside = tuple[Producer, list[Batch]]
LOCK = "lock.acquire"


def ranks(analysis: Analysis) -> list[tuple[int, str]]:
    return [(each.finding, each.rank) for each in analysis.culprits]


def test_the_order(tmp_path: Path) -> None:
    found = analysed(
        tmp_path,
        (producer(0), inside(("request", 1, {}))),
        (producer(1), exception("thread", ago=3)),
        (producer(2), inside(("request", 60, {}))),
        (producer(3), inside(("request", 90, {}))),
        (producer(4, state="stalled"), inside(("request", 2, {}))),
        (producer(5), []),
        (producer(6), []),
        (died(7), []),
        (died(8, ended_ns=TAKEN - SECOND), []),
        (died(9, reported=True), inside(("request", 99, {}))),
        (producer(10, state="detached"), inside(("request", 99, {}))),
        (died(11, reported=True), exception("main", ago=1)),
        suspects=[6, 5, 999],
    )
    assert ranks(found) == [
        (8, "died"),
        (7, "died"),
        (6, "suspect"),
        (5, "suspect"),
        (4, "stalled"),
        (3, "silent"),
        (2, "silent"),
        (1, "raised"),
    ]
    assert [each.producer.index for each in found.died] == [8, 7]
    reasons = {each.finding: each.reasons for each in found.culprits}
    assert reasons[8] == ["it died 1.0 s before the snapshot"]
    assert reasons[3] == ["no event for 1 min 30 s, with `request` open for 1 min 30 s"]
    assert reasons[1] == [
        "unhandled 3.0 s before: ValueError: no such thing, raised at /srv/app/views.py:3 f"
    ]


def completed(*durations: float, name: str = "db.query") -> Batch:
    ends = ([5, 1, name, round(each * SECOND), 900 + n] for n, each in enumerate(durations))
    return batch(MAIN, *ends, start_ns=TAKEN - 100 * SECOND)


def busy(name: str, ago: float) -> list[Batch]:
    """Inside of a span, and not silent."""
    (made,) = inside((name, ago, {}))
    late = batch(
        MAIN,
        [2, 0, name, 424200, round(ago * SECOND) - SECOND],
        [3, 0, "tick"],
        number=3,
        start_ns=TAKEN - SECOND,
    )
    return [made, late]


def outliers(path: Path, durations: list[float], ago: float) -> list[str]:
    found = analysed(
        path, (producer(0), [completed(*durations)]), (producer(1), busy("db.query", ago))
    )
    assert {each.finding for each in found.culprits} <= {1}
    assert {each.rank for each in found.culprits} <= {"outlier"}
    return [reason for each in found.culprits for reason in each.reasons]


def test_outliers_against_their_own_kind(tmp_path: Path) -> None:
    usual = [0.003] * 9 + [0.048]
    assert outliers(tmp_path, usual, 31.2) == [
        "`db.query` open 31.2 s; the other 10 in this snapshot took 3.0 ms at the median, "
        "48 ms at most"
    ]
    assert outliers(tmp_path, usual[:4], 31.2) == []
    assert outliers(tmp_path, [0.003] * 9 + [32.0], 31.2) == []
    assert outliers(tmp_path, [3.2] * 9, 31.2) == []
    assert outliers(tmp_path, [0.0001] * 9, 0.09) == []


def test_an_outlier_is_told_once(tmp_path: Path) -> None:
    two = producer(1), in_threads(("db.query", 9, {}), ("db.query", 8, {}))
    found = analysed(tmp_path, (producer(0), [completed(*[0.003] * 9)]), two)
    (culprit,) = found.culprits
    assert [reason for reason in culprit.reasons if "db.query` open 9.0 s;" in reason]
    assert not [reason for reason in culprit.reasons if "open 8.0 s" in reason]


def texts(path: Path, *insides: Inside) -> list[str]:
    return [each.text for each in analysed(path, *insides).groups]


def named(label: str, args: dict[str, Any], index: int, **fields: Any) -> Inside:
    return producer(index, label=label, **fields), inside((LOCK, 3, args))


def test_waiting_for_the_same_thing(tmp_path: Path) -> None:
    five = [named(f"worker {n}", {"name": "orders"}, n) for n in range(5)]
    three: list[Inside] = [(producer(n, label=f"worker {n}"), []) for n in range(5, 7)]
    just: Inside = (died(7, label="worker 7"), [])
    gone = (producer(8, label="worker 8", state="detached"), inside((LOCK, 3, {"name": "orders"})))
    told = (died(9, label="worker 9", reported=True), inside((LOCK, 3, {"name": "orders"})))
    master: Inside = (producer(10, label="master"), [])
    found = analysed(tmp_path, *five, *three, just, gone, told, master).groups
    assert [each.text for each in found] == ["5 of 8 workers inside `lock.acquire name=orders`"]
    assert found[0].members == [(n, 4242) for n in range(5)]
    assert (found[0].shared, found[0].of) == ({"name": "orders"}, 8)


def test_some_arguments_in_common(tmp_path: Path) -> None:
    some = [named("w", {"name": "a" if n < 4 else "b", "n": n}, n) for n in range(6)]
    assert texts(tmp_path, *some) == [
        "4 of 6 ws inside `lock.acquire name=a`",
        "2 of 6 ws inside `lock.acquire name=b`",
    ]
    nothing = [named("", {"n": n}, n) for n in range(3)]
    assert texts(tmp_path, *nothing) == ["3 of 3 processes inside `lock.acquire`"]
    odd = [named("w", {"x": [1, {"y": b"\xff"}]}, 0), named("v", {"x": [1, {"y": b"\xff"}]}, 1)]
    assert len(texts(tmp_path, *odd)) == 1
    assert texts(tmp_path, named("w", {}, 0)) == []


def test_only_the_innermost_counts_and_threads_are_counted(tmp_path: Path) -> None:
    outer = (producer(0, label="w"), inside(("request", 5, {}), (LOCK, 4, {})))
    within = (producer(1, label="w"), inside((LOCK, 5, {}), ("request", 4, {})))
    assert texts(tmp_path, outer, within) == []
    threads = batch(
        [1, 0, 1, "a"], [4, 0, LOCK, 1], [1, 0, 2, "b"], [4, 0, LOCK, 2],
        start_ns=TAKEN - SECOND,
    )  # fmt: skip
    assert texts(tmp_path, outer, (producer(1, label="w"), [threads])) == [
        "3 threads in 2 of 2 ws inside `lock.acquire`"
    ]


def test_a_busy_service_has_nothing_in_common(tmp_path: Path) -> None:
    def at(ago: float, index: int, path: str, name: str = "request") -> Inside:
        args = {"method": "GET", "path": path}
        return producer(index, label=f"w {index}"), inside((name, ago, args))

    assert texts(tmp_path, at(0.002, 0, "/a"), at(0.09, 1, "/a"), at(9, 2, "/a")) == []
    assert texts(tmp_path, at(0.2, 0, "/a"), at(0.3, 1, "/b")) == []
    assert texts(tmp_path, at(0.2, 0, "/a"), at(0.3, 1, "/a")) == [
        "2 of 2 ws inside `request method=GET path=/a`"
    ]
    assert texts(tmp_path, at(0.2, 0, "/a", "ask"), at(0.3, 1, "/b", "ask")) == [
        "2 of 2 ws inside `ask method=GET`"
    ]


def test_threads_of_one_process_need_all_arguments_in_common(tmp_path: Path) -> None:
    def threads(*paths: str, who: Producer | None = None) -> Inside:
        spans = [(LOCK, 3.0, {"kind": "row", "path": path}) for path in paths]
        return who or producer(0, label="w"), in_threads(*spans)

    assert texts(tmp_path, threads("/a", "/b")) == []
    assert texts(tmp_path, threads("/a", "/a")) == [
        "2 threads in 1 of 1 ws inside `lock.acquire kind=row path=/a`"
    ]
    assert texts(tmp_path, threads("/a", "/a", who=died(0, label="w"))) == []


def test_the_dead_are_told_from_those_who_wait(tmp_path: Path) -> None:
    dead = (died(0, label="w 0"), inside((LOCK, 3, {"name": "a"})))
    assert texts(tmp_path, dead, named("w 1", {"name": "a"}, 1)) == [
        "2 of 2 ws inside `lock.acquire name=a`, among them pid 100, which died"
    ]
