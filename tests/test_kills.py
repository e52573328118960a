"""What counts of kills say of one death, with counts and times made up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from shmrec.kills import Kills, Memory, Sigkilled
from shmrec.manifest import Cause

from .findings import analysed, died, facts

SECOND = 1_000_000_000
MIB = 1 << 20
KILL = Cause("signal 9 (SIGKILL)", "kernel (pidfd)", signal=9)


class Clock:
    def __init__(self) -> None:
        self.now = 100 * SECOND

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class Host:
    """One machine with one cgroup, that processes 7, 8 and 9 are in; 6 is in none."""

    def __init__(self, tmp_path: Path, clock: Clock) -> None:
        self.clock = clock
        self.proc = tmp_path / "proc"
        self.group = tmp_path / "cgroup" / "web"
        self.group.mkdir(parents=True)
        for name in ("self", "6", "7", "8", "9"):
            (self.proc / name).mkdir(parents=True)
            (self.proc / name / "cgroup").write_text("0::/web\n" if name != "6" else "0::/gone\n")
        (self.proc / "self" / "mountinfo").write_text(
            f"31 23 0:28 / {self.group.parent} rw - cgroup2 cgroup2 rw\n"
        )
        (self.group / "memory.max").write_text(f"{64 * MIB}\n")
        (self.group / "memory.current").write_text(f"{63 * MIB}\n")
        (self.group / "memory.peak").write_text(f"{64 * MIB}\n")
        self.killed(0, machine=0)
        self.kills = Kills(str(self.proc))

    def killed(self, count: int, machine: int | None = None) -> None:
        if self.group.exists():
            (self.group / "memory.events").write_text(f"oom 1\noom_kill {count}\n")
        if machine is not None:
            (self.proc / "vmstat").write_text(f"pgfault 1\noom_kill {machine}\n")

    def memory(self, pid: int | None) -> Memory:
        return Memory(self.kills, pid)

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.clock.pass_seconds(1)
            self.kills.tick()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock.now)
    return Host(tmp_path, clock)


def told(memory: Memory, *others: Memory) -> dict[str, Any]:
    memory.end()
    return memory.told(Sigkilled([memory, *others]))


def test_a_kill_that_was_counted_before_the_end(host: Host) -> None:
    memory = host.memory(7)
    host.ticks(5)
    host.killed(1)
    host.clock.pass_seconds(0.1)
    found = told(memory)
    assert (found["kills"], found["others"], found["seen_kills"]) == (1, 0, 1)
    assert found["limit"] == found["peak"] == 64 * MIB
    assert found["current"] == 63 * MIB
    assert found["limit_source"] == str(host.group / "memory.max")
    assert found["source"] == str(host.group / "memory.events")
    assert not found["whole_machine"]
    assert found["risen_ns"] == host.clock.now
    assert 2 * SECOND <= found["window_ns"] <= 4 * SECOND


def test_a_counted_kill_becomes_the_verdict(host: Host, tmp_path: Path) -> None:
    """What a kernel does in a cgroup with too little memory, where none can be made."""
    memory, other = host.memory(7), host.memory(8)
    host.ticks(5)
    spared = died(0, cause=KILL, memory=told(other))
    host.killed(1)
    host.clock.pass_seconds(0.1)
    killed = died(1, cause=KILL, memory=told(memory), facts=facts(20 * MIB, 62 * MIB))
    first, second = analysed(tmp_path, (spared, []), (killed, [])).findings
    assert first.verdict is not None
    assert second.verdict is not None
    assert (first.verdict.kind, second.verdict.kind) == ("killed", "out of memory")
    said = "\n".join(second.verdict.evidence)
    assert "the kernel killed 1 process for want of memory in its cgroup" in said
    assert str(host.group / "memory.events") in said
    assert "it had 62.0 MiB resident of 64.0 MiB allowed" in said
    assert "64.0 MiB of 64.0 MiB allowed at most" in said


def test_one_that_takes_its_time_to_die_was_counted_a_tick_before(host: Host) -> None:
    memory = host.memory(7)
    host.ticks(5)
    host.killed(1)
    host.ticks(1)
    assert told(memory)["kills"] == 1


def test_kills_of_long_ago_are_no_evidence(host: Host) -> None:
    memory = host.memory(7)
    host.ticks(2)
    host.killed(3)
    host.ticks(10)
    found = told(memory)
    assert (found["kills"], found["seen_kills"]) == (0, 3)
    later = host.memory(8)
    assert told(later)["kills"] == 0


def test_kills_before_it_came_are_not_its_own(host: Host) -> None:
    host.memory(7)
    host.killed(2)
    host.clock.pass_seconds(0.1)
    memory = host.memory(8)
    host.clock.pass_seconds(0.1)
    assert told(memory)["kills"] == 0


def test_what_was_found_out_stays(host: Host) -> None:
    memory = host.memory(7)
    host.ticks(3)
    host.killed(1)
    first = told(memory)
    host.killed(5)
    host.ticks(10)
    memory.refresh()
    assert told(memory) == first


def test_others_that_died_at_the_same_time_are_counted(host: Host) -> None:
    first, second, long_ago = host.memory(7), host.memory(8), host.memory(9)
    host.ticks(3)
    long_ago.end()
    host.ticks(10)
    host.killed(1)
    first.end()
    host.clock.pass_seconds(0.001)
    second.end()
    everybody = (first, second, long_ago)
    assert first.told(Sigkilled(everybody))["others"] == 1
    assert second.told(Sigkilled(everybody))["others"] == 1
    assert long_ago.told(Sigkilled(everybody))["others"] == 0
    assert long_ago.told(Sigkilled(everybody))["kills"] == 0


def test_a_living_one_is_told_what_happened_since_it_came(host: Host) -> None:
    memory, victim = host.memory(7), host.memory(8)
    host.ticks(2)
    host.killed(1)
    victim.end()
    host.ticks(10)
    found = memory.told(Sigkilled([victim]))
    assert (found["kills"], found["others"]) == (1, 1)


def test_a_cgroup_that_went_with_its_process_leaves_the_machines_word(host: Host) -> None:
    memory = host.memory(7)
    host.ticks(3)
    host.killed(1, machine=1)
    for file in host.group.iterdir():
        file.unlink()
    host.group.rmdir()
    found = told(memory)
    assert (found["kills"], found["whole_machine"]) == (1, True)
    assert found["source"] == str(host.proc / "vmstat")
    assert found["limit"] == 64 * MIB


def test_without_a_cgroup_the_machine_speaks(host: Host) -> None:
    seen, unseen = host.memory(6), host.memory(None)
    host.ticks(4)
    host.killed(7, machine=1)
    for memory in (seen, unseen):
        found = told(memory)
        assert (found["kills"], found["whole_machine"], found["limit"]) == (1, True, 0)


def test_where_nothing_can_be_read_nothing_is_said(host: Host) -> None:
    memory = host.memory(7)
    (host.group / "memory.events").unlink()
    (host.proc / "vmstat").unlink()
    assert told(memory) == {}


def test_a_new_cgroup_of_the_same_name_counts_anew(host: Host) -> None:
    host.killed(9)
    memory = host.memory(7)
    host.ticks(4)
    host.killed(0)
    host.ticks(1)
    host.killed(1)
    assert told(memory)["kills"] == 1


def test_one_that_was_moved_is_found_again(host: Host) -> None:
    host.proc.joinpath("7", "cgroup").write_text("0::/gone\n")
    memory = host.memory(7)
    host.proc.joinpath("7", "cgroup").write_text("0::/web\n")
    memory.refresh()
    host.killed(1)
    found = told(memory)
    assert (found["kills"], found["whole_machine"]) == (1, False)


def test_a_limit_that_changes_is_noticed(host: Host) -> None:
    memory = host.memory(7)
    (host.group / "memory.max").write_text(f"{32 * MIB}\n")
    host.ticks(5)
    assert told(memory)["limit"] == 32 * MIB


def test_a_cgroup_of_any_name_can_be_told(host: Host) -> None:
    name = b"caf\xe9"
    os.makedirs(os.fsencode(host.group.parent) + b"/" + name)
    folder = host.group.parent / os.fsdecode(name)
    (folder / "memory.events").write_text("oom_kill 0\n")
    (folder / "memory.max").write_text("4096\n")
    (host.proc / "7" / "cgroup").write_bytes(b"0::/" + name + b"\n")
    mine, other = host.memory(7), host.memory(7)
    (folder / "memory.events").write_text("oom_kill 2\n")
    found = told(mine)
    other.end()
    assert mine.told(Sigkilled([mine, other]))["others"] == 1
    assert (found["kills"], found["limit"]) == (2, 4096)
    # A file's texts are UTF-8.
    assert found["source"].encode() == f"{host.group.parent}/caf\ufffd/memory.events".encode()
    assert found["limit_source"].encode().endswith(b"/memory.max")


def test_cgroups_that_nobody_is_in_are_not_read(host: Host) -> None:
    memory, other = host.memory(7), host.memory(8)
    reads: list[Any] = []
    tally = host.kills.tally(7)
    assert tally is host.kills.tally(8)
    real = type(tally).tick

    def tick(each: Any) -> None:
        reads.append(each)
        real(each)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tally), "tick", tick)
        host.kills.tick()
        assert len(reads) == 2
        del tally, reads[:]
        memory.end()
        other.end()
        host.kills.tick()
        assert reads == [host.kills.machine]


def test_many_that_died_at_once_cost_no_more_than_each(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = [host.memory(7) for _ in range(500)]
    for each in died:
        each.end()
    looked = 0
    source: Any = vars(Memory)["source"].fget

    def counted(memory: Memory) -> str:
        nonlocal looked
        looked += 1
        found: str = source(memory)
        return found

    monkeypatch.setattr(Memory, "source", property(counted))
    sigkilled = Sigkilled(died)
    assert {each.told(sigkilled)["others"] for each in died} == {499}
    assert looked <= 2 * len(died)
