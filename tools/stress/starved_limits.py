"""Cases of starvation: no address space, no descriptors, no room for a file: resource limits.

What each one holds: who cannot be recorded goes on as if it had never asked, and is told once; a
collector that cannot serve says so and ends, one that can no longer do something says so and goes
on.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import shmrec
from shmrec.errors import ShmrecError
from tools.stress.ground import Case, Ground
from tools.stress.service import Program, Service, recording_name, until
from tools.stress.starved_memory import goes_on

_RING: Final = 2 << 20
_PAGE: Final = 4096
_MIB: Final = 1 << 20
_FATAL: Final = f"__import__('signal').signal({int(signal.SIGXFSZ)}, 0) and None"
"""Has SIGXFSZ end the program, as it does by default; Python ignores it."""


def address_space(ground: Ground) -> None:
    """RLIMIT_AS in a producer: little by little more of it, from nothing on."""
    # Few and small rings: all of a recording is mapped, or nothing.
    with ground.folder() as place, Service(place, "--producers", "8") as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        for kib in range(0, 5 * 1024, 1600 if ground.quick else 32):
            program = service.program()
            _limit(program.pid, resource.RLIMIT_AS, _mapped(program.pid) + kib * 1024)
            _joins_or_is_told(ground, service, program, f"{kib} KiB more")
            ground.tally.count("limits of a producer's memory")


def owners(ground: Ground) -> None:
    """RLIMIT_NOFILE and RLIMIT_AS in who starts a recording: it does, or gets one clear error."""
    limits = [(resource.RLIMIT_NOFILE, more) for more in range(10)]
    limits += [(resource.RLIMIT_AS, more * 128 * 1024) for more in range(24)]
    with ground.folder() as place:
        for kind, more in limits[:: 11 if ground.quick else 1]:
            where = f"an owner with {more} {'descriptors' if kind == 7 else 'bytes'} more"
            name = recording_name()
            program = Program(place / f"owner-{kind}-{more}.log")
            program.do("shmrec.FlightRecorder and None")
            used = len(os.listdir(f"/proc/{program.pid}/fd"))
            lift = _limit(
                program.pid,
                kind,
                used + more if kind == resource.RLIMIT_NOFILE else _mapped(program.pid) + more,
            )
            flight = f"shmrec.FlightRecorder({name!r}, size=0, max_producers=2)"
            said = program.do(f"globals().update(flight={flight}) or flight.start()")
            if "ended without a word" in said["error"]:
                # What Python says of a collector that it cannot even load is its own.
                program.log.write_text("")
            if said["error"]:
                ground.one_line(said["error"], "", where)
                ground.tally.count("owners told why not")
            else:
                ground.tally.count("owners that record")
                program.do("flight.stop()")
            ground.hold(not said["warned"], f"{where}: {said}")
            lift()
            again = program.do(f"{flight}.start()")
            ground.hold(not again["error"], f"{where}, and again: {again}")
            ground.hold(program.leave() == 0, f"{where}: ended with {program.process.returncode}")
            ground.quiet(program.log, where)
            path = Path(f"/dev/shm/shmrec.{name}")
            until(partial(_gone, path))
            ground.hold(_gone(path), f"{where}: its memory is left")
            program.close()
            ground.tally.count("limits of an owner")


def _joins_or_is_told(ground: Ground, service: Service, program: Program, where: str) -> None:
    said = program.attach(service.name)
    ground.hold(not said["error"], f"{where}: attaching raised {said['error']}")
    if said["value"]:
        ground.hold(not said["warned"], f"{where}: {said}")
        ground.tally.count("processes recorded")
    else:
        ground.one_line(said["warned"], "not recording", where)
        ground.tally.count("processes told that they are not")
    goes_on(ground, program, where)
    spans = program.do("[shmrec.end(each) for each in [shmrec.begin('x') for _ in range(50)]]")
    ground.hold(not spans["error"], f"{where}: spans: {spans['error']}")
    ground.hold(program.leave() == 0, f"{where}: ended with {program.process.returncode}")
    ground.quiet(program.log, where)
    with service.opened() as segment:
        left = [
            index
            for index in range(segment.geometry.producers)
            if segment.words[_entry(segment, index, "pid")] == program.pid
            and segment.words[_entry(segment, index, "state")] not in (0, 3)
        ]
    ground.hold(not left, f"{where}: rings {left} are left to nobody")


def _entry(segment: object, index: int, word: str) -> int:
    from shmrec.layout import ENTRY
    from shmrec.segment import Segment

    assert isinstance(segment, Segment)
    return ENTRY.word(word, segment.geometry.entry(index))


def _gone(path: Path) -> bool:
    return not path.exists()


def _mapped(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * _PAGE


def _limit(pid: int, kind: int, value: int) -> Callable[[], None]:
    """Limit another process; call what is returned to undo it."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, before[1]))
    return lambda: resource.prlimit(pid, kind, before) and None


def descriptors(ground: Ground) -> None:
    """RLIMIT_NOFILE in a producer: one descriptor more each time, from none on."""
    with ground.folder() as place, Service(place) as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        for more in range(0, 12, 4 if ground.quick else 1):
            program = service.program()
            open_now = len(os.listdir(f"/proc/{program.pid}/fd"))
            _limit(program.pid, resource.RLIMIT_NOFILE, open_now + more)
            _joins_or_is_told(ground, service, program, f"{more} descriptors")
            ground.tally.count("limits of a producer's descriptors")


