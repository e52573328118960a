"""Cases of starvation: more processes than rings, and a collector that does not run.

What each one holds: refusals are counted to the one, and told once to each who was refused; who
leaves makes room, in the order in which they left; nobody waits for a collector that is stopped,
and what happened meanwhile is told once when it goes on.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import Final

import shmrec
from shmrec.layout import ENTRY, EntryState
from tools.stress.crowd import Crowd
from tools.stress.ground import Case, Ground
from tools.stress.service import Program, Service, until

_RECORD: Final = "[shmrec.instant('n', n=n) for n in range(500)] and None"


def crowd(ground: Ground) -> None:
    """200 processes for 64 rings: who is refused is counted and told, who leaves makes room."""
    count, rings = (24, 8) if ground.quick else (200, 64)
    with ground.folder() as place, Service(place, "--producers", str(rings)) as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        with Crowd(count, place / "crowd.log") as many:
            attach = f"shmrec.attach({service.name!r}, label='crowd').attached"
            refused = _refused(ground, many.all_do(attach), count - rings, rings)
            ground.hold(_counted(service) == count - rings, f"{_counted(service)} counted")
            for answer in many.all_do(_RECORD).values():
                ground.hold(not answer["error"] and not answer["warned"], f"{answer}")
            taken = shmrec.read(service.ask("full"))
            ground.hold(len(taken.producers) == rings, f"{len(taken.producers)} in the snapshot")
            inside = [pid for pid in many.pids if pid not in refused]
            _reused_in_order(ground, service, many, inside, refused, attach)
            _forked(ground, service, many, inside[-1])
        ground.quiet(service.log, "crowd")
        ground.quiet(place / "crowd.log", "crowd")


def _counted(service: Service) -> int:
    return service.word("refused_full")


def _refused(
    ground: Ground, answers: dict[int, dict[str, object]], expected: int, rings: int
) -> list[int]:
    refused = []
    for pid, answer in answers.items():
        ground.hold(not answer["error"], f"attaching raised {answer['error']}")
        warned = answer["warned"]
        assert isinstance(warned, list)
        if answer["value"]:
            ground.hold(not warned, f"recorded, and warned {warned}")
        else:
            refused.append(pid)
            ground.one_line(warned, f"all {rings} rings", "crowd")
    ground.hold(len(refused) == expected, f"{len(refused)} refused, not {expected}")
    ground.tally.count("processes refused", len(refused))
    ground.tally.count("processes recorded", len(answers) - len(refused))
    return refused


def _reused_in_order(
    ground: Ground,
    service: Service,
    many: Crowd,
    inside: list[int],
    refused: list[int],
    attach: str,
) -> None:
    """Some leave, some die; whoever comes then has their rings, the longest-left first."""
    leaving, dying = inside[:3], inside[3:6]
    places = {pid: index for index, pid in _rings(service).items()}
    for pid in leaving:
        many.do(pid, "shmrec.detach()")
    service.noticed()
    for pid in dying:
        os.kill(pid, signal.SIGKILL)
        # One after the other as the collector sees it.
        ended = ENTRY.word("ended_ns", 0)
        ground.hold(until(lambda: _entry_word(service, places[pid], ended)), "not noticed")  # noqa: B023
    settled = ENTRY.word("settled", 0)
    ground.hold(
        until(lambda: all(_entry_word(service, places[pid], settled) for pid in dying), 30),
        "the deaths are not on disk",
    )
    for pid, left in zip(refused, leaving + dying, strict=False):
        answer = many.do(pid, attach)
        ground.hold(answer["value"] and not answer["warned"], f"with room: {answer}")
        ground.hold(_rings(service)[places[left]] == pid, f"not the ring that {left} left first")
        ground.tally.count("rings taken over")
    one_more = many.do(refused[6], attach)
    ground.hold(not one_more["value"], "a ring that somebody has was taken")


def _entry_word(service: Service, ring: int, word: int) -> int:
    with service.opened() as segment:
        return segment.words[segment.geometry.entry(ring) // 8 + word]


def _rings(service: Service) -> dict[int, int]:
    """Who has which ring."""
    with service.opened() as segment:
        words, geometry = segment.words, segment.geometry
        entries = [geometry.entry(index) for index in range(geometry.producers)]
        return {
            index: words[ENTRY.word("pid", at)]
            for index, at in enumerate(entries)
            if words[ENTRY.word("state", at)] == EntryState.LIVE
        }


def _forked(ground: Ground, service: Service, many: Crowd, parent: int) -> None:
    """Children of one that is recorded, for whom there is no ring: told once, counted once."""
    before = _counted(service)
    for _ in range(5):
        answer = many.do(parent, "forked(1000)")
        ground.hold(not answer["error"] and not answer["warned"], f"its parent: {answer}")
        ground.one_line(answer["value"], "this forked process is not recorded", "a forked child")
        ground.tally.count("processes refused")
    ground.hold(_counted(service) == before + 5, f"{_counted(service) - before} of 5 counted")


def stopped(ground: Ground) -> None:
    """A collector that is stopped for a minute: nobody waits, nothing that happened is missed."""
    seconds = 2.5 if ground.quick else 60.0
    with ground.folder() as place, Service(place, "--producers", "4") as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        steady, killed, exited, late = (service.program() for _ in range(4))
        for each in (steady, killed, exited):
            each.attach(service.name)
        service.noticed()
        before = steady.do("work(0.5)")["value"]
        generation = service.word("generation")
        snapshots = service.word("snapshots")
        service.collector.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        killed.kill()
        exited.do("os._exit(3)")
        killed.process.wait()
        attached = late.attach(service.name)
        ground.hold(attached["value"], f"nobody may join meanwhile: {attached}")
        late.do("work(0.05)")
        # Rings that are evidence nobody takes.
        one_more = service.program()
        ground.one_line(one_more.attach(service.name)["warned"], "all 4 rings", "one more")
        during = steady.do(f"work({seconds - 0.5})")["value"]
        cost = [each["cpu_ns"] / each["events"] for each in (before, during)]
        ground.hold(cost[1] < 2 * cost[0], f"{cost[1]:.0f} ns an event, not {cost[0]:.0f}")
        ground.hold(during["waits"] == 0, f"waited {during['waits']} times")
        ground.tally.count("events recorded meanwhile", during["events"])
        asked = steady.do("shmrec.snapshot('anybody there?', timeout=0.3)")
        ground.hold(asked["value"] is None and not asked["error"], f"asked: {asked}")
        ground.one_line(asked["warned"], "did not answer within 0.3 s", "asked")
        ground.one_line(asked["warned"], "it is stopped", "asked")
        again = steady.do("shmrec.snapshot('still nobody?', timeout=0.1)")
        ground.hold(again["value"] is None and not again["warned"], f"asked again: {again}")
        ground.tally.count("seconds without a collector", int(time.monotonic() - began))
        _goes_on(ground, service, (killed, exited), generation, snapshots)
        ground.hold(one_more.attach(service.name)["value"], "no ring after the deaths were told")
        ground.hold(steady.leave() == 0, "did not end in order")
        ground.quiet(service.log, "stopped")


def _goes_on(
    ground: Ground,
    service: Service,
    dead: tuple[Program, ...],
    generation: int,
    snapshots: int,
) -> None:
    service.collector.send_signal(signal.SIGCONT)
    began = time.monotonic()

    def telling(pid: int) -> list[tuple[str, str]]:
        return [
            (path.name, each.cause.text if each.cause else "")
            for path in service.files("death")
            for each in shmrec.read(path).producers
            if each.pid == pid and each.state == "dead" and not each.reported
        ]

    for each in dead:
        until(lambda: telling(each.pid), 20)  # noqa: B023
    service.ask("after the deaths")
    for each, cause in zip(dead, ("SIGKILL", "exit code 3"), strict=True):
        told = telling(each.pid)
        ground.hold(len(told) == 1 and cause in told[0][1], f"the death by {cause}: {told}")
        ground.tally.count("deaths told once")
    flushes = 2 * (service.word("snapshots") - snapshots)
    ticks = service.word("generation") - generation - flushes
    allowed = time.monotonic() - began + 3
    ground.hold(ticks <= allowed, f"{ticks} generations in {allowed:.0f} s: a burst")


def locked(ground: Ground) -> None:
    """A process that is stopped while it has the lock: who records goes on, who asks is told."""
    with ground.folder() as place, Service(place, "--producers", "4") as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        steady, holder, late = (service.program() for _ in range(3))
        for each in (steady, holder):
            each.attach(service.name)
        before = steady.do("work(0.3)")["value"]
        holder.do(f"globals().update(held=shmrec.segment.open_segment({service.name!r}))")
        said = holder.do(f"held._lock('lock', {fcntl.LOCK_EX})")
        ground.hold(not said["error"], f"has no lock: {said}")
        holder.kill(signal.SIGSTOP)
        during = steady.do("work(0.5)")["value"]
        cost = [each["cpu_ns"] / max(1, each["events"]) for each in (before, during)]
        ground.hold(cost[1] < 2 * cost[0], f"{cost[1]:.0f} ns an event, not {cost[0]:.0f}")
        ground.hold(during["waits"] == 0, f"waited {during['waits']} times")
        ground.tally.count("events recorded meanwhile", during["events"])
        began = time.monotonic()
        asked = steady.do("shmrec.snapshot('anybody there?', timeout=0.3)")
        ground.hold(asked["value"] is None and not asked["error"], f"asked: {asked}")
        ground.one_line(asked["warned"], "is one of its processes stopped?", "asked")
        ground.hold(time.monotonic() - began < 1.5, f"{time.monotonic() - began:.1f} s, not 0.3")
        if not ground.quick:
            began = time.monotonic()
            said = late.attach(service.name)
            ground.hold(not said["value"] and not said["error"], f"attached: {said}")
            ground.one_line(said["warned"], "not recording", "attached")
            ground.hold(time.monotonic() - began < 12, f"{time.monotonic() - began:.0f} s, not 10")
            done = late.do("work(0.05)")
            ground.hold(not done["error"] and not done["warned"], f"without a ring: {done}")
        holder.kill()
        holder.process.wait()
        ground.hold(late.attach(service.name)["value"], "no ring after the lock was free")
        ground.hold(until(lambda: service.files(f"pid-{holder.pid}-"), 20), "the death is not told")
        ground.tally.count("deaths told once")
        for each in (steady, late):
            ground.hold(each.leave() == 0, "did not end in order")
        ground.quiet(service.log, "locked")


CASES: Final[dict[str, Case]] = {
    "crowd": crowd,
    "collector-stopped": stopped,
    "lock-stopped": locked,
}
