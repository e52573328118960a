"""What is installed: with a compiler, without one, from the sdist, and as wheels.

Slow, because environments are made and the extension is compiled; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from .dumping import environment

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPILER = shutil.which(os.environ.get("CC", "cc"))

builds = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("setuptools", "pip")),
    reason="this environment has no setuptools",
)
compiles = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")

SHOW = (
    "import shmrec; from shmrec import _engine; "
    "print(shmrec.engine, _engine.refusal('native'), shmrec.__file__, sep='|')"
)


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    full = {**environment(env), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    full.pop("SHMREC_ENGINE", None)
    # The sanitizers' own test run is not about compilers and installers.
    full.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=full
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_change_of_any_header_builds_the_extension_again() -> None:
    (extension,) = PROJECT["tool"]["setuptools"]["ext-modules"]
    headers = {str(path.relative_to(ROOT)) for path in (ROOT / "shmrec").glob("_native*.h")}
    assert set(extension["depends"]) == headers


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what is released, in which nothing has been built."""
    copy = tmp_path_factory.mktemp("checkout") / "shmrec"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("shmrec", "tests", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    return copy


def a_wheel(source: Path, directory: Path, env: dict[str, str] | None = None) -> Path:
    options = ("--no-deps", "--no-build-isolation", "-q", "-w", directory)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=directory, env=env)
    (wheel,) = directory.glob("*.whl")
    return wheel


def an_install(wheel: Path, directory: Path) -> Path:
    """The Python of a fresh environment with the wheel and, lent by this one, what it needs."""
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory
        ).strip()
    )
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps")
    run(*pip, wheel, cwd=directory)
    lent = site / "lent"
    lent.mkdir()
    for name in ("msgpack", "posix_ipc", "click", "rich", "pygments", "markdown_it", "mdurl"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        origin = Path(spec.origin)
        origin = origin.parent if spec.submodule_search_locations else origin
        (lent / origin.name).symlink_to(origin)
    (site / "lent.pth").write_text(f"{lent}\n")
    return python


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("shmrec/")}


def sources(suffixes: tuple[str, ...]) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "shmrec").rglob("*")
        if path.suffix in suffixes
    }


WITHOUT_A_COMPILER = {
    "CC": "/nonexistent/cc",
    "CXX": "/nonexistent/c++",
    "LDSHARED": "/nonexistent",
}


@builds
def test_an_install_without_a_compiler_records_with_the_python_engine(
    checkout: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    hidden = {**WITHOUT_A_COMPILER, "PATH": str(bare)}
    wheel = a_wheel(checkout, tmp_path, hidden)
    assert not [name for name in names_in(wheel) if name.endswith(".so")]
    python = an_install(wheel, tmp_path / "venv")
    engine, refusal, file = run(python, "-c", SHOW, cwd=tmp_path).strip().split("|")
    assert engine == "python"
    assert refusal == "it was not built: install shmrec again where there is a C compiler"
    assert file.startswith(str(tmp_path / "venv"))
    tool = tmp_path / "venv" / "bin" / "shmrec-dump"
    # Its status is the machine's matter, whose /dev/shm may be small.
    done = subprocess.run([tool, "doctor"], capture_output=True, text=True, env=environment())
    if "SHMREC_ENGINE" not in os.environ:
        assert f"not native          {refusal}" in done.stdout.splitlines()
    wanted = environment({"SHMREC_ENGINE": "native"})
    failed = subprocess.run(
        [python, "-c", "import shmrec; shmrec.attach('none')"],
        capture_output=True,
        text=True,
        env=wanted,
        cwd=tmp_path,
    )
    assert failed.returncode == 1
    assert f"the native engine cannot serve: {refusal}" in failed.stderr


@builds
@compiles
def test_the_sdist_builds_from_scratch(checkout: Path, tmp_path: Path) -> None:
    make = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    run(sys.executable, "-c", make, cwd=checkout)
    (sdist,) = tmp_path.glob("*.tar.gz")
    unpacked = tmp_path / "unpacked"
    with tarfile.open(sdist) as archive:
        # The first releases of 3.11 have no filters. The archive is our own.
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(unpacked)
    (source,) = unpacked.iterdir()
    held = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    wanted = sources((".py", ".pyi", ".c", ".h")) | {"shmrec/py.typed", "LICENSE", "README.md"}
    assert wanted <= held
    assert not [name for name in held if name.endswith(".so")]

    wheel = a_wheel(source, tmp_path)
    names = names_in(wheel)
    assert sources((".py", ".pyi")) | {"shmrec/py.typed"} <= names
    (extension,) = (name for name in names if name.endswith(".so"))
    assert extension.startswith("shmrec/_native.")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert f"-{tag}-{tag}-linux_" in wheel.name
    python = an_install(wheel, tmp_path / "venv")
    engine, refusal, file = run(python, "-c", SHOW, cwd=tmp_path).strip().split("|")
    assert (engine, refusal) == ("native", "")
    assert file.startswith(str(tmp_path / "venv"))


@compiles
def test_the_header_is_what_the_tables_make_and_is_checked_against_them(tmp_path: Path) -> None:
    run(sys.executable, ROOT / "tools" / "generate_header.py", "--check", cwd=ROOT)
    # The places in it are asserted: one that is wrong does not compile.
    header = (ROOT / "shmrec" / "_native_layout.h").read_text()
    include = run(
        sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('include'))", cwd=ROOT
    ).strip()
    for path in (ROOT / "shmrec").glob("_native*.[ch]"):
        shutil.copy(path, tmp_path)
    compiling = (COMPILER, "-std=c11", f"-I{include}", "-fsyntax-only", "_native.c")
    run(*compiling, cwd=tmp_path)
    wrong = header.replace("offsetof(struct shmrec_control, generation) == 512", "x == 520")
    wrong = wrong.replace("x == 520", "offsetof(struct shmrec_control, generation) == 520")
    assert wrong != header
    (tmp_path / "_native_layout.h").write_text(wrong)
    done = subprocess.run(
        [str(part) for part in compiling], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "control.generation" in done.stderr


def test_wheels_are_for_every_python_that_is_promised() -> None:
    wheels = PROJECT["tool"]["cibuildwheel"]
    assert wheels["build"] == ["cp311-*", "cp312-*", "cp313-*", "cp314-*"]
    assert wheels["linux"]["archs"] == ["x86_64", "aarch64"]
    assert "native" in wheels["test-command"]
    (extension,) = PROJECT["tool"]["setuptools"]["ext-modules"]
    assert extension["optional"]
    assert set(extension["depends"]) == sources((".h",))
    assert extension["sources"] == sorted(sources((".c",)))


def test_the_readme_has_its_pictures_and_they_are_small() -> None:
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert {ROOT / each for each in shown} == set((ROOT / "tools/pictures").glob("*.png"))
    assert len(shown) == 3
    assert all((ROOT / each).stat().st_size < 200_000 for each in shown)