def collector_limits(ground: Ground) -> None:
    """RLIMIT_NOFILE and RLIMIT_AS in a collector that serves: it says what it cannot, goes on."""
    with ground.folder() as place, Service(place, size=_RING) as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        pid = service.collector.pid
        steady = service.program()
        steady.attach(service.name)
        steady.do("work(0.2)")
        service.ask("while there is enough")
        used = len(os.listdir(f"/proc/{pid}/fd"))
        limits = [(resource.RLIMIT_NOFILE, n) for n in range(used, used + 8)]
        step = 128 * 1024
        limits += [(resource.RLIMIT_AS, _mapped(pid) + n * step) for n in range(24)]
        for kind, limit in limits[:: 9 if ground.quick else 1]:
            where = f"collector with {'descriptors' if kind == 7 else 'bytes'} up to {limit}"
            lift = _limit(pid, kind, limit)
            before = len(service.said())
            mortal = service.program()
            said = mortal.attach(service.name)
            ground.hold(said["value"] and not said["warned"], f"{where}: {said}")
            service.noticed()
            try:
                service.ask("starved")
                ground.tally.count("snapshots taken all the same")
            except ShmrecError as error:
                ground.one_line(str(error), "snapshot", where)
                told = [line for line in service.said()[before:] if "no snapshot" in line]
                ground.one_line(told, "no snapshot", where)
                ground.tally.count("snapshots refused")
            mortal.kill()
            mortal.process.wait()
            lift()
            there = until(partial(service.files, f"pid-{mortal.pid}-"), 30)
            ground.hold(there, f"{where}: its death is not told")
            ground.hold(service.collector.poll() is None, f"{where}: the collector has ended")
            goes_on(ground, steady, where)
            ground.tally.count("limits of a collector")
            for path in service.files():
                path.unlink()
        ground.quiet(service.log, "limits of a collector")


def collector_start(ground: Ground) -> None:
    """The same limits before it starts: it serves, or says why not on one line."""
    for count in range(3, 20, 8 if ground.quick else 1):
        _starts_or_says(ground, resource.RLIMIT_NOFILE, count)
    need = _python_needs()
    for kib in range(0, 16 * 1024, 6 * 1024 if ground.quick else 256):
        _starts_or_says(ground, resource.RLIMIT_AS, need + kib * 1024)


def _starts_or_says(ground: Ground, kind: int, limit: int) -> None:
    where = f"a start with {'descriptors' if kind == 7 else 'bytes'} up to {limit}"

    def enter() -> None:
        resource.setrlimit(kind, (limit, limit))

    command = [sys.executable, "-c", "import shmrec.commands.collect"]
    if subprocess.run(command, preexec_fn=enter, capture_output=True).returncode:
        # What Python says that cannot even load the program is its own.
        ground.tally.count("limits in which Python loads no program")
        return
    with ground.folder() as place, Service(place, enter=enter) as service:
        if service.serves():
            ground.tally.count("limited collectors that serve")
            try:
                path = service.ask("starved")
                ground.hold(not shmrec.read(path).verify(), f"{where}: {path} is not whole")
            except ShmrecError as error:
                ground.one_line(str(error), "snapshot", where)
            ground.hold(service.stop() == 0, f"{where}: does not end in order")
        else:
            ground.tally.count("limited collectors that say why not")
            ground.one_line(service.said(), "shmrec-collect", where)
        ground.quiet(service.log, where)


def _python_needs() -> int:
    """Address space with which this Python has just loaded all that a collector is made of."""
    code = "import shmrec.commands.collect; print(open('/proc/self/statm').read().split()[0])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(told.stdout) * _PAGE


def file_size(ground: Ground) -> None:
    """RLIMIT_FSIZE, and SIGXFSZ with it: memory that is too large, snapshots that are."""

    def limited(limit: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with ground.folder() as place, Service(place, enter=limited(_MIB)) as service:
        ground.hold(not service.serves(), "memory beyond the limit")
        ground.one_line(service.said(), "no room for", "memory beyond the limit")
        owner = service.program(enter=limited(_MIB))
        owner.do(_FATAL)
        said = owner.do(f"shmrec.FlightRecorder({recording_name()!r}).start()")
        ground.one_line(said["error"], "no room for", "memory beyond the limit, its owner")
        ground.tally.count("starts refused", 2)
    with ground.folder() as place, Service(place, size=_RING) as service:
        ground.hold(service.serves(), f"no collector: {service.said()}")
        worker = service.program(enter=limited(_PAGE))
        worker.do(_FATAL)
        said = worker.attach(service.name)
        ground.hold(not said["error"], f"a producer with a limit: {said}")
        done = worker.do("work(0.1)")
        ground.hold(said["value"] and not done["error"], f"a producer with a limit: {said}, {done}")
        service.ask("whole").unlink()
        for limit in (0, 1, _PAGE, 64 * 1024)[:: 3 if ground.quick else 1]:
            lift = _limit(service.collector.pid, resource.RLIMIT_FSIZE, limit)
            before = len(service.said())
            try:
                service.ask("limited")
                ground.hold(False, f"a snapshot in {limit} bytes")
            except ShmrecError as error:
                ground.one_line(str(error), "File too large", f"files of {limit} bytes")
            # To a log that is a file the limit holds too.
            ground.hold(len(service.said()) - before <= 1, f"{limit}: {service.said()[before:]}")
            lift()
            ground.hold(not service.wrong(), f"{limit}: {service.wrong()}")
            ground.tally.count("snapshots refused")
        service.ask("whole again")
        ground.quiet(service.log, "files limited")


CASES: Final[dict[str, Case]] = {
    "memory": address_space,
    "descriptors": descriptors,
    "owner-limits": owners,
    "collector-limits": collector_limits,
    "collector-start": collector_start,
    "file-size": file_size,
}
