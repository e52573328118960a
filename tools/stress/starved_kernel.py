"""Cases of starvation: no /proc, system calls that a sandbox refuses, a clock that is set.

What each one holds: processes are recorded, snapshots are taken, a death is told once, all as ever
but for what only the missing thing could have told.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import shmrec
from shmrec.layout import TRIGGERS
from tools.stress.apart import NOBODY, Mount
from tools.stress.ground import Case, Ground
from tools.stress.seccomp import deny
from tools.stress.service import Program, Service, until
from tools.stress.tally import Impossible

_SHIM: Final = Path(__file__).with_name("clock_shim.c")
_DROP: Final = 24
_PTRACE: Final = 19
_HOUR: Final = 3600
_LITTLE: Final = -300
_STEPS: Final = (0, _LITTLE, 3 * _HOUR, -5 * _HOUR, _HOUR, -48 * _HOUR, 0)
"""How far ahead the wall clock is, one after the other."""

_PIDFDS: Final = ("pidfd_open", "pidfd_send_signal", "pidfd_getfd")
_OTHERS: Final = (
    "process_vm_readv", "process_vm_writev", "process_madvise", "ptrace", "perf_event_open",
    "kcmp", "close_range", "statx",
)  # fmt: skip
_PROFILES: Final = {
    "membarrier": ("membarrier",),
    "pidfds": _PIDFDS,
    "all that old profiles lack": ("membarrier", *_PIDFDS, *_OTHERS),
}


def _life(ground: Ground, service: Service, where: str, *workers: Program) -> shmrec.Snapshot:
    """Attach, record, be asked for, die, be told of, end in order; the snapshot asked for."""
    ground.hold(service.serves(), f"{where}: no collector: {service.said()}")
    for worker in workers:
        said = worker.attach(service.name)
        ground.hold(said["value"] and not said["warned"], f"{where}: {said}")
        done = worker.do("work(0.05)")
        ground.hold(not done["error"] and not done["warned"], f"{where}: {done}")
    service.noticed()
    taken = shmrec.read(service.ask("as ever"))
    ground.hold(not taken.verify(), f"{where}: {taken.verify()}")
    running = {each.pid for each in taken.producers if each.state == "running"}
    ground.hold(running == {each.pid for each in workers}, f"{where}: running are {running}")
    ground.tally.count("snapshots taken")
    _dies(ground, service, workers[0], where)
    for worker in workers[1:]:
        ground.hold(worker.leave() == 0, f"{where}: ended with {worker.process.returncode}")
        ground.quiet(worker.log, where)
    ground.hold(service.stop() == 0, f"{where}: the collector ended with an error")
    ground.quiet(service.log, where)
    return taken


def _dies(ground: Ground, service: Service, worker: Program, where: str) -> None:
    worker.kill()
    worker.process.wait()

    def telling() -> list[str]:
        return [
            path.name
            for path in service.files("death")
            for each in shmrec.read(path).producers
            if each.pid == worker.pid and each.state == "dead" and not each.reported
        ]

    ground.hold(until(telling, 20), f"{where}: its death is not told")
    service.ask("after the death")
    ground.hold(len(telling()) == 1, f"{where}: its death is told in {telling()}")
    ground.tally.count("deaths told once")


def no_proc(ground: Ground) -> None:
    """Nothing in /proc: who is there is asked of the kernel otherwise."""

    def without(inside: Ground) -> None:
        with inside.folder() as place, Service(place) as service:
            _life(inside, service, "no /proc", service.program(), service.program())

    ground.within(without, Mount("/proc", "size=64k"))


def hidden(ground: Ground) -> None:
    """/proc with hidepid=2, root's collector without CAP_SYS_PTRACE, workers of another user."""
    if os.geteuid():
        raise Impossible("only root has workers of another user")

    def drop() -> None:
        ctypes.CDLL(None).prctl(_DROP, _PTRACE, 0, 0, 0)

    def hide(inside: Ground) -> None:
        with inside.folder() as place, Service(place, enter=drop) as service:
            inside.hold(service.serves(), f"no collector: {service.said()}")
            workers = [service.program(), service.program()]
            for worker in workers:
                worker.attach(service.name)
                worker.do(f"os.setuid({NOBODY})")
            _life(inside, service, "hidepid", *workers)

    ground.within(hide, Mount("/proc", "hidepid=2", "proc"))


def sandboxed(ground: Ground) -> None:
    """A filter of system calls, as of a container: without membarrier, pidfds, and more."""
    for name, calls in _PROFILES.items():
        for code in (errno.EPERM,) if ground.quick else (errno.EPERM, errno.ENOSYS, errno.EACCES):
            where = f"{errno.errorcode[code]} for {name}"
            profile = dict.fromkeys(calls, code)
            with ground.folder() as place, Service(place, enter=lambda: deny(profile)) as service:  # noqa: B023
                programs = [service.program(enter=lambda: deny(profile)) for _ in range(2)]  # noqa: B023
                taken = _life(ground, service, where, *programs)
                fenced = "membarrier" not in calls
                ground.hold(taken.header.fenced == fenced, f"{where}: fenced {not fenced}")
                ground.tally.count("profiles")


