"""Looking at rings from outside: slow spans, stalls, counters; with a made-up clock."""

from __future__ import annotations

import pytest

from shmrec import layout, lookout
from shmrec.layout import COUNT_SHIFT, ENTRY, SLOT
from shmrec.lookout import Finding, Lookout
from shmrec.ring import RingReader
from shmrec.triggers import parse_all

from .arena import Arena

SECOND = 1_000_000_000


class Place(Arena):
    """An arena with a lookout over it; `look` says what fires so many seconds later."""

    def __init__(self, *texts: str, slots: int = 16) -> None:
        super().__init__(slots=slots)
        self.words[ENTRY.word("pid", self.entry)] = 77
        self.lookout = Lookout([self.reader()], parse_all(texts))
        self.record = self.writer(engine="python")

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def look(self, after: float = 0.0) -> list[str]:
        self.pass_time(after)
        return [finding.reason for finding in self.findings()]

    def findings(self) -> list[Finding]:
        return self.lookout.look([0], self.now)


def test_a_span_that_stays_open_fires_once_though_nothing_is_recorded_any_more() -> None:
    place = Place("slow_span request* 5s")
    place.record.begin("request /x")
    assert place.look(4.9) == []
    assert place.look(0.2) == ["slow span request /x of pid 77, open for 5.1 s"]
    assert place.look(60) == []
    place.record.instant("alive")
    assert place.look(60) == []


@pytest.mark.parametrize("text", ["slow_span 5s", "stall 5s"])
def test_what_a_limit_refused_fires_once_more_if_it_goes_on(text: str) -> None:
    place = Place(text)
    span = place.record.begin("x")
    place.pass_time(6)
    [refused] = place.findings()
    place.lookout.retry(refused, place.now + 30 * SECOND)
    assert place.look(29) == []
    assert len(place.look(2)) == 1
    assert place.look(60) == []
    place.record.end(span)
    place.lookout.retry(refused, place.now)
    assert place.look(60) == []


def test_what_fired_before_does_not_fire_again_with_what_was_refused() -> None:
    place = Place("slow_span 5s")
    place.record.begin("taken")
    assert len(place.look(6)) == 1
    place.record.begin("refused")
    place.pass_time(6)
    [refused] = place.findings()
    place.lookout.retry(refused, place.now + 30 * SECOND)
    place.record.begin("refused later")
    place.pass_time(6)
    [later] = place.findings()
    place.lookout.retry(later, place.now + 30 * SECOND)
    assert place.look(23) == []
    assert place.look(2) == ["slow span refused of pid 77, open for 37.0 s and 1 more"]
    assert place.look(60) == []


def test_a_finding_names_the_ring_and_who_had_it() -> None:
    place = Place("slow_span 5s")
    label = ENTRY.bytes_at("label", place.entry)
    place.view[label.start : label.start + 6] = b"wo\nker"
    place.record.begin("x")
    place.pass_time(6)
    [found] = place.findings()
    assert found.reason == "slow span x of wo?ker pid 77, open for 6.0 s"
    assert (found.trigger.kind, found.ring, found.incarnation) == ("slow_span", 0, 1)


def test_other_names_and_shorter_spans_do_not_fire() -> None:
    place = Place("slow_span request* 5s")
    place.record.begin("query")
    short = place.record.begin("request")
    place.pass_time(4)
    place.record.end(short)
    assert place.look(60) == []


def test_a_span_that_ended_between_two_looks_fires_by_its_end() -> None:
    place = Place("slow_span 5s")
    span = place.record.begin("x")
    assert place.look(4.8) == []
    place.pass_time(0.5)
    place.record.end(span)
    assert place.look(0.2) == ["slow span x of pid 77, 5.3 s"]
    place.record.instant("more")
    assert place.look(1) == []


def test_a_span_that_fired_while_open_does_not_fire_at_its_end() -> None:
    place = Place("slow_span 5s")
    span = place.record.begin("x")
    assert len(place.look(6)) == 1
    place.record.end(span)
    assert place.look(1) == []


def test_spans_that_are_slow_together_are_one_finding() -> None:
    place = Place("slow_span 5s", "slow_span 1s")
    for name in "abc":
        place.record.begin(name)
    assert place.look(2) == ["slow span a of pid 77, open for 2.0 s and 2 more"]
    assert place.look(4) == ["slow span a of pid 77, open for 6.0 s and 2 more"]


