"""Cases of starvation: no shared memory, or not enough for everybody.

What each one holds: who cannot be recorded goes on as if it had never asked, is told once, and is
counted; who is recorded already notices nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import shmrec
from tools.stress.apart import Mount
from tools.stress.ground import Case, Ground
from tools.stress.service import Program, Service, recording_name, until

_SHM: Final = "/dev/shm"
_RING: Final = 2 << 20
_PAGE: Final = 4096
_MIB: Final = 1 << 20


@contextlib.contextmanager
def _filled(left: int = 0) -> Iterator[Path]:
    """`/dev/shm` with so many bytes free, because somebody else fills it."""
    path = Path(_SHM) / f"filler-{os.getpid()}"
    free = os.statvfs(_SHM)
    size = free.f_bavail * free.f_bsize - left
    with open(path, "wb") as file:
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def goes_on(ground: Ground, program: Program, where: str) -> None:
    """It records, or does not, and neither fails nor is told anything more."""
    done = program.do("work(0.02)")
    ground.hold(not done["error"] and not done["warned"], f"{where}: {done}")


def shared_memory(ground: Ground) -> None:
    """/dev/shm of 64 MB, 8 MB, 2 MB: as many are recorded as fit, the others are counted."""
    for mib in (8,) if ground.quick else (64, 8, 2):
        ground.within(partial(_of_size, mib=mib), Mount(_SHM, f"size={mib}m"))


def _of_size(ground: Ground, mib: int) -> None:
    with ground.folder() as place, Service(place, size=_RING) as service:
        ground.hold(service.serves(), f"no collector in {mib} MiB: {service.said()}")
        wanted = mib * _MIB // _RING + 2
        programs = [service.program() for _ in range(wanted)]
        recorded = []
        for program in programs:
            said = program.attach(service.name)
            ground.hold(not said["error"], f"{mib} MiB: attaching raised {said['error']}")
            if said["value"]:
                recorded.append(program)
                ground.hold(not said["warned"], f"{mib} MiB: warned {said['warned']}")
            else:
                ground.one_line(said["warned"], "no room for", f"{mib} MiB")
                goes_on(ground, program, f"{mib} MiB, refused")
        # Every ring is filled twice over, to its last page: no SIGBUS.
        for program in recorded:
            program.send("work(0.2)")
        for program in recorded:
            done = program.hear()
            ground.hold(not done["error"], f"{mib} MiB, recorded: {done}")
        refused = wanted - len(recorded)
        counted = service.word("refused_space")
        ground.hold(counted == refused, f"{mib} MiB: {counted} counted of {refused} refused")
        ground.hold(len(recorded) < wanted, f"{mib} MiB: nobody was refused")
        ground.tally.count("processes recorded", len(recorded))
        ground.tally.count("processes refused for want of memory", refused)
        taken = shmrec.read(service.ask())
        ground.hold(len(taken.producers) == len(recorded), f"{mib} MiB: {len(taken.producers)}")
        if len(recorded) > 1:
            # One that leaves has its memory taken by who comes next, however full it is.
            ground.hold(recorded[0].leave() == 0, f"{mib} MiB: did not end in order")
            until(lambda: service.noticed())
            again = service.program().attach(service.name)
            ground.hold(again["value"], f"{mib} MiB: a ring that was left is not taken: {again}")
        ground.quiet(service.log, f"{mib} MiB")
        for program in programs:
            ground.quiet(program.log, f"{mib} MiB, a program")


def nothing_free(ground: Ground) -> None:
    """/dev/shm with nothing free: no recording begins, everybody is told, the application runs."""

    def begin(inside: Ground) -> None:
        for left in (0, _PAGE, 64 * 1024) if not inside.quick else (0,):
            with inside.folder() as place, _filled(left), Service(place) as service:
                where = f"{left} bytes free"
                inside.hold(not service.serves(), f"{where}: served all the same")
                inside.hold(service.collector.returncode == 1, f"{where}: {service.collector}")
                inside.one_line(service.said(), "no room for", where)
                program = service.program()
                said = program.attach(service.name)
                inside.hold(not said["error"] and not said["value"], f"{where}: {said}")
                inside.one_line(said["warned"], "no recording", where)
                goes_on(inside, program, where)
                owner = service.program()
                said = owner.do(f"shmrec.FlightRecorder({recording_name()!r}).start()")
                inside.one_line(said["error"], "no room for", f"{where}, its owner")
                inside.hold(not said["warned"], f"{where}: {said}")
                inside.hold(os.listdir(_SHM) == [f"filler-{os.getpid()}"], f"{where}: litter")
                inside.tally.count("starts refused", 2)

    ground.within(begin, Mount(_SHM, "size=16m"))


def filled_between(ground: Ground) -> None:
    """Filled up between the creation and attaching: refused, counted; later ones join again."""

    def fill(inside: Ground) -> None:
        with inside.folder() as place, Service(place, size=_RING) as service:
            inside.hold(service.serves(), f"no collector: {service.said()}")
            first, second, third = (service.program() for _ in range(3))
            first.attach(service.name)
            for left in (0, _RING // 2, _RING) if not inside.quick else (0,):
                # With just a ring's room there is none for its stacks, which it goes without.
                with _filled(left):
                    late = service.program()
                    said = late.attach(service.name)
                    inside.hold(not said["error"], f"{left} left: {said}")
                    if left < _RING:
                        inside.one_line(said["warned"], "no room for", f"{left} left")
                        inside.tally.count("processes refused for want of memory")
                    else:
                        inside.hold(said["value"], f"{left} left: {said}")
                    goes_on(inside, late, f"{left} left")
                    done = first.do("work(0.2)")
                    inside.hold(not done["error"], f"{left} left, recorded already: {done}")
                    path = service.ask()
                    inside.hold(not shmrec.read(path).verify(), f"{left} left: {path}")
                    late.close()
                    inside.tally.count("times filled up")
            refused = service.word("refused_space")
            inside.hold(refused == (1 if inside.quick else 2), f"{refused} refusals counted")
            inside.hold(second.attach(service.name)["value"], "with room again: not recorded")
            inside.hold(third.attach(service.name)["value"], "with room again: not recorded")
            inside.quiet(service.log, "filled up")

    ground.within(fill, Mount(_SHM, "size=16m"))


CASES: Final[dict[str, Case]] = {
    "shm-size": shared_memory,
    "shm-full": nothing_free,
    "shm-filled": filled_between,
}
