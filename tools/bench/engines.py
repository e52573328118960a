"""A recorder for every engine that can serve, side by side in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import shmrec
from shmrec import live
from shmrec._engine import choose
from shmrec.errors import EngineError
from shmrec.segment import open_segment
from tools.bench.rig import Rig

NATIVE = "native"
PYTHON = "python"
_RING_BYTES = 2 << 20
_FILLER = "x" * 200


def availability() -> dict[str, str]:
    """Each engine, best first, with "" if it can serve or else the reason why not."""
    found = {}
    for name in (NATIVE, PYTHON):
        try:
            choose(name)
        except EngineError as error:
            found[name] = str(error)
        else:
            found[name] = ""
    return found


def available() -> list[str]:
    """The engines that can serve, best first."""
    return [name for name, reason in availability().items() if not reason]


def unattached() -> dict[str, shmrec.Recorder]:
    """By engine, a recorder that has never joined anything."""
    return {name: _recorder(name) for name in available()}


@contextlib.contextmanager
def attached(directory: Path) -> Iterator[dict[str, shmrec.Recorder]]:
    """By engine, a recorder in one recording with a ring of its own, which has wrapped.

    Raises `RuntimeError` at the end if one of them recorded nothing, or lost something: what
    it was measured at was then not recording.
    """
    recorders = unattached()
    with Rig(directory, size=_RING_BYTES, producers=len(recorders)) as rig:
        name = rig.flight.name
        try:
            for engine, recorder in recorders.items():
                recorder.join(open_segment(name), engine)
                if recorder.engine != engine or not recorder.attached:
                    raise RuntimeError(f"the {engine} engine has no ring: nothing to measure")
                _wrap(recorder)
            before = _producers(name)
            yield recorders
            _check(before, _producers(name), recorders)
        finally:
            for recorder in recorders.values():
                recorder.detach()


def _recorder(engine: str) -> shmrec.Recorder:
    before = os.environ.get("SHMREC_ENGINE")
    os.environ["SHMREC_ENGINE"] = engine
    try:
        return shmrec.Recorder()
    finally:
        if before is None:
            del os.environ["SHMREC_ENGINE"]
        else:
            os.environ["SHMREC_ENGINE"] = before


def _wrap(recorder: shmrec.Recorder) -> None:
    """Once round the ring: an always-on recorder has its page faults behind it."""
    for number in range(_RING_BYTES // len(_FILLER) + 1):
        recorder.instant("warm", n=number, path=_FILLER)


def _producers(name: str) -> dict[str, live.LiveProducer]:
    with open_segment(name, writable=False) as segment:
        return {found.entry.label: found for found in live.producers(segment)}


def _check(
    before: Mapping[str, live.LiveProducer],
    after: Mapping[str, live.LiveProducer],
    recorders: Mapping[str, shmrec.Recorder],
) -> None:
    for engine in recorders:
        events = after[engine].recorded - before[engine].recorded
        losses = after[engine].entry.losses
        if not events or any(losses.values()):
            raise RuntimeError(
                f"the {engine} engine did not record what it was measured at: "
                f"{events} events, lost: {losses}"
            )