def test_a_span_is_seen_whose_begin_was_overwritten() -> None:
    place = Place("slow_span outer 5s", slots=4)
    place.record.begin("outer")
    for n in range(500):
        place.record.instant("busy", n=n)
    assert place.look(1) == []
    for n in range(500):
        place.record.instant("busy", n=n)
    assert len(place.look(5)) == 1


def test_a_stall_is_silence_inside_of_a_span() -> None:
    place = Place("stall 10s")
    place.record.instant("idle")
    assert place.look(60) == []
    place.record.begin("outer")
    span = place.record.begin("inner")
    assert place.look(9) == []
    assert place.look(2) == ["stall of pid 77, no event for 11.0 s inside of inner"]
    assert place.look(60) == []
    place.record.instant("awake")
    place.record.end(span)
    assert place.look(9) == []
    assert place.look(2) == ["stall of pid 77, no event for 11.0 s inside of outer"]


def test_a_stall_may_be_about_some_spans_only() -> None:
    place = Place("stall request* 10s")
    place.record.begin("main")
    assert place.look(60) == []
    place.record.begin("request")
    place.record.begin("query")
    assert place.look(11) == ["stall of pid 77, no event for 11.0 s inside of request"]


@pytest.mark.parametrize("kind", ["instant", "counter"])
def test_a_heartbeat_that_was_seen_and_stopped_is_a_stall(kind: str) -> None:
    def beat() -> None:
        if kind == "instant":
            place.record.instant("loop")
        else:
            place.record.counter("loop", 1)

    place = Place("stall 10s heartbeat=loop")
    place.record.instant("other")
    assert place.look(60) == [], "never seen"
    for _ in range(3):
        beat()
        assert place.look(9) == []
    place.record.instant("other")
    assert place.look(2) == ["stall of pid 77, no loop for 11.0 s"]
    assert place.look(60) == []
    beat()
    assert place.look(9) == []
    assert len(place.look(2)) == 1


def test_a_heartbeat_among_events_that_were_not_seen_is_not_missed() -> None:
    place = Place("stall 10s heartbeat=loop", slots=64)
    place.record.instant("loop")
    assert place.look(9) == []
    place.record.instant("loop")
    for n in range(200):
        place.record.instant("other", n=n, pad="x" * 50)
    assert place.look(2) == []
    assert len(place.look(9)) == 1


def test_a_counter_fires_when_it_goes_beyond_and_again_when_it_came_back() -> None:
    place = Place("counter queue.* > 10")
    for value in (9, 10):
        place.record.counter("queue.depth", value)
        assert place.look(1) == []
    place.record.counter("queue.depth", 11)
    place.record.counter("other", 99)
    assert place.look(1) == ["counter queue.depth of pid 77 at 11"]
    place.record.counter("queue.depth", 12.5)
    assert place.look(1) == []
    place.record.counter("queue.length", 12.5)
    assert place.look(1) == ["counter queue.length of pid 77 at 12.5"]
    place.record.counter("queue.depth", 1)
    place.record.counter("queue.depth", 13)
    place.record.counter("queue.depth", 2)
    assert place.look(1) == ["counter queue.depth of pid 77 at 13"]


def test_what_is_no_number_is_no_value() -> None:
    place = Place("counter x >= 1")
    for value in ("11", True, None, [99], float("nan")):
        place.record.counter("x", value)
    assert place.look(1) == []


def test_names_are_bounded_and_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "_COUNTERS", 8)
    place = Place("slow_span 5s", "counter * > 1")
    place.record.begin("\x1b[31m\n" + "x" * 300)
    for n in range(200):
        place.record.counter(f"c{n}", 5)
    [counter, span] = place.look(6)
    [names] = place.lookout._seen[0].beyond.values()
    assert len(names) == 8
    assert span.isprintable()
    assert len(span) < 150
    assert counter.endswith(" more")


def test_work_is_bounded_and_who_had_no_turn_is_first_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = [Place("slow_span 5s") for _ in range(4)]
    for place in places:
        place.record.begin("x")
    readers = [place.reader() for place in places]
    for index, reader in enumerate(readers):
        reader.index = index  # type: ignore[misc]
    monkeypatch.setattr(lookout, "BATCHES_A_SECOND", 2)
    watch = Lookout(readers, parse_all(["slow_span 5s"]))
    now = places[0].now + 6 * SECOND
    looks = []
    for _ in range(3):
        looks.append([found.ring for found in watch.look(range(4), now)])
        for place in places:
            place.record.instant("y")
    assert looks == [[0, 1], [2, 3], []]


