"""What forensics needs of a machine: each check looks at one thing and says what its lack costs.

Runs in ``shmrec-dump doctor``. Nothing here is needed to record: without it, a report says less.
``/proc`` is given, so that another machine's can be looked at, as far as it has a process of this
one's number. Whatever its files hold, no check raises; what cannot be read or understood counts
as lacking. Where the producers or the collector look as well, their own code looks here: nothing
is said to be there that they would not find.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shmrec import process
from shmrec.cgroup import Cgroups
from shmrec.commands.kernelfiles import content, hidepid, table, to_mask, to_number
from shmrec.commands.wording import counted, safe, size
from shmrec.deaths import Watcher
from shmrec.layout import DEFAULT_PRODUCERS
from shmrec.stacks import ENVIRONMENT, polite_signal
from shmrec.stacks import stack_signal as chosen_signal

__all__ = ["Check", "checks"]

PROC: Final = Path("/proc")

_HANDLINGS: Final = ("caught", "blocked")
"""What `process.Signals` has that makes a signal somebody's; one that is ignored is free."""
_CAP_SYS_PTRACE: Final = 19

_CHILD_SECONDS: Final = 10.0
_PTRACE_SCOPES: Final = {0: "open", 1: "descendants only", 2: "administrator only", 3: "nobody"}
_NOT_HIDDEN: Final = ("0", "off")
_OTHER_FILES: Final = 64
"""Descriptors that a collector has beside those of its producers, generously."""

_GUNICORN_OLDEST, _GUNICORN_NEWEST = (20, 1), 27
_GUNICORN_ASGI: Final = 24


@dataclass(frozen=True)
class Check:
    """What one look found.

    `key` and `value` are for programs, `label` and `text` a row for people. Each of `hints` is
    one line: what a lack costs, and what to do.
    """

    key: str
    value: Any
    label: str
    text: str
    hints: list[str] = field(default_factory=list)


