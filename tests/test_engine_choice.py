"""Which engine serves: what is asked for, what is there, and builds that are not to be trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import shmrec
from shmrec import _engine
from shmrec.errors import EngineError
from shmrec.extension import EXTENSION
from shmrec.layout import LAYOUT_ID

native = pytest.mark.skipif(
    EXTENSION is None, reason=f"no native engine: {_engine.refusal('native')}"
)

SHOW = "import shmrec; from shmrec import _engine; print(shmrec.engine, _engine.refusal('native'))"

ATTACH = """
import warnings

import shmrec

warnings.simplefilter("error")
shmrec.instant("nothing")
shmrec.attach("nothing")
"""

MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "shmrec._native":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""

STAND_IN = """
import sys, types

stand_in = types.ModuleType("shmrec._native")
stand_in.LAYOUT_ID = {layout}
stand_in.Writer = None
sys.modules["shmrec._native"] = stand_in
"""

RECORD = """
from tests.arena import Arena, events_in

arena = Arena()
arena.writer().instant("recorded")
print([event.name for event in events_in(arena.reader())])
"""


def python(code: str, engine: str | None) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "SHMREC_ENGINE"}
    # A source that changes within a second may look unchanged.
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    if engine is not None:
        env["SHMREC_ENGINE"] = engine
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=root, timeout=60
    )


def shown(code: str, engine: str | None) -> str:
    done = python(code, engine)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


def refused(code: str, engine: str) -> str:
    """Importing succeeds, attaching does not."""
    assert shown(code, engine).startswith("none ") or not _engine.refusal("native")
    done = python(code.replace(SHOW, ATTACH), engine)
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("shmrec.errors.EngineError: "), done.stderr
    return last


# What is asked for.


@pytest.mark.parametrize("engine", [None, ""])
def test_the_best_engine_that_can_serves_if_nobody_asks(engine: str | None) -> None:
    best = "python" if EXTENSION is None else "native"
    assert shown(SHOW, engine) == f"{best} {_engine.refusal('native')}".strip()


def test_the_python_engine_serves_if_it_is_asked_for() -> None:
    assert shown(SHOW, "python").split()[0] == "python"


@native
def test_the_native_engine_serves_if_it_is_asked_for() -> None:
    assert shown(SHOW, "native") == "native"


@pytest.mark.parametrize("engine", ["nonsense", "Native", "native,python", " "])
def test_an_engine_that_does_not_exist_fails_loudly(engine: str) -> None:
    line = refused(SHOW, engine)
    assert f"SHMREC_ENGINE={engine}: there is no such engine" in line
    assert "native or python" in line


def test_the_choice_in_this_process() -> None:
    name, writer = _engine.choose("python")
    assert (name, writer.__module__) == ("python", "shmrec.writer")
    with pytest.raises(EngineError, match="no such engine"):
        _engine.choose("nonsense")
    assert shmrec.engine in _engine.NAMES
    assert _engine.refusal("python") == ""


# Builds that are not there, or not to be trusted.


def test_without_a_build_the_python_engine_serves_quietly() -> None:
    assert shown(MISSING + SHOW, None).startswith("python it was not built: ")
    assert shown(MISSING + RECORD, None) == "['recorded']"
    assert shown(MISSING + SHOW, "python").startswith("python it was not built: ")


def test_without_a_build_asking_for_it_fails_with_the_cause() -> None:
    line = refused(MISSING + SHOW, "native")
    assert "SHMREC_ENGINE=native: the native engine cannot serve: it was not built" in line
    assert "C compiler" in line


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        (LAYOUT_ID ^ 1, f"{LAYOUT_ID ^ 1:#x}"),
        (0, "0x0"),
        (-1, "-0x1"),
        ("'nonsense'", "unknown"),
        (None, "unknown"),
        ("True", "unknown"),
    ],
    ids=str,
)
def test_a_build_from_other_tables_is_refused(layout: object, named: str) -> None:
    stand_in = STAND_IN.format(layout=layout)
    cause = f"it was built from other tables (layout {named}, not {LAYOUT_ID:#x})"
    assert shown(stand_in + SHOW, None).startswith(f"python {cause}: build it again")
    assert shown(stand_in + RECORD, None) == "['recorded']"
    assert cause in refused(stand_in + SHOW, "native")


def test_a_build_that_has_no_layout_at_all_is_refused() -> None:
    stand_in = STAND_IN.format(layout=0) + "del stand_in.LAYOUT_ID\n"
    assert shown(stand_in + SHOW, None).startswith("python it was built from other tables")
    assert "(layout unknown, not" in refused(stand_in + SHOW, "native")


def a_copy(directory: Path) -> Path:
    """The package, its extension included, as a program's own copy."""
    source = Path(shmrec.__file__).parent
    copy = directory / "shmrec"
    for path in [*source.rglob("*.py"), *source.glob("_native*.so")]:
        to = copy / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
    return copy


def elsewhere(code: str, directory: Path) -> str:
    return f"import sys; sys.path.insert(0, {str(directory)!r})\n{code}"


@native
def test_a_build_beside_tables_that_have_changed_is_refused(tmp_path: Path) -> None:
    copy = a_copy(tmp_path)
    code = elsewhere(SHOW, tmp_path)
    assert shown(code, None) == "native"
    layout = copy / "layout.py"
    changed = layout.read_text().replace('"snapshots", 608', '"snapshots", 616')
    assert changed != layout.read_text()
    layout.write_text(changed)
    assert shown(code, None).startswith("python it was built from other tables")
    assert f"(layout {LAYOUT_ID:#x}, not " in refused(code, "native")


@native
def test_a_build_that_does_not_load_is_refused(tmp_path: Path) -> None:
    copy = a_copy(tmp_path)
    for built in copy.glob("_native*.so"):
        # In another file: this one may be mapped.
        built.unlink()
        built.write_bytes(b"\x7fELF of another machine")
    code = elsewhere(SHOW, tmp_path)
    assert shown(code, None).startswith("python it cannot be loaded: ")
    assert "it cannot be loaded: " in refused(code, "native")
