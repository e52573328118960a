"""Sub-interpreters: nobody is recorded from there, which is said in one line and hurts nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shmrec import _engine
from shmrec.layout import EntryState
from tests.recordings import recorded, rings, unserved

PROGRAM = """
import sys

try:
    import _interpreters

    make, run = _interpreters.create, lambda *args: print(_interpreters.exec(*args) or "", end="")
    kinds = {"shared": ("legacy",), "isolated": ("isolated",)}
except ImportError:
    import _xxsubinterpreters as _interpreters

    make, run = lambda isolated: _interpreters.create(isolated=isolated), _interpreters.run_string
    kinds = {"shared": (False,), "isolated": (True,)}

ASKED = '''
import sys, warnings
try:
    import shmrec
    shmrec.instant("recorded nowhere")
    warnings.simplefilter("ignore")
    assert not shmrec.attach(sys.argv[1]).attached
    shmrec.attach(sys.argv[1], required=True)
    print("attached")
except Exception as error:
    # Where shmrec cannot be imported, nor can its errors be named.
    ours = "ShmrecError" in [kind.__name__ for kind in type(error).__mro__]
    print(type(error).__name__, ours, isinstance(error, ImportError), error)
'''.replace("sys.argv[1]", repr(sys.argv[1]))

def ask():
    interpreter = make(*kinds[sys.argv[2]])
    run(interpreter, ASKED)
    sys.stdout.flush()
    _interpreters.destroy(interpreter)

if sys.argv[3] == "first":
    ask()
import shmrec

shmrec.attach(sys.argv[1], required=True)
shmrec.instant("before")
ask()
shmrec.instant("after")
"""


@pytest.mark.parametrize("engine", _engine.NAMES)
@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("kind", ["shared", "isolated"])
def test_it_is_refused_in_one_line_and_the_main_interpreter_goes_on(
    recording_name: str, kind: str, when: str, engine: str
) -> None:
    with unserved(recording_name) as made:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, made.name, kind, when],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "SHMREC_ENGINE": engine},
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        said = ended.stdout.splitlines()
        assert len(said) == (2 if when == "first" else 1)
        for line in said:
            assert line.startswith("InterpreterError True True "), line
            assert "this is a sub-interpreter" in line
        # The ring of the main interpreter has stayed its own until the end.
        assert [event.name for event in recorded(made)] == ["before", "after"]
        assert [reader.entry().state for reader in rings(made)] == [EntryState.DETACHED]
