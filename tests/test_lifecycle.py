"""What may become of a ring, in any order, held against a model of what must be found.

Hypothesis chooses: processes claim rings, record, fork, leave and die, generations pass, snapshots
are taken, flushed and cold, and somebody scribbles on words. All in this process: a fork is a
second claim by the same writer, a death is a writer that is dropped and an entry whose process
does not live.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

import shmrec
from shmrec import capture, claim, ledger, live, naming
from shmrec._engine import choose
from shmrec.capture import Order
from shmrec.errors import RingsTakenError
from shmrec.layout import CONTROL, ENTRY, SLOT, SLOT_SIZE, EntryState, Geometry
from shmrec.segment import create

RINGS, SLOTS = 3, 4
_names = (f"test-{os.getpid()}-lifecycle-{n}" for n in itertools.count())
NOBODY = 1 << 30
LIES = st.one_of(
    st.sampled_from([0, 1, (1 << 62) - 1, 1 << 63, (1 << 64) - 1]), st.integers(0, 999)
)


@dataclass
class Owner:
    """A process's claim of a ring, and what it has recorded since."""

    index: int
    incarnation: int
    writer: Any
    recorded: int = 0
    live: bool = True
    spoilt: bool = False
    """Whether somebody has scribbled on its ring."""


class Lifecycle(RuleBasedStateMachine):
    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="shmrec-lifecycle-"))
        self.segment = create(
            next(_names),
            Geometry.of(SLOTS * SLOT_SIZE, RINGS),
            keep_size=1 << 30,
            keep_period_ns=1 << 60,
            collected=True,
        )
        self.held: dict[int, Owner] = {}
        self.taken = 0

    def teardown(self) -> None:
        for owner in self.held.values():
            if owner.live:
                owner.writer.unbind()
        self.held.clear()
        naming.remove(self.segment.name)
        self.segment.close()
        shutil.rmtree(self.directory)

    def word(self, index: int, name: str) -> int:
        return self.segment.words[ENTRY.word(name, self.segment.geometry.entry(index))]

    def set_word(self, index: int, name: str, value: int) -> None:
        self.segment.words[ENTRY.word(name, self.segment.geometry.entry(index))] = value

    @rule(target=owners, label=st.text(max_size=9))
    def attach(self, label: str) -> Any:
        name, engine = choose(None)
        writer = engine()
        there = sum(owner.live for owner in self.held.values())
        due = sum(not owner.live and self.unsettled(owner) for owner in self.held.values())
        mine = {owner.index for owner in self.held.values() if owner.live}
        try:
            index = claim.claim(self.segment, writer, name, label, held=mine)
        except RingsTakenError:
            assert there + due == RINGS
            return multiple()
        assert there + due < RINGS
        old = self.held.get(index)
        assert old is None or not old.live
        owner = Owner(index, self.word(index, "incarnation"), writer)
        self.held[index] = owner
        return owner

    def unsettled(self, owner: Owner) -> bool:
        """Whether it died and no snapshot holds it: its ring is not to be had."""
        return (
            self.word(owner.index, "state") == EntryState.LIVE
            and self.word(owner.index, "settled") != owner.incarnation
        )

    @rule(owner=owners, count=st.sampled_from([1, 7, 300]), size=st.sampled_from([0, 40, 400]))
    def go_on(self, owner: Owner, count: int, size: int) -> None:
        self.record(owner, count, size)

    def record(self, owner: Owner, count: int, size: int) -> None:
        if owner.live:
            for n in range(owner.recorded, owner.recorded + count):
                owner.writer.instant("step", n=n, pad="x" * size)
            owner.recorded += count

    @rule(owner=consumes(owners))
    def detach(self, owner: Owner) -> None:
        if owner.live:
            owner.live = not owner.writer.unbind()
            self.set_word(owner.index, "detached_ns", 1)
            self.set_word(owner.index, "state", EntryState.DETACHED)

    @rule(owner=consumes(owners), settled=st.booleans())
    def die(self, owner: Owner, settled: bool) -> None:
        if owner.live:
            owner.live = not owner.writer.unbind()
            self.set_word(owner.index, "pid", NOBODY)
            if settled:
                self.set_word(owner.index, "settled", owner.incarnation)

    @rule(count=st.integers(1, 3))
    def pass_generations(self, count: int) -> None:
        for _ in range(count):
            ledger.advance(self.segment)

    @rule(word=LIES)
    def scribble_generation(self, word: int) -> None:
        self.segment.set_word("generation", word)
        for owner in self.held.values():
            self.record(owner, 1, 0)

    @rule(at=st.integers(CONTROL.word("ledger"), CONTROL.word("ledger") + 255), word=LIES)
    def scribble_ledger(self, at: int, word: int) -> None:
        self.segment.words[at] = word

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=st.sampled_from([row.name for row in SLOT.rows]), word=LIES)
    def scribble_header(self, data: st.DataObject, name: str, word: int) -> None:
        owner = data.draw(st.sampled_from(sorted(self.held.values(), key=lambda each: each.index)))
        slot = data.draw(st.integers(0, SLOTS - 1))
        owner.spoilt = True
        at = self.segment.geometry.ring(owner.index) + slot * SLOT_SIZE
        self.segment.words[SLOT.word(name, at)] = word

    @rule(cold=st.booleans(), period_ns=st.sampled_from([1 << 60, 3600 * 10**9]))
    def snapshot(self, cold: bool, period_ns: int) -> None:
        order = Order(
            self.directory,
            size=1 << 30,
            period_ns=period_ns,
            deadline_ns=0,
            names=lambda: iter([f"{self.taken}.shmrec"]),
        )
        self.taken += 1
        path = (capture.take_cold if cold else capture.take)(self.segment, order)
        found = shmrec.read(path)
        assert not found.damage
        assert {each.index for each in found.producers} == self.held.keys()
        for producer in found.producers:
            owner = self.held[producer.index]
            assert producer.incarnation == owner.incarnation
            steps = [each.args["n"] for each in found.events(producers={producer.index})]
            assert len(steps) <= owner.recorded
            if not owner.spoilt:
                first = owner.recorded - len(steps)
                assert steps == list(range(first, owner.recorded))
                assert bool(steps) == bool(owner.recorded)
                lost = producer.losses["overwritten"] + producer.trimmed
                assert (producer.recorded, lost) == (owner.recorded, first)
                assert not producer.damage

    @invariant()
    def everybody_is_seen(self) -> None:
        seen = {each.entry.index: each for each in live.producers(self.segment)}
        assert seen.keys() == self.held.keys()
        for index, owner in self.held.items():
            if not owner.spoilt:
                assert seen[index].recorded == owner.recorded
                assert not seen[index].damage


Lifecycle.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestLifecycle = Lifecycle.TestCase
