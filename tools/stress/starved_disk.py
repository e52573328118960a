"""Cases of starvation: the disk of snapshots is full, over quota, read-only, gone, or slow.

What each one holds: whoever asked is told once and clearly; older snapshots stay whole; nothing is
left of what could not be written; a death waits in memory, and is told once when it can be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import shmrec
from shmrec.errors import ShmrecError
from tools.stress.apart import READ_ONLY, mounted
from tools.stress.ground import Case, Ground
from tools.stress.seccomp import Gate, Nth
from tools.stress.service import Program, Service, until
from tools.stress.tally import Impossible

_STEPS: Final = (
    "openat", "mkdir", "write", "writev", "fchmod", "fsync", "linkat", "unlinkat", "unlink",
    "fadvise64",
)  # fmt: skip
"""The calls that a snapshot is written with."""
_RETRY_SECONDS: Final = 20.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _asked(ground: Ground, service: Service, where: str) -> Path | None:
    """A snapshot asked for: its path, or None if it was refused in one clear line."""
    ground.tally.count("snapshots tried")
    before = len(service.said())
    try:
        path = service.ask()
    except ShmrecError as error:
        ground.tally.count("snapshots refused")
        ground.one_line(str(error), "snapshot", where)
        ground.one_line(service.said()[before:], "no snapshot", f"{where}, in the log")
        return None
    damage = shmrec.read(path).verify()
    ground.hold(not damage, f"{where}: {path.name} is not whole: {damage}")
    return path


def _dies(service: Service, worker: Program) -> None:
    """End a worker that the collector knows."""
    service.noticed()
    worker.kill()
    worker.process.wait()


def _told_once(ground: Ground, service: Service, pid: int, where: str) -> None:
    """The worker's death is in one snapshot, and in no other as news."""
    there = until(lambda: service.files(f"pid-{pid}-"), _RETRY_SECONDS)
    if ground.hold(there, f"{where}: no snapshot of the death of pid {pid}"):
        # A second one would come a retry later.
        service.ask("after the death")
        found = _tellings(service, pid)
        ground.hold(len(found) == 1, f"{where}: told in {found or 'none'}")
        ground.tally.count("deaths told once")


def _tellings(service: Service, pid: int) -> list[str]:
    """The snapshots of deaths that tell this one as news."""
    return [
        path.name
        for path in service.files("death")
        for each in shmrec.read(path).producers
        if each.pid == pid and each.state == "dead" and not each.reported
    ]


