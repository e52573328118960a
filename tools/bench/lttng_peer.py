"""An LTTng-UST tracepoint of a C program, recorded into a snapshot session.

The session daemon, its session and its files are this measurement's own: started, ended and
removed by it. Root would have to use the machine's daemon, so everything here then runs as
nobody.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.bench import timing
from tools.bench.floors import compile_c
from tools.bench.report import NotMeasuredError

_SOURCE = Path(__file__).with_name("lttng_peer.c")
_PROGRAMS = ("lttng", "lttng-sessiond")
_SESSION = "shmrec-bench"
_NOBODY = 65534
_START_SECONDS = 15.0
_END_SECONDS = 10.0
_COMMAND_SECONDS = 30.0
# What the first LTTng program leaves in shared memory: for root's daemon, and for its user's.
_WAIT = "/dev/shm/lttng-ust-wait-8"


@contextlib.contextmanager
def running(number: int) -> Iterator[timing.Sample]:
    """A sample is nanoseconds for one of `number` events in a row.

    Raises `NotMeasuredError` where LTTng is not installed or does not work; `RuntimeError` at
    the end if nothing was recorded.
    """
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NotMeasuredError(f"not installed: {missing[0]} (lttng-tools)")
    with contextlib.ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="shmrec-lttng-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        program = home / "lttng_peer"
        _build(program)
        user = _user(home)
        _forget_wait_pages(stack, user.get("user", os.getuid()))
        environment = {**os.environ, "HOME": str(home), "LTTNG_HOME": str(home), "LC_ALL": "C"}
        given = {"env": environment, "cwd": home, **user}
        stack.enter_context(_daemon(given, home))
        for command in (
            ("create", _SESSION, "--snapshot", f"--output={home / 'trace'}"),
            ("enable-event", "--userspace", "shmrec_bench:request"),
            ("start",),
        ):
            _lttng(given, *command)
        yield _sampler(stack.enter_context(_program(program, given)), number)
        _lttng(given, "snapshot", "record")
        if not any(path.stat().st_size for path in (home / "trace").rglob("*channel0_*")):
            raise RuntimeError("LTTng recorded nothing of what it was measured at")
        _lttng(given, "destroy", _SESSION)


def _build(program: Path) -> None:
    try:
        compile_c(_SOURCE, program, f"-I{_SOURCE.parent}", "-llttng-ust", "-ldl")
    except NotMeasuredError as error:
        if "lttng/tracepoint.h" in str(error):
            raise NotMeasuredError("not installed: lttng/tracepoint.h (liblttng-ust-dev)") from None
        raise


def _user(home: Path) -> dict[str, Any]:
    """Whom to run as, as `subprocess` wants it; that user then owns `home`."""
    if os.getuid() != 0:
        return {}
    os.chown(home, _NOBODY, _NOBODY)
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


def _forget_wait_pages(stack: contextlib.ExitStack, uid: int) -> None:
    """Have the pages removed at the end that were not there before."""
    for page in (Path(_WAIT), Path(f"{_WAIT}-{uid}")):
        if not page.exists():
            stack.callback(page.unlink, missing_ok=True)


@contextlib.contextmanager
def _daemon(given: dict[str, Any], home: Path) -> Iterator[None]:
    with (home / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            ["lttng-sessiond", "--no-kernel"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **given,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(given):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (home / "daemon.log").read_text(errors="replace").splitlines()
                raise NotMeasuredError(f"lttng-sessiond: {said[0] if said else 'no answer'}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        _end(process)


def _answers(given: dict[str, Any]) -> bool:
    try:
        _lttng(given, "list")
    except NotMeasuredError:
        return False
    return True


def _lttng(given: dict[str, Any], *command: str) -> None:
    done = subprocess.run(
        # Without the option it would start a daemon by itself, which nobody would end.
        ["lttng", "--no-sessiond", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_COMMAND_SECONDS,
        **given,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotMeasuredError(f"lttng {command[0]}: {said[0] if said else done.returncode}")


@contextlib.contextmanager
def _program(program: Path, given: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **given
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.readline().strip()
        if said != "ready":
            raise NotMeasuredError(f"lttng: {said or 'the traced program ended'}")
        yield process
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        _end(process)
        process.stdout.close()


def _sampler(process: subprocess.Popen[str], number: int) -> timing.Sample:
    assert process.stdin is not None
    assert process.stdout is not None
    told, answers = process.stdin, process.stdout

    def sample() -> float:
        told.write(f"{number}\n")
        told.flush()
        return float(answers.readline())

    return sample


def _end(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
