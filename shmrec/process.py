"""Who a process is, and whether it still is: pids get reused, start times tell.

Used by all processes. Reads ``/proc``; where there is none, a start time is 0 and only the
pid is compared.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

__all__ = [
    "Signals",
    "Stat",
    "alive",
    "boot_id",
    "pid_namespace",
    "running",
    "send_to_thread",
    "signal_bit",
    "signals",
    "start_ticks",
    "stat",
    "task_said",
    "tasks",
    "user",
    "users_of",
    "writes_own_memory",
]

# Fields of /proc/PID/stat behind the parenthesised command, see proc(5): state is field 3.
_STATE: Final = 0
_USER: Final = 14 - 3
_SYSTEM: Final = 15 - 3
_THREADS: Final = 20 - 3
_START: Final = 22 - 3
_RESIDENT: Final = 24 - 3
_EXIT_CODE: Final = 52 - 3
_STAT_BYTES: Final = 4096
_DESCRIPTORS_LIMIT: Final = 1024


class Stat(NamedTuple):
    """What /proc/PID/stat says: state letter, start in clock ticks, wait status.

    And what it uses: processor time of user and system in clock ticks, threads, resident pages.
    """

    state: str
    start_ticks: int
    wait_status: int
    processor_ticks: int = 0
    threads: int = 0
    resident_pages: int = 0


def stat(pid: int) -> Stat | None:
    """The process's stat line, or None if there is no such process.

    `wait_status` is 0 unless the process is a zombie that the caller may inspect.
    """
    try:
        # A file object would cost more than the rest: the collector asks this all day.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, _STAT_BYTES).rpartition(b")")[2].split()
        finally:
            os.close(fd)
        return Stat(
            fields[_STATE].decode("ascii"),
            int(fields[_START]),
            int(fields[_EXIT_CODE]) if len(fields) > _EXIT_CODE else 0,
            int(fields[_USER]) + int(fields[_SYSTEM]),
            int(fields[_THREADS]),
            int(fields[_RESIDENT]),
        )
    except (OSError, IndexError, ValueError):
        return None


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if it cannot be learnt."""
    seen = stat(pid)
    return seen.start_ticks if seen else 0


def alive(pid: int, started: int) -> bool:
    """Whether that very process still runs; a zombie does not."""
    if not 0 < pid < 1 << 31:
        return False
    seen = stat(pid)
    if seen is not None:
        return seen.state not in "ZX" and (not started or seen.start_ticks == started)
    # No stat line: it has gone, or there is no /proc, or we have no descriptor left to look.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Signals(NamedTuple):
    """Masks of signals, as /proc/PID/status has them: bit n - 1 is signal n."""

    pending: int = 0
    blocked: int = 0
    ignored: int = 0
    caught: int = 0


_MASKS: Final = (b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:", b"SigCgt:")


def signal_bit(number: int) -> int:
    """The bit of a signal in a mask."""
    return 1 << (number - 1)


def signals(pid: int, task: int = 0, proc: str = "/proc") -> Signals:
    """What the process, or one thread of it, does with signals; nothing if it cannot be read.

    `pending` is what waits for the thread, without one the main thread, or for the whole process;
    `proc` is where procfs is mounted.
    """
    path = f"{proc}/{pid}/task/{task}/status" if task else f"{proc}/{pid}/status"
    try:
        with open(path, "rb") as file:
            fields = dict(line.split(None, 1) for line in file if line.startswith(_MASKS))
        thread, shared, *others = (int(fields[name], 16) for name in _MASKS)
        return Signals(thread | shared, *others)
    except (OSError, ValueError, KeyError):
        return Signals()


def running(pid: int, task: int) -> bool:
    """Whether that thread of the process is on a processor, or about to be."""
    try:
        with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
            return file.read(_STAT_BYTES).rpartition(b")")[2].split()[0] == b"R"
    except (OSError, IndexError):
        return False


def task_said(pid: int, task: int) -> tuple[str, str] | None:
    """What the kernel calls that thread of the process, and its state letter."""
    try:
        with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
            name, _, rest = file.read(_STAT_BYTES).partition(b"(")[2].rpartition(b")")
        return name.decode("utf-8", "replace"), rest.split()[0].decode("ascii", "replace")
    except (OSError, IndexError):
        return None


def send_to_thread(pid: int, task: int, number: int) -> bool:
    """Send the signal to one thread of the process; False where there is no way to.

    Raises `OSError` if there is no such thread any more.
    """
    # Imported here: producers use this module too, and they never send.
    import ctypes

    tgkill = getattr(ctypes.CDLL(None, use_errno=True), "tgkill", None)
    if tgkill is None:
        return False
    if tgkill(pid, task, number):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return True


def tasks(pid: int) -> list[int]:
    """The process's threads; none if it has gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task") if name.isdigit()]
    except OSError:
        return []


def user(pid: int) -> int | None:
    """The real user of the process, or None if that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            # Whose the directory is says nothing: of one that changed its user it is root's.
            return next(int(line.split()[1]) for line in file if line.startswith(b"Uid:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def writes_own_memory(pid: int, first: int = 0) -> bool | None:
    """Whether the process has its own ``/proc/PID/mem`` open; None if that cannot be seen.

    Descriptors from `first` on are looked at before the others.
    """
    own = f"/{pid}/mem"
    try:
        numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd") if name.isdigit()]
    except OSError:
        return None
    numbers.sort(key=lambda number: (number < first, number))
    unseen = len(numbers) > _DESCRIPTORS_LIMIT
    for number in numbers[:_DESCRIPTORS_LIMIT]:
        try:
            if os.readlink(f"/proc/{pid}/fd/{number}").endswith(own):
                return True
        except PermissionError:
            # Who may look into the directory may not follow what is in it.
            unseen = True
        except OSError:
            continue
    return None if unseen else False


def users_of(path: str) -> list[int]:
    """The processes, as far as this user may look, that have the file mapped."""
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/maps", "rb") as file:
                    if any(line.rstrip().endswith(os.fsencode(path)) for line in file):
                        found.append(int(entry))
            except OSError:
                continue
    return found


def boot_id() -> bytes:
    """16 bytes that change at every boot; zeros where the kernel tells none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read().decode("ascii").strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def pid_namespace() -> int:
    """The inode of this process's pid namespace; 0 where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