def full(ground: Ground) -> None:
    """Every size of disk from none to enough: the write fails wherever it can."""

    def sweep(inside: Ground) -> None:
        with (
            inside.folder() as place,
            mounted(disk := place / "disk", "size=1m") as remount,
            Service(place, snapshots=disk / "s") as service,
        ):
            inside.hold(service.serves(), f"no collector: {service.said()}")
            worker = service.program()
            worker.attach(service.name)
            worker.do("work(0.05)")
            older = _asked(inside, service, "with room")
            assert older is not None
            kept = older.read_bytes()
            used = -(-len(kept) // 4096) * 4
            sizes = range(used + 4, 2 * used + 32, 16 if inside.quick else 4)
            for kib in sizes:
                remount(f"size={kib}k")
                inside.tally.count("sizes of disk")
                found = _asked(inside, service, f"disk of {kib} KiB")
                if found is not None:
                    found.unlink()
                inside.hold(older.read_bytes() == kept, f"older one changed at {kib} KiB")
                inside.hold(not service.wrong(), f"at {kib} KiB: {service.wrong()}")
            inside.hold(found is not None, "never enough")
            remount(f"size={used + 4}k")
            _dies(service, worker)
            until(lambda: service.said("no snapshot of death"))
            inside.one_line(service.said("no snapshot of death")[:1], "untouched", "a death")
            remount("size=4m")
            _told_once(inside, service, worker.pid, "full disk")
            inside.quiet(service.log, "full disk")

    ground.within(sweep)


def real_disk(ground: Ground) -> None:
    """A real file system, ext4 of a megabyte, that somebody else fills little by little."""
    maker = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if maker is None or os.geteuid():
        raise Impossible("only root mounts a disk, and mkfs.ext4 must be there")

    def fill(inside: Ground) -> None:
        with inside.folder() as place:
            image, disk = place / "image", place / "disk"
            image.write_bytes(b"")
            os.truncate(image, 1 << 20)
            disk.mkdir()
            subprocess.run([maker, "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
            done = subprocess.run(
                ["mount", "-o", "loop", str(image), str(disk)], capture_output=True, text=True
            )
            if done.returncode:
                raise Impossible(f"no loop device: {done.stderr.strip()}")
            try:
                with Service(place, snapshots=disk / "s") as service:
                    _filled_by_another(inside, service, disk)
            finally:
                subprocess.run(["umount", str(disk)], check=True)

    ground.within(fill)


def _filled_by_another(ground: Ground, service: Service, disk: Path) -> None:
    ground.hold(service.serves(), f"no collector: {service.said()}")
    worker = service.program()
    worker.attach(service.name)
    worker.do("work(0.02)")
    older = _asked(ground, service, "with room")
    assert older is not None
    kept = older.read_bytes()
    path = None
    for n in range(400):
        with contextlib.suppress(OSError):
            (disk / f"another's {n}").write_bytes(bytes(16 * 1024 if ground.quick else 4096))
        ground.tally.count("sizes of disk")
        path = _asked(ground, service, f"ext4, {n} files of another's")
        if path is None:
            break
        path.unlink()
    ground.hold(path is None, "never full")
    ground.hold(older.read_bytes() == kept, "the older one has changed")
    ground.hold(not service.wrong(), f"on ext4: {service.wrong()}")
    _dies(service, worker)
    until(lambda: service.said("no snapshot of death"))
    for each in disk.glob("another*"):
        each.unlink()
    _told_once(ground, service, worker.pid, "ext4")
    ground.hold(service.stop() == 0, "the collector ended with an error")
    ground.quiet(service.log, "ext4")


def steps(ground: Ground) -> None:
    """Every call that a snapshot makes of the disk fails in turn: full, over quota, broken."""
    with (
        ground.folder() as place,
        Gate(_STEPS) as gate,
        Service(place, enter=gate.enter) as service,
    ):
        ground.hold(service.serves(), f"no collector: {service.said()}")
        worker = service.program()
        worker.attach(service.name)
        worker.do("work(0.02)")
        for code in _FULL[: 1 if ground.quick else None]:
            _sweep_asked(ground, service, gate, code)
        result = worker.do("work(0.02)")
        ground.hold(not result["error"] and not result["warned"], f"worker: {result}")
        ground.quiet(service.log, "steps of a disk")


def _sweep_asked(ground: Ground, service: Service, gate: Gate, code: int) -> None:
    for n in range(1, 400):
        decision = Nth(n, code)
        gate.decide = decision
        path = _asked(ground, service, f"{os.strerror(code)} at call {n}")
        gate.decide = lambda name, arguments: 0
        if not decision.failed:
            break
        ground.tally.count(f"failed {decision.failed[0]} calls")
        ground.hold(not service.wrong(), f"after {decision.failed} {n}: {service.wrong()}")
        if path is not None:
            path.unlink()
        ground.hold(service.collector.poll() is None, "the collector has ended")
    else:
        ground.hold(False, "the calls of a snapshot have no end")


def death_steps(ground: Ground) -> None:
    """The same, while what is to be written is a death: it is told once all the same."""
    calls = [("fsync", errno.EIO, 2), ("fsync", errno.EDQUOT, 1), ("linkat", errno.ENOSPC, 1)]
    calls += [("writev", errno.EDQUOT, 1), ("openat", errno.EMFILE, 1)]
    for name, code, n in calls[: 1 if ground.quick else None]:
        with (
            ground.folder() as place,
            Gate(_STEPS) as gate,
            Service(place, enter=gate.enter) as service,
        ):
            ground.hold(service.serves(), f"no collector: {service.said()}")
            worker = service.program()
            worker.attach(service.name)
            worker.do("work(0.02)")
            gate.decide = Nth(n, code, only=[name])
            _dies(service, worker)
            where = f"death, {name} {n}: {os.strerror(code)}"
            _told_once(ground, service, worker.pid, where)
            ground.tally.count("deaths tried")
            if name == "fsync" and n == 2:
                ground.one_line(service.said("could not be synced"), "whole", where)
            ground.quiet(service.log, where)


def read_only(ground: Ground) -> None:
    """A disk that becomes read-only, and writable again."""

    def remounted(inside: Ground) -> None:
        with (
            inside.folder() as place,
            mounted(disk := place / "disk", "size=2m") as remount,
            Service(place, snapshots=disk / "s") as service,
        ):
            inside.hold(service.serves(), f"no collector: {service.said()}")
            worker = service.program()
            worker.attach(service.name)
            _asked(inside, service, "before")
            remount(flags=READ_ONLY)
            inside.hold(_asked(inside, service, "read-only") is None, "written all the same")
            _dies(service, worker)
            until(lambda: service.said("no snapshot of death"))
            inside.one_line(service.said("no snapshot of death")[:1], "Read-only", "death")
            remount()
            _told_once(inside, service, worker.pid, "read-only")
            inside.quiet(service.log, "read-only")

    ground.within(remounted)


def replaced(ground: Ground) -> None:
    """The directory is removed, replaced by a file, by a link, and while it is written to."""
    with (
        ground.folder() as place,
        Gate(["fsync"]) as gate,
        Service(place, enter=gate.enter) as service,
    ):
        ground.hold(service.serves(), f"no collector: {service.said()}")
        shutil.rmtree(service.snapshots)
        ground.hold(_asked(ground, service, "removed"), "removed: not made anew")
        shutil.rmtree(service.snapshots)
        service.snapshots.write_text("mine")
        ground.hold(_asked(ground, service, "a file") is None, "written to a file")
        ground.hold(service.snapshots.read_text() == "mine", "a file was overwritten")
        service.snapshots.unlink()
        (place / "elsewhere").mkdir()
        service.snapshots.symlink_to(place / "elsewhere")
        ground.hold(_asked(ground, service, "a link") is None, "a link was followed")
        service.snapshots.unlink()
        ground.hold(_asked(ground, service, "nothing there"), "not made anew")

        def vanish(name: str, arguments: Sequence[int]) -> int:
            gate.decide = lambda name, arguments: 0
            shutil.rmtree(service.snapshots)
            return 0

        gate.decide = vanish
        ground.hold(_asked(ground, service, "meanwhile") is None, "linked into nowhere")
        ground.hold(_asked(ground, service, "afterwards"), "not made anew")
        ground.tally.count("directories replaced", 6)
        ground.quiet(service.log, "replaced")


def slow(ground: Ground) -> None:
    """A disk that takes seconds: nobody who records waits; deaths meanwhile are told afterwards."""
    seconds = 1.5 if ground.quick else 6.0
    slow_now, go_on = threading.Event(), threading.Event()

    def linger(name: str, arguments: Sequence[int]) -> int:
        slow_now.set()
        go_on.wait(seconds * 4)
        return 0

    with (
        ground.folder() as place,
        Gate(["fsync"]) as gate,
        Service(place, enter=gate.enter) as service,
    ):
        ground.hold(service.serves(), f"no collector: {service.said()}")
        workers = [service.program() for _ in range(3)]
        for each in workers:
            each.attach(service.name)
        before = workers[0].do("work(0.3)")["value"]
        service.noticed()
        gate.decide = linger
        asked = threading.Thread(target=lambda: _asked(ground, service, "slow disk"))
        asked.start()
        ground.hold(slow_now.wait(20), "the disk was never asked")
        workers[1].kill()
        workers[2].kill(11)
        during = workers[0].do(f"work({seconds})")
        _same_pace(ground, before, during["value"], "slow disk")
        # One who has no patience is told what is the matter.
        impatient = workers[0].do("shmrec.snapshot('impatient', timeout=0.5)")
        ground.hold(impatient["value"] is None, f"impatient: {impatient}")
        ground.one_line(impatient["warned"], "did not answer within", "impatient")
        gate.decide = lambda name, arguments: 0
        go_on.set()
        asked.join()
        for each in workers[1:]:
            _told_once_together(ground, service, each.pid, "slow disk")
        ground.one_line(service.said("slow"), "took", "slow disk")
        ground.tally.count("seconds of a slow disk", int(seconds))
        ground.quiet(service.log, "slow disk")


def _same_pace(ground: Ground, before: dict[str, int], during: dict[str, int], where: str) -> None:
    """Events cost what they did, and nobody waited for anybody."""
    cost = [each["cpu_ns"] / max(1, each["events"]) for each in (before, during)]
    ground.hold(cost[1] < 2 * cost[0], f"{where}: {cost[1]:.0f} ns an event, not {cost[0]:.0f}")
    ground.hold(during["waits"] == 0, f"{where}: waited {during['waits']} times")
    ground.tally.count("events recorded meanwhile", during["events"])


def _told_once_together(ground: Ground, service: Service, pid: int, where: str) -> None:
    until(lambda: _tellings(service, pid), _RETRY_SECONDS)
    service.ask("after the deaths")
    found = _tellings(service, pid)
    ground.hold(len(found) == 1, f"{where}: death of pid {pid} told in {found}")
    ground.tally.count("deaths told once")


CASES: Final[dict[str, Case]] = {
    "disk-full": full,
    "disk-ext4": real_disk,
    "disk-steps": steps,
    "disk-death": death_steps,
    "disk-read-only": read_only,
    "disk-replaced": replaced,
    "disk-slow": slow,
}