def checks(proc: Path = PROC, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """All of them, in the order in which they are shown."""
    return [
        exit_status(),
        stack_signal(proc, environ),
        stacks(proc),
        core(proc),
        memory_cgroup(proc),
        machine_kills(proc),
        other_processes(proc),
        open_files(),
        gunicorn(),
    ]


def exit_status(watcher: Callable[[], Watcher] = Watcher) -> Check:
    """Whether a process's status can still be had when its parent has reaped it.

    The kernel must be tried with a process that was reaped: older ones ignore what they do not
    know about one that lives.
    """
    known = False
    command = [sys.executable or "python3", "-I", "-S", "-c", "import sys; sys.stdin.read(1)"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        watching = watcher()
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            watched = watching.watch(0, 1, child.pid, process.start_ticks(child.pid))
            child.communicate(b"", timeout=_CHILD_SECONDS)
            known = watching.cause(watched) is not None
        finally:
            child.kill()
            child.communicate()
            watching.close()
    hint = (
        "the status of a process that was reaped cannot be had (PIDFD_GET_INFO): why one died is "
        "known only while it is a zombie, or from its parent: use Linux 6.15, or a host that "
        "tells, as gunicorn does"
    )
    return Check(
        "pidfd_info",
        known,
        "exit status",
        "kept after reaping" if known else "lost with reaping",
        [] if known else [hint],
    )


def stack_signal(proc: Path = PROC, environ: Mapping[str, str] = os.environ) -> Check:
    """Whether the signals at which processes leave their stacks are free here: `number`, at which
    they do at once, and `polite`, at which they do as soon as that is safe.

    What this process inherited is what a service started in the same way inherits.
    """
    asked = environ.get(ENVIRONMENT, "")
    number = chosen_signal(environ)
    polite = polite_signal(number) if number else None
    found: dict[str, Any] = {"number": number, "polite": polite, "asked": asked or None}
    found |= {"taken": [], "polite_taken": []}
    label = "signals for stacks"
    if number == 0 and asked == "0":
        return Check("stack_signal", found, label, f"off, as {ENVIRONMENT}=0 asks")
    if number == 0:
        found["number"] = None
        hint = (
            f"{ENVIRONMENT}={safe(asked)[:40]} is no real-time signal: no process leaves its "
            f"stacks when asked: unset it, or choose from {int(signal.SIGRTMIN)} to "
            f"{int(signal.SIGRTMAX)}"
        )
        return Check("stack_signal", found, label, "none", [hint])
    mine = process.signals(os.getpid(), proc=str(proc))
    at_once, politely = (
        [how for how in _HANDLINGS if getattr(mine, how) & process.signal_bit(each)]
        for each in (number, polite_signal(number))
    )
    found |= {"taken": at_once, "polite_taken": politely}
    hints = []
    if at_once:
        hints.append(
            f"signal {number} is {' and '.join(at_once)} here already: processes started so leave "
            f"no stacks when asked: set {ENVIRONMENT} to another real-time signal, or to 0 to do "
            "without"
        )
    elif politely:
        hints.append(
            f"signal {polite} is {' and '.join(politely)} here already: processes started so leave "
            "their stacks at once, which may crash one whose threads are busy: set "
            f"{ENVIRONMENT} to another real-time signal, the first of two"
        )
    rows = [
        f"{each}, {' and '.join(how) or 'free'}"
        for each, how in ((number, at_once), (polite, politely))
    ]
    return Check("stack_signal", found, label, "; ".join(rows), hints)


def stacks(proc: Path = PROC) -> Check:
    """Whether faulthandler is there and can be given a descriptor into memory to write to."""
    memory = True
    try:
        os.close(os.open(proc / "self" / "mem", os.O_RDWR | os.O_CLOEXEC))
    except (OSError, ValueError):
        memory = False
    handler = True
    try:
        importlib.import_module("faulthandler")
    except Exception:
        handler = False
    hints = []
    if not memory:
        hints.append(
            f"{proc}/self/mem may not be opened for writing: no process can leave its stacks: "
            "mount /proc writable, and let the security profile allow it"
        )
    if not handler:
        hints.append(
            "faulthandler cannot be imported: no process can leave its stacks: use a CPython that "
            "has it"
        )
    lacking = "/proc/self/mem" if not memory else "faulthandler"
    text = f"no: {lacking}" if hints else "can be written"
    value = {"memory": memory, "faulthandler": handler}
    return Check("stacks", value, "stacks", text, hints)


def core(proc: Path = PROC, limit: int | None = None) -> Check:
    """What a fatal signal leaves beside what shmrec keeps; it needs no core.

    `limit` is RLIMIT_CORE in bytes, -1 where there is none; by default this process's.
    """
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_CORE)[0]
    pattern = content(proc / "sys" / "kernel" / "core_pattern").strip()
    found = {"pattern": pattern, "limit": limit, "kind": "file"}
    if pattern.startswith("|"):
        found["kind"] = "pipe"
        handler = (pattern[1:].split() or ["?"])[0]
        # The process exists until its handler has read it: core(5).
        text = f"to {safe(handler)}; a death is noticed once it has read the memory"
    elif not pattern or limit == 0:
        found["kind"] = "none"
        text = "none; shmrec needs none"
    else:
        most = "" if limit < 0 else f", {size(limit)} at most"
        text = f"to file {safe(pattern)[:80]}{most}; shmrec needs none"
    return Check("core", found, "core dumps", text)


def memory_cgroup(proc: Path = PROC) -> Check:
    """Whether this process's memory cgroup tells its kills for want of memory, and its limit.

    As a collector finds it, so that what is missing here is missing there.
    """
    label = "memory cgroup"
    group = Cgroups(str(proc)).of(os.getpid())
    if group is None:
        hint = (
            "no memory cgroup can be read: an out-of-memory kill cannot be told from another "
            "SIGKILL: mount /sys/fs/cgroup where the collector runs, and give the service a "
            "memory cgroup (systemd: MemoryAccounting=yes)"
        )
        return Check("cgroup", None, label, "none", [hint])
    kills, limit = group.kills(), group.limit()
    found = {
        "version": group.version,
        "path": group.folder,
        "oom_kill": kills,
        "limit": limit.limit,
        "limit_source": limit.source,
    }
    text = f"v{group.version}, limit {size(limit.limit) if limit.limit else 'none'}"
    if kills is None:
        hint = (
            f"{safe(group.source)} does not count oom_kill: an out-of-memory kill is known by the "
            "whole machine's count alone: use Linux 4.13"
        )
        return Check("cgroup", found, label, f"{text}, kills not counted", [hint])
    return Check("cgroup", found, label, f"{text}, {counted(kills, 'kill')} so far")


def machine_kills(proc: Path = PROC) -> Check:
    """Whether the kernel counts the kills for want of memory on the whole machine."""
    number = Cgroups(str(proc)).machine.kills()
    if number is None:
        hint = (
            "/proc/vmstat does not count oom_kill: out-of-memory kills are known by the cgroup "
            "alone: use Linux 4.13, with /proc/vmstat readable"
        )
        return Check("oom_kill", None, "machine's kills", "not counted", [hint])
    text = f"{number:,} for want of memory since it was started"
    return Check("oom_kill", number, "machine's kills", text)


def other_processes(proc: Path = PROC) -> Check:
    """How far other processes' ``wchan``, ``syscall`` and ``fd`` may be read.

    Yama asks only where another's call is read, hidepid only of another user's processes; who
    has CAP_SYS_PTRACE may mostly do both.
    """
    scope = to_number(content(proc / "sys" / "kernel" / "yama" / "ptrace_scope").strip())
    hidden = hidepid(proc)
    capable = bool(
        to_mask(table(content(proc / "self" / "status")).get("CapEff")) >> _CAP_SYS_PTRACE & 1
    )
    waiting = os.path.exists(proc / "self" / "wchan")
    found = {"ptrace_scope": scope, "hidepid": hidden, "cap_sys_ptrace": capable, "wchan": waiting}
    hints = []
    if scope and (scope > 2 or not capable):
        hints.append(
            f"kernel.yama.ptrace_scope is {scope} ({_PTRACE_SCOPES.get(scope, 'unknown')}): in "
            "which system call another process is cannot be read, only where it waits: set it "
            "to 0, or give the collector CAP_SYS_PTRACE, where that matters"
        )
    if hidden not in _NOT_HIDDEN and not capable:
        hints.append(
            f"/proc is mounted with hidepid={safe(hidden)[:20]}: of processes that changed their "
            "user neither memory nor open files nor status can be read: run the collector as "
            "root, or mount /proc with gid= of a group of its own"
        )
    if not waiting:
        hints.append(
            "there is no /proc/PID/wchan: where in the kernel a process waits cannot be told: use "
            "a kernel with CONFIG_KALLSYMS"
        )
    text = "may be inspected" if not hints else "may be inspected in part"
    return Check("other_processes", found, "other processes", text, hints)


def open_files(limit: int | None = None) -> Check:
    """For how many producers a collector may hold a pidfd, which is one descriptor each.

    `limit` is RLIMIT_NOFILE, -1 where there is none; by default this process's.
    """
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < 0:
        return Check("open_files", None, "open files", "without a limit")
    watched = max(0, limit - _OTHER_FILES)
    text = f"{limit:,}, enough to watch {watched:,} processes"
    hints = []
    if watched < DEFAULT_PRODUCERS:
        hints.append(
            f"only {limit} files may be open: beyond {watched} processes a death is looked for in "
            f"/proc, and its status may be lost: raise it (ulimit -n {8 * DEFAULT_PRODUCERS})"
        )
    return Check("open_files", limit, "open files", text, hints)


def gunicorn(version: str | None = None) -> Check:
    """Which gunicorn is installed, whether its integration knows it, and for which workers.

    `version` is by default what is installed.
    """
    if version is None:
        version = _installed("gunicorn")
    if not version:
        return Check("gunicorn", None, "gunicorn", "not installed")
    digits = re.match(r"(\d{1,6})(?:\.(\d{1,6}))?", version)
    release = (int(digits[1]), int(digits[2] or 0)) if digits else (0, 0)
    known = release >= _GUNICORN_OLDEST and release[0] <= _GUNICORN_NEWEST
    workers = ["sync", "gthread"]
    workers += ["gevent"] * _there("gevent") + ["asgi"] * (release[0] >= _GUNICORN_ASGI)
    found = {"version": version, "supported": known, "workers": workers}
    text = f"{safe(version)[:40]}, request spans with {', '.join(workers)} workers"
    hints = []
    if not known:
        oldest = ".".join(map(str, _GUNICORN_OLDEST))
        hints.append(
            f"gunicorn {safe(version)[:40]} is not among the versions known, {oldest} to "
            f"{_GUNICORN_NEWEST}: timeouts and deaths may not be told from its log: install one "
            "of those"
        )
    return Check("gunicorn", found, "gunicorn", text, hints)


def _installed(name: str) -> str | None:
    try:
        found = importlib.metadata.version(name)
    except Exception:
        # Metadata is a file that anybody may have written.
        return None
    return found if isinstance(found, str) else None


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:
        return False
