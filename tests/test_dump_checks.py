"""What forensics needs of a machine: on machines made by hand, whatever they say."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmrec import deaths
from shmrec.commands import checks
from shmrec.commands.checks import Check

STATUS = """Name:\tdoctor
SigPnd:\t0000000000000000
ShdPnd:\t0000000000000000
SigBlk:\t{blocked:016x}
SigIgn:\t{ignored:016x}
SigCgt:\t{caught:016x}
CapEff:\t{capabilities:016x}
"""
MOUNTS = "22 27 0:21 / /proc rw,relatime - proc proc rw{option}\n"
CGROUP2 = "31 23 0:28 / {point} rw,nosuid - cgroup2 cgroup2 rw\n"
CGROUP1 = "32 23 0:29 / {point}/memory rw,nosuid - cgroup cgroup rw,memory\n"
CAP_SYS_PTRACE = 1 << 19


class Machine:
    """A ``/proc`` with this process in it, and a ``/sys/fs/cgroup``, of files."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        (self.proc / str(os.getpid())).mkdir(parents=True)
        (self.proc / "self").symlink_to(str(os.getpid()))
        self.write("self/mem", "")
        self.write("self/wchan", "0")
        self.mounts(MOUNTS.format(option=""))
        self.write("sys/kernel/core_pattern", "core\n")
        self.write("vmstat", "nr_free_pages 1\noom_kill 7\n")
        self.write("self/cgroup", "0::/app\n")
        self.write_cgroup("app/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
        self.write_cgroup("app/memory.max", "536870912\n")
        self.status()

    def write(self, name: str, text: str | bytes) -> None:
        self._write(self.proc / name, text)

    def mounts(self, text: str, kind: str = CGROUP2) -> None:
        self.write("self/mountinfo", text + kind.format(point=self.cgroup))

    def write_cgroup(self, name: str, text: str | bytes) -> None:
        self._write(self.cgroup / name, text)

    def _write(self, path: Path, text: str | bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    def remove(self, name: str) -> None:
        (self.proc / name).unlink()

    def status(
        self, blocked: int = 0, ignored: int = 0, caught: int = 0, capabilities: int = 0
    ) -> None:
        masks = {"blocked": blocked, "ignored": ignored, "caught": caught}
        self.write("self/status", STATUS.format(**masks, capabilities=capabilities))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def only_hint(check: Check) -> str:
    (hint,) = check.hints
    # One line: what is the case, what it costs, what to do.
    assert "\n" not in hint
    assert hint.count(": ") >= 2 or "SHMREC_SIGNAL" in hint
    return hint


def test_a_machine_that_has_everything(machine: Machine) -> None:
    found = {
        each.key: each
        for each in checks.checks(machine.proc, {})
        # These look at the kernel and at this process.
        if each.key not in ("pidfd_info", "open_files", "gunicorn")
    }
    assert [hint for each in found.values() for hint in each.hints] == []
    assert found["stack_signal"].value == {
        "number": 57,
        "polite": 58,
        "asked": None,
        "taken": [],
        "polite_taken": [],
    }
    assert found["stack_signal"].text == "57, free; 58, free"
    assert found["stacks"].value == {"memory": True, "faulthandler": True}
    assert found["oom_kill"].value == 7
    assert found["cgroup"].text == "v2, limit 512.0 MiB, 2 kills so far"


def test_the_status_after_reaping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "_exit_status", lambda pidfd: 0)
    assert checks.exit_status().value is True
    assert checks.exit_status().hints == []
    monkeypatch.setattr(deaths, "_exit_status", lambda pidfd: None)
    assert checks.exit_status().value is False
    assert "Linux 6.15" in only_hint(checks.exit_status())

    def refuse(pidfd: int) -> int:
        raise PermissionError(pidfd)

    monkeypatch.setattr(deaths, "_exit_status", refuse)
    assert checks.exit_status().value is False
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert checks.exit_status().value is False


@pytest.mark.parametrize("how", ["blocked", "caught"])
def test_a_signal_that_is_taken(how: str, machine: Machine) -> None:
    machine.status(**{how: 1 << 56})
    found = checks.stack_signal(machine.proc, {})
    assert (found.value["taken"], found.value["polite_taken"]) == ([how], [])
    assert found.text == f"57, {how}; 58, free"
    assert f"signal 57 is {how} here" in only_hint(found)
    # Their neighbours are somebody else's.
    machine.status(**{how: 1 << 55 | 1 << 58})
    assert checks.stack_signal(machine.proc, {}).hints == []
    taken = checks.stack_signal(machine.proc, {"SHMREC_SIGNAL": "59"})
    assert (taken.value["number"], taken.value["polite"]) == (59, 60)
    assert taken.value["taken"] == [how]


@pytest.mark.parametrize("how", ["blocked", "caught"])
def test_the_polite_signal_that_is_taken(how: str, machine: Machine) -> None:
    machine.status(**{how: 1 << 57})
    found = checks.stack_signal(machine.proc, {})
    assert (found.value["taken"], found.value["polite_taken"]) == ([], [how])
    assert f"signal 58 is {how} here" in only_hint(found)
    assert "may crash" in only_hint(found)
    # The last one's other is the one before.
    machine.status(**{how: 1 << 62})
    last = checks.stack_signal(machine.proc, {"SHMREC_SIGNAL": str(int(signal.SIGRTMAX))})
    assert (last.value["polite"], last.value["polite_taken"]) == (63, [how])


def test_a_signal_that_is_ignored_is_free(machine: Machine) -> None:
    # As whoever has left a recording leaves it to the programs that it starts.
    machine.status(ignored=1 << 56 | 1 << 57)
    found = checks.stack_signal(machine.proc, {})
    assert (found.text, found.hints) == ("57, free; 58, free", [])


def test_a_signal_that_is_switched_off(machine: Machine) -> None:
    machine.status(caught=-1 % (1 << 64))
    found = checks.stack_signal(machine.proc, {"SHMREC_SIGNAL": "0"})
    assert (found.value["number"], found.hints) == (0, [])
    assert found.text.startswith("off")


@pytest.mark.parametrize(
    "asked", ["9", "10", "19", "65", "-1", "x", "1e1", "²", "9" * 99, "32", " 60", "00"]
)
def test_what_is_no_signal_for_stacks(asked: str, machine: Machine) -> None:
    found = checks.stack_signal(machine.proc, {"SHMREC_SIGNAL": asked})
    assert found.value["number"] is found.value["polite"] is None
    assert found.value["asked"] == asked
    hint = only_hint(found)
    assert f"SHMREC_SIGNAL={asked[:40]} is no real-time signal" in hint
    assert f"from {int(signal.SIGRTMIN)} to {int(signal.SIGRTMAX)}" in hint


def test_stacks_need_memory_to_write_to_and_faulthandler(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.remove("self/mem")
    assert "self/mem may not be opened for writing" in only_hint(checks.stacks(machine.proc))
    machine.write("self/mem", "")
    monkeypatch.setitem(sys.modules, "faulthandler", None)
    found = checks.stacks(machine.proc)
    assert found.value == {"memory": True, "faulthandler": False}
    assert "faulthandler cannot be imported" in only_hint(found)


@pytest.mark.parametrize(
    ("pattern", "limit", "kind", "text"),
    [
        ("core", 0, "none", "none; shmrec needs none"),
        ("", -1, "none", "none; shmrec needs none"),
        ("core.%p", -1, "file", "to file core.%p; shmrec needs none"),
        ("core.%p", 1 << 20, "file", "to file core.%p, 1.0 MiB at most; shmrec needs none"),
        # A handler is given the core whatever the limit is.
        ("|/usr/lib/handler %P %u", 0, "pipe", "to /usr/lib/handler; a death is noticed once"),
        ("|", 0, "pipe", "to ?"),
        ("|\x1b[31m", 0, "pipe", r"to \x1b[31m"),
    ],
)
def test_core_dumps(pattern: str, limit: int, kind: str, text: str, machine: Machine) -> None:
    machine.write("sys/kernel/core_pattern", f"{pattern}\n")
    found = checks.core(machine.proc, limit)
    assert found.value == {"pattern": pattern, "limit": limit, "kind": kind}
    assert found.text.startswith(text)
    assert found.hints == []


def cgroup(machine: Machine) -> dict[str, Any] | None:
    found: dict[str, Any] | None = checks.memory_cgroup(machine.proc).value
    return found


def test_the_cgroup_that_a_collector_finds(machine: Machine) -> None:
    app = machine.cgroup / "app"
    told = {"version": 2, "path": str(app), "oom_kill": 2}
    limit = {"limit": 512 << 20, "limit_source": f"{app}/memory.max"}
    assert cgroup(machine) == told | limit
    # A limit above is one as well.
    machine.write_cgroup("memory.max", "1048576\n")
    limit = {"limit": 1 << 20, "limit_source": f"{machine.cgroup}/memory.max"}
    assert cgroup(machine) == told | limit
    machine.write_cgroup("memory.max", "max\n")
    machine.write_cgroup("app/memory.max", "max\n")
    assert cgroup(machine) == told | {"limit": 0, "limit_source": ""}
    assert checks.memory_cgroup(machine.proc).text == "v2, limit none, 2 kills so far"
    # What is mounted may be the inside of another.
    machine.write("self/cgroup", "0::/elsewhere\n")
    assert cgroup(machine) is None


def test_a_cgroup_of_version_1_that_may_not_count(machine: Machine) -> None:
    machine.mounts("", CGROUP2 + CGROUP1)
    machine.write("self/cgroup", "5:cpu,memory:/app\n1:name=systemd:/\n0::/app\n")
    machine.write_cgroup("memory/app/memory.oom_control", "under_oom 0\noom_kill 4\n")
    machine.write_cgroup("memory/app/memory.limit_in_bytes", "1024\n")
    folder = machine.cgroup / "memory" / "app"
    found = cgroup(machine) or {}
    assert (found["version"], found["path"]) == (1, str(folder))
    assert (found["oom_kill"], found["limit"]) == (4, 1024)
    # Before Linux 4.13 nothing was counted.
    machine.write_cgroup("memory/app/memory.oom_control", "under_oom 0\n")
    check = checks.memory_cgroup(machine.proc)
    assert check.value["oom_kill"] is None
    assert check.text == "v1, limit 1.0 KiB, kills not counted"
    assert f"{folder}/memory.oom_control does not count oom_kill" in only_hint(check)


@pytest.mark.parametrize("name", ["self/cgroup", "cgroup"])
def test_no_cgroup(name: str, machine: Machine) -> None:
    if name == "cgroup":
        (machine.cgroup / "app" / "memory.events").unlink()
    else:
        machine.remove(name)
    found = checks.memory_cgroup(machine.proc)
    assert found.value is None
    assert "cannot be told from another SIGKILL" in only_hint(found)


def test_kills_that_are_not_counted(machine: Machine) -> None:
    machine.write("vmstat", "nr_free_pages 1\n")
    assert "does not count oom_kill" in only_hint(checks.machine_kills(machine.proc))


@pytest.mark.parametrize(
    ("scope", "capabilities", "told"),
    [
        (0, 0, False),
        (1, 0, True),
        (2, 0, True),
        (1, CAP_SYS_PTRACE, False),
        (2, CAP_SYS_PTRACE, False),
        (3, CAP_SYS_PTRACE, True),
    ],
)
def test_yama(scope: int, capabilities: int, told: bool, machine: Machine) -> None:
    machine.write("sys/kernel/yama/ptrace_scope", f"{scope}\n")
    machine.status(capabilities=capabilities)
    found = checks.other_processes(machine.proc)
    assert found.value["ptrace_scope"] == scope
    assert bool(found.hints) == told
    if told:
        assert f"ptrace_scope is {scope} (" in only_hint(found)


@pytest.mark.parametrize(
    ("option", "hidden"),
    [
        ("", "0"),
        (",hidepid=0", "0"),
        (",gid=5,hidepid=2", "2"),
        (",hidepid=invisible", "invisible"),
        (",hidepid=off", "off"),
        (",xhidepid=2", "0"),
    ],
)
def test_hidepid(option: str, hidden: str, machine: Machine) -> None:
    machine.mounts(MOUNTS.format(option=option))
    found = checks.other_processes(machine.proc)
    assert found.value["hidepid"] == hidden
    if hidden in ("0", "off"):
        assert found.hints == []
    else:
        assert f"hidepid={hidden}" in only_hint(found)
        machine.status(capabilities=CAP_SYS_PTRACE)
        assert checks.other_processes(machine.proc).hints == []


def test_no_wchan(machine: Machine) -> None:
    machine.remove("self/wchan")
    assert "/proc/PID/wchan" in only_hint(checks.other_processes(machine.proc))


def test_open_files() -> None:
    assert checks.open_files(1024).text == "1,024, enough to watch 960 processes"
    assert checks.open_files(128).hints == []
    assert "beyond 63 processes" in only_hint(checks.open_files(127))
    assert "beyond 0 processes" in only_hint(checks.open_files(3))
    assert checks.open_files(resource.RLIM_INFINITY).value is None


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("20.0.4", False),
        ("20.1.0", True),
        ("20.1", True),
        ("23.0.0", True),
        ("27.0.1", True),
        ("28.0", False),
        ("x", False),
        ("9" * 99, False),
        ("\x1b[31m", False),
    ],
)
def test_gunicorn(version: str, known: bool) -> None:
    found = checks.gunicorn(version)
    assert found.value["supported"] == known
    assert found.value["version"] == version
    assert ("asgi" in found.value["workers"]) == (version >= "24" and version[0] != "x")
    if not known:
        assert "20.1 to 27" in only_hint(found)