def no_threads(ground: Ground) -> None:
    """No thread may be started: requests are served a second later, commands end as they do."""
    profile = dict.fromkeys(("clone", "clone3"), errno.EAGAIN)
    with ground.folder() as place, Service(place, enter=lambda: deny(profile)) as service:
        _life(ground, service, "no threads", service.program(), service.program())
        ground.one_line(service.said("thread"), "requests may wait", "no threads")
    command = ["--", sys.executable, "-c", "import sys; sys.exit(3)"]
    with (
        ground.folder() as place,
        Service(place, *command, enter=lambda: deny(profile)) as service,
    ):
        status = service.collector.wait(30)
        ground.hold(status == 3, f"a command without threads: {status}, {service.said()}")
        ground.quiet(service.log, "a command without threads")
        ground.tally.count("commands run")


def clock_steps(ground: Ground) -> None:
    """The wall clock is set by hours, to and fro: limits, order, and quota stay what they are."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Impossible("no C compiler for the shim of the clock")
    with ground.folder() as place:
        shim = place / "clock.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", str(shim), str(_SHIM), "-ldl"], check=True
        )
        step = place / "step"
        step.write_text("0")
        environment = {"LD_PRELOAD": str(shim), "SHMREC_STEP": str(step)}
        options = ["--quota-count", "4", "--trigger", "log interval=1h"]
        with Service(place, *options, environment=environment) as service:
            _stepped(ground, service, lambda seconds: step.write_text(str(seconds)), environment)


def _stepped(
    ground: Ground,
    service: Service,
    set_clock: Callable[[int], object],
    environment: dict[str, str],
) -> None:
    ground.hold(service.serves(), f"no collector: {service.said()}")
    steady = service.program()
    steady.attach(service.name)
    expected = []
    log = TRIGGERS.index("log")
    for number, ahead in enumerate(_STEPS[: 3 if ground.quick else None]):
        where = f"clock set to {ahead:+d} s"
        set_clock(ahead)
        ground.tally.count("steps of the clock")
        done = steady.do("work(0.05)")
        ground.hold(not done["error"] and not done["warned"], f"{where}: {done}")
        steady.do("shmrec.recorder.default.trigger('log', 'said')")
        if number == 0:
            ground.hold(until(lambda: service.files("-log-")), f"{where}: no snapshot of it")
            expected += service.files("-log-")
        else:
            with service.opened() as segment:
                place = "suppressed", log
                suppressed = until(lambda: _nth(segment, *place) == number, 20)  # noqa: B023
                ground.hold(suppressed, f"{where}: {_nth(segment, *place)} are suppressed")
        expected += [service.ask(f"asked {number}"), service.ask(f"again {number}")]
        there = set(service.files())
        newest = set(expected[-2:])
        ground.hold(newest <= there, f"{where}: removed {[p.name for p in newest - there]}")
        ground.hold(len(there) <= 5, f"{where}: {len(there)} files")
        if ahead != _LITTLE:
            # By so little the clocks of a disk and of its reader may differ.
            found = _newest(service.snapshots, environment)
            ground.hold(found == str(expected[-1]), f"{where}: the newest is {found}")
        taken = shmrec.read(expected[-1])
        late = taken.header.taken_wall_ns - taken.header.started_wall_ns
        ground.hold(0 <= late < 60e9, f"{where}: took {late} ns")
        told = _report(expected[-1])
        ground.hold(not told.returncode and "-" not in told.stdout.split("ago")[0][-12:], where)
    mortal = service.program()
    mortal.attach(service.name)
    service.noticed()
    set_clock(-7 * _HOUR)
    _dies(ground, service, mortal, "clock set back")
    ground.quiet(service.log, "clock")


def _nth(segment: object, name: str, place: int) -> int:
    from shmrec.layout import CONTROL
    from shmrec.segment import Segment

    assert isinstance(segment, Segment)
    return segment.words[CONTROL.word(name) + place]


def _newest(directory: Path, environment: dict[str, str]) -> str:
    code = "import sys; from pathlib import Path; from shmrec import store; "
    code += "print(store.newest(Path(sys.argv[1])))"
    return subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    ).stdout.strip()


def _report(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shmrec.commands.dump", "info", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


CASES: Final[dict[str, Case]] = {
    "no-proc": no_proc,
    "hidepid": hidden,
    "sandbox": sandboxed,
    "no-threads": no_threads,
    "clock": clock_steps,
}
