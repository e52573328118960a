"""What may happen in a directory of snapshots, in any order, held against a model of what stays.

Hypothesis chooses: snapshots are written, also those of a death and first ones of incidents, files
are removed behind the store's back, other things lie there, writers die, the quota is enforced.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shmrec import hidden, store
from shmrec.errors import NoSuchSnapshotError

WALL_NS = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
ANCIENT_SECONDS = 1e6
REASONS = ("requested", "death of a worker", "stall of x", "Who? -first", "")
OTHERS = ("notes.txt", ".shmrec-notes", "web-x.shmrec", "web-20231114T999999Z-a-1.shmrec", "a/b")


@dataclass
class Written:
    """A snapshot in the model; `turn` says which is older."""

    recording: str
    size: int
    turn: int
    death: bool
    first: bool


class StoreLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="shmrec-store-"))
        self.there: dict[Path, Written] = {}
        self.others: set[Path] = set()
        self.unfinished: list[hidden.Unfinished] = []
        self.turn = 0

    def teardown(self) -> None:
        for each in self.unfinished:
            each.__exit__()
        shutil.rmtree(self.directory)

    def put(self, unfinished: hidden.Unfinished, recording: str, reason: str, first: bool) -> None:
        size = os.fstat(unfinished.file.fileno()).st_size
        before = dict(self.there)
        names = store.file_names(recording, reason, WALL_NS + self.turn // 4 * SECOND, first=first)
        path = unfinished.publish(names)
        assert path not in before
        assert path.read_bytes() == b"x" * size
        assert path.stat().st_mode & 0o777 == 0o600
        self.turn += 1
        when = WALL_NS + self.turn * SECOND
        os.utime(path, ns=(when, when))
        self.there[path] = Written(recording, size, self.turn, reason.startswith("death"), first)

    @rule(
        recording=st.sampled_from(["web", "web-2", "a.b_c"]),
        reason=st.sampled_from(REASONS),
        first=st.booleans(),
        size=st.integers(0, 2000),
    )
    def write(self, recording: str, reason: str, first: bool, size: int) -> None:
        with hidden.Unfinished(self.directory) as unfinished:
            unfinished.file.write(b"x" * size)
            self.put(unfinished, recording, reason, first)

    @rule(size=st.integers(0, 2000))
    def begin(self, size: int) -> None:
        self.unfinished.append(hidden.Unfinished(self.directory))
        self.unfinished[-1].file.write(b"x" * size)

    @precondition(lambda self: self.unfinished)
    @rule(published=st.booleans())
    def finish(self, published: bool) -> None:
        with self.unfinished.pop() as unfinished:
            if published:
                self.put(unfinished, "web", "requested", False)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.there)))
        path.unlink()
        del self.there[path]

    @rule(name=st.sampled_from(OTHERS))
    def litter(self, name: str) -> None:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("somebody's")
        self.others.add(path)

    @rule(kind=st.sampled_from(["folder", "link"]))
    def squat(self, kind: str) -> None:
        """What is called like a snapshot and is none."""
        path = self.directory / f"web-20231114T221320Z-squat-{self.turn + 1000}.shmrec"
        if not os.path.lexists(path):
            path.mkdir() if kind == "folder" else path.symlink_to("/etc/hostname")
            self.others.add(path)

    @rule(dead=st.booleans(), ancient=st.booleans())
    def leave_behind(self, dead: bool, ancient: bool) -> None:
        """What a writer that was killed leaves; and what one that lives is at."""
        pid = 1 << 30 if dead else os.getpid()
        path = self.directory / f"{hidden.HIDDEN_PREFIX}{pid}-{time.monotonic_ns()}.partial"
        path.write_text("half")
        if ancient:
            when = time.time() - ANCIENT_SECONDS
            os.utime(path, (when, when))
        hidden.sweep(self.directory)
        assert path.exists() == (not dead and not ancient)
        path.unlink(missing_ok=True)

    @rule(count=st.integers(1, 3), size=st.sampled_from([0, 1000, 9000]))
    def enforce(self, count: int, size: int) -> None:
        newest = sorted(self.there, key=lambda path: -self.there[path].turn)
        protected = set(newest[:1])
        protected |= set([path for path in newest if self.there[path].death][:1])
        protected |= set([path for path in newest if self.there[path].first][:1])
        removed = store.enforce_quota(self.directory, count=count, size=size)
        assert not protected & set(removed)
        order = sorted(
            (path for path in self.there if path not in protected),
            key=lambda path: (self.there[path].first, self.there[path].turn),
        )
        assert removed == order[: len(removed)]
        last = 0
        for path in removed:
            last = self.there.pop(path).size
        total = sum(each.size for each in self.there.values())
        assert (len(self.there) <= count and total <= size) or len(removed) == len(order)
        if removed:
            # Not one more than had to go.
            assert len(self.there) + 1 > count or total + last > size

    @invariant()
    def what_is_there_is_listed(self) -> None:
        found = store.listing(self.directory)
        expected = sorted(self.there.items(), key=lambda item: -item[1].turn)
        assert [stored.path for stored in found] == [path for path, _ in expected]
        for stored, (_, written) in zip(found, expected, strict=True):
            assert stored.recording == written.recording
            assert (stored.size, stored.death, stored.first) == (
                written.size,
                written.death,
                written.first,
            )
        if expected:
            assert store.newest(self.directory) == expected[0][0]
        else:
            with pytest.raises(NoSuchSnapshotError):
                store.newest(self.directory)
        assert all(os.path.lexists(other) for other in self.others)


StoreLife.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestStoreLife = StoreLife.TestCase
