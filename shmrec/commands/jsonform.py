"""The JSON that the tools print: the contract with programs that read it.

Runs in the command-line tools. Keys may be added, never taken away. Everything printed is
ASCII, one line an object, and valid JSON whatever was recorded: bytes become
``{"base64": ...}``, numbers that JSON lacks become their text, depth is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from shmrec.commands.analysisform import analysis_object, finding_object
from shmrec.commands.wording import LOST, wall
from shmrec.decoder import OpenSpan
from shmrec.follow import GAP, Note
from shmrec.forensics import Analysis, Finding
from shmrec.live import LiveProducer, Recording
from shmrec.manifest import Cause
from shmrec.plain import Clock, dumps, event_object
from shmrec.snapshot_file import Snapshot
from shmrec.store import Stored

__all__ = [
    "Clock",
    "dumps",
    "event_object",
    "live_object",
    "note_object",
    "recording_object",
    "snapshot_object",
    "span_objects",
    "stored_object",
]

_LAST: Final = 8


def note_object(clock: Clock, note: Note, lost: int) -> dict[str, Any]:
    """What is said between events; `lost` is how many events all gaps so far are."""
    found: dict[str, Any] = {
        "time_ns": note.time_ns,
        "wall": wall(clock.wall_ns(note.time_ns)),
        "pid": note.pid,
        "label": note.label,
        "kind": note.kind,
    }
    if note.kind == GAP:
        found |= {"lost": note.lost, "lost_so_far": lost}
    if note.text:
        found["text"] = note.text
    return found


def span_objects(spans: Iterable[OpenSpan], reference_ns: int) -> list[dict[str, Any]]:
    """Open spans, in the order they began."""
    return [
        {
            "name": span.name,
            "span": span.span,
            "thread": span.thread,
            "thread_name": span.thread_name,
            "start_ns": span.start_ns,
            "age_ns": max(0, reference_ns - span.start_ns),
            "args": span.args,
        }
        for span in spans
    ]


def _lost(losses: Mapping[str, int]) -> dict[str, int]:
    return dict.fromkeys(LOST, 0) | dict(losses)


def _cause(cause: Cause | None) -> dict[str, Any] | None:
    return vars(cause) if cause is not None else None


def _producer_object(snapshot: Snapshot, finding: Finding) -> dict[str, Any]:
    producer = finding.producer
    return {
        "pid": producer.pid,
        "label": producer.label,
        "state": producer.state,
        "evidence": producer.evidence,
        "cause": _cause(producer.cause),
        "events": producer.events,
        "recorded": producer.recorded,
        "trimmed": producer.trimmed,
        "reported": producer.reported,
        "lost": _lost(producer.losses),
        "oldest_ns": producer.oldest_ns,
        "newest_ns": producer.newest_ns,
        "attached_ns": producer.attached_ns,
        "detached_ns": producer.detached_ns,
        "ended_ns": producer.ended_ns,
        "reference_ns": snapshot.reference_ns(producer),
        "open_spans": span_objects(producer.open_spans, snapshot.reference_ns(producer)),
        "last_events": [event_object(snapshot, each) for each in snapshot.last(producer, _LAST)],
        "engine": producer.engine,
        "fenced": producer.fenced,
        "identity": producer.identity,
        "damage": producer.damage,
        **finding_object(finding),
    }


def snapshot_object(snapshot: Snapshot, analysis: Analysis) -> dict[str, Any]:
    """What a snapshot says, without its events."""
    header = snapshot.header
    return {
        "recording": header.recording,
        "reason": header.reason,
        "trigger": header.trigger,
        "taken_at": wall(header.taken_wall_ns),
        "taken_ns": header.taken_mono_ns,
        "host": header.host,
        "file": str(snapshot.path),
        "size": snapshot.size,
        "version": header.version,
        "run": header.run_id,
        "generation": header.generation,
        "generations": header.generations,
        "flushes": header.flushes,
        "fenced": header.fenced,
        "keep_size": header.keep_size,
        "keep_period_ns": header.keep_period_ns,
        "requests": header.requests,
        "producers": [_producer_object(snapshot, each) for each in analysis.findings],
        "events": sum(producer.events for producer in snapshot.producers),
        "batches": snapshot.batches,
        "complete": snapshot.complete and not analysis.damage,
        "damage": [*snapshot.damage, *analysis.damage],
        "notes": header.notes,
        "suspects": header.suspects,
        "triggered_ns": header.triggered_ns or None,
        "first": header.first,
        "suppressed": header.suppressed,
        "analysis": analysis_object(analysis),
    }


def recording_object(recording: Recording) -> dict[str, Any]:
    """A recording in shared memory."""
    return {
        "name": recording.name,
        "state": recording.state,
        "collector": recording.collector,
        "producers": {
            "live": recording.live,
            "dead": recording.dead,
            "detached": recording.detached,
            "unknown": recording.unknown,
        },
        "heartbeat_age_ns": recording.heartbeat_age_ns,
        "generation": recording.generation,
        "snapshots": recording.snapshots,
        "refused": recording.refused,
        "suppressed": recording.suppressed,
        "size": recording.size,
        "problem": recording.problem or None,
    }


def stored_object(stored: Stored, reason: str | None) -> dict[str, Any]:
    """A snapshot file, as its name tells; `reason` is why it was taken, as its header does."""
    return {
        "file": str(stored.path),
        "recording": stored.recording,
        "taken_at": wall(int(stored.taken) * 1_000_000_000),
        "reason": stored.reason,
        "full_reason": reason,
        "death": stored.death,
        "first": stored.first,
        "size": stored.size,
    }


def live_object(producer: LiveProducer, now_ns: int) -> dict[str, Any]:
    """A producer at this moment."""
    entry = producer.entry
    reference = entry.ended_ns or entry.detached_ns or now_ns
    return {
        "pid": entry.pid,
        "label": entry.label,
        "state": producer.state,
        "engine": entry.engine,
        "recorded": producer.recorded,
        "lost": _lost({"overwritten": producer.overwritten, **entry.losses}),
        "newest_ns": producer.newest_ns,
        "last_event_age_ns": now_ns - producer.newest_ns if producer.newest_ns else None,
        "attached_ns": entry.attached_ns,
        "detached_ns": entry.detached_ns,
        "ended_ns": entry.ended_ns,
        "open_spans": span_objects(producer.open_spans, reference),
        "spans_missing": producer.partial,
        "damage": producer.damage,
    }
