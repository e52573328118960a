"""Finding the memory cgroup of a process and reading it, over trees of files made by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmrec.cgroup import Cgroups, Group

MIB = 1 << 20
NO_LIMIT_V1 = "9223372036854771712"


class Host:
    """A procfs and cgroup hierarchies."""

    def __init__(self, tmp_path: Path) -> None:
        self.proc = tmp_path / "proc"
        self.cgroup = tmp_path / "sys fs" / "cgroup"
        self.cgroup.mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        self._mounts: list[str] = []
        self.write(self.proc / "vmstat", "nr_free_pages 7\noom_kill 5\noom_kill_other 9\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def mount(self, point: Path, kind: str, options: str = "rw", root: str = "/") -> None:
        shown = str(point).replace(" ", "\\040")
        self._mounts.append(
            f"3{len(self._mounts)} 23 0:28 {root} {shown} rw - {kind} {kind} {options}"
        )
        self.write(self.proc / "self" / "mountinfo", "garbage\n" + "\n".join(self._mounts) + "\n")

    def process(self, pid: int, text: str) -> None:
        self.write(self.proc / str(pid) / "cgroup", text)

    def group(self, folder: str, **files: str) -> Path:
        path = self.cgroup / folder
        for name, text in files.items():
            self.write(path / name.replace("_", ".", 1), text)
        return path

    def of(self, pid: int) -> Group | None:
        return Cgroups(str(self.proc)).of(pid)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def events(kills: int) -> str:
    return f"low 0\nhigh 0\nmax 31\noom 2\noom_kill {kills}\noom_group_kill 0\n"


def test_version_2(host: Host) -> None:
    host.mount(host.cgroup, "cgroup2")
    host.process(7, "0::/web.slice/app.service\n")
    host.group("", memory_stat="")
    host.group("web.slice", memory_events=events(9), memory_max=f"{64 * MIB}\n")
    path = host.group(
        "web.slice/app.service",
        memory_events=events(3),
        memory_max="max\n",
        memory_current="1000\n",
        memory_peak="2000\n",
    )
    group = host.of(7)
    assert group is not None
    assert (group.folder, group.version) == (str(path), 2)
    assert group.kills() == 3
    assert (group.current(), group.peak()) == (1000, 2000)
    # The closest group with a limit is the one above.
    assert group.limit() == (64 * MIB, f"{host.cgroup}/web.slice/memory.max")


def test_the_least_limit_counts_and_none_is_none(host: Host) -> None:
    host.mount(host.cgroup, "cgroup2")
    host.process(7, "0::/a/b/c\n")
    host.group("a", memory_events=events(0), memory_max=f"{16 * MIB}\n")
    host.group("a/b", memory_events=events(0), memory_max=f"{16 * MIB}\n")
    host.group("a/b/c", memory_events=events(0), memory_max=f"{32 * MIB}\n")
    group = host.of(7)
    assert group is not None
    assert group.limit() == (16 * MIB, f"{host.cgroup}/a/b/memory.max")
    for folder in ("a", "a/b", "a/b/c"):
        host.group(folder, memory_max="max\n")
    # What lies outside of the hierarchy has no say.
    host.write(host.cgroup.parent / "memory.max", "1\n")
    assert group.limit() == (0, "")


def test_version_1_beside_version_2(host: Host) -> None:
    host.mount(host.cgroup / "unified", "cgroup2")
    host.mount(host.cgroup / "cpu", "cgroup", "rw,cpu")
    host.mount(host.cgroup / "memory", "cgroup", "rw,memory")
    host.process(7, "4:memory:/job\n3:cpuset:/\n1:name=systemd:/x\n0::/elsewhere\n")
    (host.cgroup / "unified" / "elsewhere").mkdir(parents=True)
    host.group("memory", memory_limit_in_bytes=f"{NO_LIMIT_V1}\n")
    path = host.group(
        "memory/job",
        memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        memory_limit_in_bytes=f"{NO_LIMIT_V1}\n",
        memory_usage_in_bytes="1000\n",
        memory_max_usage_in_bytes="2000\n",
    )
    group = host.of(7)
    assert group is not None
    assert (group.folder, group.version) == (str(path), 1)
    assert (group.kills(), group.current(), group.peak()) == (4, 1000, 2000)
    assert group.limit() == (0, "")
    host.group("memory/job", memory_limit_in_bytes=f"{8 * MIB}\n")
    assert group.limit().limit == 8 * MIB


def test_a_namespace_and_a_bind_mount_lead_to_the_right_folder_or_to_none(host: Host) -> None:
    host.mount(host.cgroup, "cgroup2", root="/docker/one")
    path = host.group("", memory_events=events(1))
    inner = host.group("inner", memory_events=events(2))
    # What a careless reader would come upon.
    for trap in ("docker/two", "2", "../two", "docker/one"):
        host.group(trap, memory_events=events(8))
    for cgroup, expected in (
        ("/docker/one", path),
        ("/docker/one/inner", inner),
        ("/docker/two", None),
        ("/docker/one2", None),
        ("/", None),
        ("/docker/one/../two", None),
        ("/docker/one/gone", None),
        ("/docker/one/inner (deleted)", None),
        ("docker/one", None),
    ):
        host.process(7, f"0::{cgroup}\n")
        group = host.of(7)
        assert (group and Path(group.folder)) == expected, cgroup


def test_memory_that_is_not_accounted_so_deep_is_in_the_group_above(host: Host) -> None:
    host.mount(host.cgroup, "cgroup2")
    host.process(7, "0::/user/session/app\n")
    (host.cgroup / "user" / "session" / "app").mkdir(parents=True)
    path = host.group("user", memory_events=events(1))
    group = host.of(7)
    assert group is not None
    assert group.folder == str(path)
    (path / "memory.events").unlink()
    assert host.of(7) is None


def test_what_cannot_be_read_is_not_known(host: Host) -> None:
    host.process(7, "0::/a\n")
    assert host.of(7) is None
    host.mount(host.cgroup, "cgroup2")
    assert host.of(7) is None
    assert host.of(8) is None
    host.group("a", memory_events=events(1), memory_max="9" * 5000, memory_current="-3\n")
    group = host.of(7)
    assert group is not None
    assert group.limit() == (0, "")
    assert (group.current(), group.peak()) == (0, 0)
    host.group("a", memory_events="oom_kill many\n")
    assert group.kills() is None
    host.process(7, "\n:\n0\n0:\n::::\n\udcff\n".encode("utf-8", "replace").decode())
    assert host.of(7) is None


def test_the_machine_counts_too(host: Host) -> None:
    machine = Cgroups(str(host.proc)).machine
    assert machine.kills() == 5
    os.unlink(host.proc / "vmstat")
    assert machine.kills() is None