def test_of_many_open_spans_the_oldest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "_SPANS", 3)
    place = Place("slow_span 5s")
    for number in range(10):
        place.record.begin(f"span-{number}")
        place.pass_time(0.1)
    [seen] = (place.look(0), place.lookout._seen.values())[1]
    assert [each.name for each in seen.spans] == ["span-0", "span-1", "span-2"]
    [finding] = place.look(4.2)
    assert "span-0" in finding


def test_nothing_is_decoded_of_who_recorded_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("slow_span 5s")
    place.record.begin("x")
    assert place.look(1) == []

    def fail(self: RingReader, count: int) -> None:
        raise AssertionError("looked into the ring")

    monkeypatch.setattr(RingReader, "newest", fail)
    assert len(place.look(5)) == 1


def test_what_a_look_reads_does_not_grow_with_the_ring() -> None:
    def loads(slots: int) -> int:
        place = Place("slow_span 5s", slots=slots)
        while place.word("opening") <= slots:
            place.record.instant("x", pad="x" * 400)
        place.steps = 0

        def step() -> None:
            place.steps += 1

        place.lookout = Lookout([place.reader(step)], parse_all(["slow_span 5s"]))
        assert place.look() == []
        return place.steps

    assert loads(32) == loads(512)


def test_another_producer_in_the_ring_begins_anew() -> None:
    place = Place("stall 10s heartbeat=loop", "slow_span 10s")
    place.record.instant("loop")
    assert place.look(1) == []
    place.memory[place.geometry.ring(0) :] = bytes(place.geometry.ring_size + layout.STACK_SIZE)
    place.words[ENTRY.word("incarnation", place.entry)] = 2
    place.words[ENTRY.word("opening", place.entry)] = 0
    place.record = place.writer(engine="python")
    place.record.begin("x")
    assert place.look(60) == ["slow span x of pid 77, open for 60.0 s"]


def test_a_batch_whose_preamble_is_not_there_yet_hides_nothing() -> None:
    place = Place("slow_span 5s")
    place.record.begin("x")
    place.set_generation(2)
    place.record.instant("y")
    second = place.geometry.ring(0) + place.geometry.slot_size
    place.words[second // 8 + SLOT.word("committed")] = 0
    assert len(place.look(6)) == 1


def test_more_batches_are_decoded_where_one_does_not_name_all_spans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookout, "BATCHES", 1)
    place = Place("slow_span 5s", slots=64)
    for _ in range(50):
        place.record.begin("x")
    for n in range(100):
        place.record.instant("y", n=n)
    assert place.look(6) == ["slow span x of pid 77, open for 6.0 s and 49 more"]


def test_who_is_gone_is_forgotten() -> None:
    place = Place("slow_span 5s")
    place.record.begin("x")
    place.look(1)
    assert place.lookout.look([], place.now + 60 * SECOND) == []
    assert not place.lookout._seen


@pytest.mark.parametrize("seed", range(20))
def test_garbage_neither_raises_nor_stops_the_lookout(seed: int) -> None:
    import random

    place = Place("slow_span 5s", "stall 1s", "stall 1s heartbeat=x", "counter * > 0")
    place.record.begin("x")
    chance = random.Random(seed)
    start = place.geometry.ring(0)
    for _ in range(30):
        at = chance.randrange(SLOT.size, place.geometry.slot_size)
        place.memory[start + at] = chance.randrange(256)
        word = start // 8 + SLOT.word("committed")
        size = chance.randrange(place.geometry.payload_size)
        place.words[word] = chance.randrange(5) << COUNT_SHIFT | size
        place.look(1)


def test_how_often_to_look() -> None:
    for texts, expected in [
        (["counter x > 1"], SECOND),
        (["slow_span 5s"], SECOND),
        (["stall 5s", "slow_span 400ms"], 400_000_000),
        (["slow_span 1ms"], 100_000_000),
    ]:
        assert Lookout([], parse_all(texts)).interval_ns == expected
    assert not Lookout([], parse_all(["log", "signal HUP"])).wanted
