"""Cases of starvation: each system call of attaching, and of serving, fails in turn.

What each one holds: attaching succeeds or is told of in one line, and the application goes on; the
collector says on one line what it could not do, goes on, and tells a death once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Final

import shmrec
from shmrec.errors import ShmrecError
from tools.stress.ground import Case, Ground
from tools.stress.seccomp import Gate, Nth
from tools.stress.service import Service, until

_ATTACHING: Final = {
    "openat": errno.EMFILE,
    "mmap": errno.ENOMEM,
    "fallocate": errno.ENOSPC,
    "fcntl": errno.EMFILE,
    "membarrier": errno.EPERM,
    "getrandom": errno.ENOSYS,
}
_SERVING: Final = {
    "openat": errno.EMFILE,
    "pidfd_open": errno.EMFILE,
    "mmap": errno.ENOMEM,
    "membarrier": errno.EPERM,
    "ioctl": errno.EPERM,
}
_MOST: Final = 2000


def _open(name: str, arguments: Sequence[int]) -> int:
    return 0


def _some(ground: Ground, most: int = _MOST) -> Iterable[int]:
    """Which call is to fail; of a quick run only a few."""
    return range(1, most, 7) if ground.quick else range(1, most)


def attaching(ground: Ground) -> None:
    """Every call that attaching makes fails in turn, once, and for good."""
    with ground.folder() as place, Service(place, "--producers", "256") as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        for times in (1, _MOST):
            for name, code in _ATTACHING.items():
                for n in _some(ground):
                    if not _attaches(ground, service, name, code, n, times):
                        break
        ground.quiet(service.log, "attaching")


def _attaches(ground: Ground, service: Service, name: str, code: int, n: int, times: int) -> bool:
    """Whether there was an n-th call of that name to fail."""
    decision = Nth(n, code, times, only=[name])
    where = f"attaching, {name} {n} fails {'once' if times == 1 else 'for good'}"
    with Gate([name]) as gate:
        program = service.program(enter=gate.enter)
        gate.decide = decision
        said = program.attach(service.name)
        if times == 1 and decision.failed:
            gate.decide = _open
        ground.hold(not said["error"], f"{where}: raised {said['error']}")
        if said["value"]:
            ground.hold(not said["warned"], f"{where}: {said}")
            ground.tally.count("processes recorded")
        else:
            ground.one_line(said["warned"], "not recording", where)
            ground.tally.count("processes told that they are not")
        done = program.do("work(0.01)")
        ground.hold(not done["error"] and not done["warned"], f"{where}: {done}")
        gate.decide = _open
        again = program.attach(service.name)
        ground.hold(again["value"] and not again["error"], f"{where}, and again: {again}")
        ground.hold(program.leave() == 0, f"{where}: ended with {program.process.returncode}")
        ground.quiet(program.log, where)
        program.close()
    ground.tally.count(f"failed {name} calls", min(len(decision.failed), 1))
    return bool(decision.failed)


def serving(ground: Ground) -> None:
    """Every call that a collector makes from an attach to a death's snapshot fails in turn."""
    with (
        ground.folder() as place,
        Gate(_SERVING) as gate,
        Service(place, "--producers", "64", enter=gate.enter) as service,
    ):
        ground.hold(service.serves(), f"no collector: {service.said()}")
        for name, code in _SERVING.items():
            for n in _some(ground):
                if not _serves(ground, service, gate, name, code, n):
                    break
        ground.quiet(service.log, "serving")


def _serves(ground: Ground, service: Service, gate: Gate, name: str, code: int, n: int) -> bool:
    decision = Nth(n, code, only=[name])
    where = f"serving, {name} {n} fails"
    before = len(service.said())
    program = service.program()
    gate.decide = decision
    program.attach(service.name)
    service.noticed()
    try:
        service.ask("starved").unlink()
    except ShmrecError as error:
        ground.one_line(str(error), "snapshot", where)
    program.kill()
    program.process.wait()
    # The death's snapshot, or the refusal of it, is the last thing there is to fail.
    until(lambda: service.files(f"pid-{program.pid}-") or service.said("no snapshot of death"), 20)
    gate.decide = _open
    there = until(lambda: service.files(f"pid-{program.pid}-"), 30)
    ground.hold(there, f"{where}: its death is not told")
    telling = [
        path.name
        for path in service.files("death")
        for each in shmrec.read(path).producers
        if each.pid == program.pid and each.state == "dead" and not each.reported
    ]
    ground.hold(len(telling) == 1, f"{where}: its death is told in {telling}")
    ground.tally.count("deaths told once")
    for path in service.files():
        path.unlink()
    odd = [line for line in service.said()[before:] if "unexpected" in line]
    ground.hold(not odd, f"{where}: {odd}")
    ground.hold(service.collector.poll() is None, f"{where}: the collector has ended")
    ground.hold(not service.wrong(), f"{where}: {service.wrong()}")
    program.close()
    ground.tally.count(f"failed {name} calls", len(decision.failed))
    return bool(decision.failed)


def descriptors_of(pid: int) -> int:
    """How many descriptors the process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


CASES: Final[dict[str, Case]] = {"attach-calls": attaching, "collector-calls": serving}
