"""speedscope's own format: one profile a track, of frames that open and close.

Runs in ``shmrec-dump export``. Only slices have a place in it: no instants, counters or arguments.
A profile begins with its snapshot's history; frames are the names of spans.

Memory: 12 bytes for each beginning and end, because a profile is written as a whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from shmrec._version import __version__
from shmrec.exporting import Out, Source, slice_name
from shmrec.plain import dumps, text
from shmrec.slices import Track
from shmrec.tracks import Timeline

__all__ = ["BINARY", "HELP", "SUFFIXES", "export"]

HELP: Final = "for speedscope.app: a flame graph of every thread"
SUFFIXES: Final = (".speedscope.json",)
BINARY: Final = False

_SCHEMA: Final = "https://www.speedscope.app/file-format-schema.json"
_CLOSE: Final = 1 << 31
"""Added to a frame's number where it is closed."""
_AT_ONCE: Final = 1 << 12


@dataclass
class _Profile:
    track: Track
    frames: array[int] = field(default_factory=lambda: array("I"))
    times: array[int] = field(default_factory=lambda: array("q"))


def export(source: Source, out: Out) -> None:
    """Write the object."""
    timeline = source.timeline
    frames: dict[str, int] = {}
    profiles: dict[Track, _Profile] = {}
    for item in timeline.items():
        if item.kind in ("begin", "end"):
            assert item.slice is not None
            assert item.track is not None
            profile = profiles.get(item.track)
            if profile is None:
                profile = profiles[item.track] = _Profile(item.track)
            frame = frames.setdefault(slice_name(item.slice), len(frames))
            profile.frames.append(frame + (_CLOSE if item.kind == "end" else 0))
            profile.times.append(item.time_ns)
    header = timeline.snapshot.header
    about: dict[str, Any] = {
        "$schema": _SCHEMA,
        "exporter": f"shmrec {__version__}",
        "name": f"{header.recording}: {header.reason}",
    }
    if profiles:
        about["activeProfileIndex"] = _first_shown(timeline, profiles)
    out.write(dumps(about)[:-1].encode("ascii"))
    out.write(b', "shared": {"frames": [')
    for number, name in enumerate(frames):
        out.write(f"{', ' if number else ''}{dumps({'name': name})}".encode("ascii"))
    out.write(b']}, "profiles": [')
    for number, each in enumerate(_in_order(profiles)):
        out.write(b"," if number else b"")
        for part in _profile(timeline, each):
            out.write(part.encode("ascii"))
    out.write(b"\n]}\n")


def _in_order(profiles: dict[Track, _Profile]) -> list[_Profile]:
    """By process and thread, lanes behind their threads."""
    return sorted(
        profiles.values(),
        key=lambda each: (each.track.process.place, each.track.thread, each.track.number),
    )


def _first_shown(timeline: Timeline, profiles: dict[Track, _Profile]) -> int:
    """The profile to begin with: of the first culprit, if it has one."""
    ordered = _in_order(profiles)
    for culprit in timeline.analysis.culprits:
        for number, each in enumerate(ordered):
            if each.track.process.place == culprit.finding:
                return number
    return 0


def _profile(timeline: Timeline, profile: _Profile) -> Iterator[str]:
    track = profile.track
    process = track.process
    where = track.name or f"thread {track.thread}"
    if track.family:
        where = f"{track.thread_name or f'thread {track.thread}'}, {track.family} {track.lane + 1}"
    base = timeline.begin_ns
    about = {
        "type": "evented",
        "name": text(f"{process.name} (pid {process.producer.pid}), {where}"),
        "unit": "nanoseconds",
        "startValue": profile.times[0] - base,
        "endValue": profile.times[-1] - base,
    }
    yield f'\n{dumps(about)[:-1]}, "events": ['
    for start in range(0, len(profile.times), _AT_ONCE):
        yield (", " if start else "") + ", ".join(
            f'{{"type": "{"C" if frame >= _CLOSE else "O"}", "frame": {frame & ~_CLOSE}, '
            f'"at": {max(0, time_ns - base)}}}'
            for frame, time_ns in zip(
                profile.frames[start : start + _AT_ONCE],
                profile.times[start : start + _AT_ONCE],
                strict=True,
            )
        )
    yield "]}"