def test_gunicorn_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.gunicorn().value is not None
    for answer in (None, importlib.metadata.PackageNotFoundError("gunicorn"), ValueError("x")):

        def version(name: str, answer: object = answer) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(importlib.metadata, "version", version)
        assert checks.gunicorn() == Check("gunicorn", None, "gunicorn", "not installed")


FILES = (
    "self/status",
    "self/cgroup",
    "self/mountinfo",
    "sys/kernel/core_pattern",
    "sys/kernel/yama/ptrace_scope",
    "vmstat",
)
LOOKS: tuple[Callable[[Machine], Check], ...] = (
    lambda machine: checks.stack_signal(machine.proc, {}),
    lambda machine: checks.core(machine.proc),
    lambda machine: checks.memory_cgroup(machine.proc),
    lambda machine: checks.machine_kills(machine.proc),
    lambda machine: checks.other_processes(machine.proc),
)
WORDS = st.sampled_from(
    [
        "0::/app\n",
        "0::/",
        "5:memory:/",
        "..",
        "/",
        "\x00",
        "oom_kill ",
        "SigCgt:\t",
        "CapEff: ",
        "fff",
        "-1",
        "|",
        "hidepid=",
        " - proc ",
        "9" * 30,
        "²",
        "\x1b[2J",
        "\n",
        " ",
        "/proc ",
    ]
)


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.lists(WORDS, max_size=9).map("".join)),
        min_size=len(FILES) + 1,
        max_size=len(FILES) + 1,
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_files_hold(machine: Machine, held: list[bytes | str]) -> None:
    for name, text in zip(FILES, held, strict=False):
        machine.write(name, text)
    machine.write_cgroup("app/memory.events", held[-1])
    machine.write_cgroup("app/memory.max", held[0])
    for _ in range(2):
        for look in LOOKS:
            found = look(machine)
            assert all(line.isprintable() for line in (found.text, *found.hints))
        # With mounts that lead somewhere, what is written there is read as well.
        machine.mounts("")


def test_nothing_there_at_all(tmp_path: Path) -> None:
    lacking = checks.checks(tmp_path / "proc", {})
    hinted = {each.key for each in lacking if each.hints}
    assert hinted >= {"stacks", "cgroup", "oom_kill", "other_processes"}


def test_a_path_without_end(machine: Machine) -> None:
    machine.write("self/cgroup", "0::" + "/x" * 100_000 + "\n")
    machine.write_cgroup("memory.events", "oom_kill 1\n")
    assert cgroup(machine) is None
