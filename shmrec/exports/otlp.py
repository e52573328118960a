"""OpenTelemetry's traces: lines of JSON, each a TracesData, as its file exporter writes them.

Runs in ``shmrec-dump export``. Spans are written as they end. A root span is a trace of its own,
unless it says which it belongs to (see `lineage`); what a span contains is its child. Exceptions,
logs and instants are events of the span that was open, and without one, spans of no length.
Counters have no place in traces, and are left out.

Invariants:

- Ids are 8 and 16 bytes, never zero, in hexadecimal; the same snapshot gives the same ones.
- JSON is as OTLP has it: 64-bit numbers as texts, enumerations as numbers, bytes as base64.
- Memory: spans that are open, with up to 128 events each, and some hundreds that have ended.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Final

from shmrec import lineage
from shmrec._version import __version__
from shmrec.exporting import Out, Source, stack_texts
from shmrec.findings import REQUEST
from shmrec.lineage import Key
from shmrec.plain import dumps, text
from shmrec.slices import Item, Process, Slice
from shmrec.tracks import Timeline

__all__ = ["BINARY", "HELP", "SUFFIXES", "export"]

HELP: Final = "OpenTelemetry's traces, a TracesData a line"
SUFFIXES: Final = (".otlp.jsonl", ".otlp.json", ".otlp")
BINARY: Final = False

_SPANS: Final = 256
"""Spans of a process that are written in one line."""
_EVENTS: Final = 128
_DEPTH: Final = 8
_INT: Final = 1 << 63
_INTERNAL, _SERVER = 1, 2
_ERROR: Final = 2
_SERVER_ERROR: Final = 500
_SPAN_BYTES, _TRACE_BYTES = 8, 16
_REQUEST_NAMES: Final = {
    "method": "http.request.method",
    "path": "url.path",
    "query": "url.query",
    "scheme": "url.scheme",
    "status": "http.response.status_code",
    "remote_addr": "client.address",
    "error": "error.type",
}
"""What gunicorn's integration calls things, and what the semantic conventions do."""


@dataclass(slots=True)
class _Open:
    """A span that has begun: its ids, and what has happened in it."""

    trace: str
    span: str
    parent: str
    elsewhere: dict[str, str] | None
    """A parent of another trace."""
    events: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0


def export(source: Source, out: Out) -> None:
    """Write the lines."""
    _Writer(source.timeline, out).write()


class _Writer:
    def __init__(self, timeline: Timeline, out: Out) -> None:
        self._timeline = timeline
        self._out = out
        self._open: dict[Key, _Open] = {}
        self._named: dict[Key, _Open] = {}
        """Spans that others name as their parents: these may come after they have ended."""
        self._ended: dict[Process, list[dict[str, Any]]] = {}
        self._alone = 0

    def write(self) -> None:
        """The lines."""
        for item in self._timeline.items():
            if item.kind == "begin" and item.slice is not None:
                self._begin(item.slice)
            elif item.kind == "end" and item.slice is not None:
                self._end(item.slice)
            elif item.kind != "counter" and item.process is not None:
                self._happened(item, item.process)
        for process in self._timeline.processes:
            self._flush(process)

    def _begin(self, begun: Slice) -> None:
        known = None
        if begun.parent is not None:
            known = self._open.get(begun.parent) or self._named.get(begun.parent)
        own = lineage.span_id(begun.args)
        said = lineage.trace_id(begun.args)
        trace = said or (known.trace if known is not None else "")
        parent = known.span if known is not None else ""
        if known is None and not begun.depth:
            # Its parent is elsewhere, and only its id is known.
            named = lineage.named_parent(begun.args)
            parent = named.known_as if named is not None and said else ""
        elsewhere = None
        if known is not None and known.trace != trace:
            parent = ""
            elsewhere = {"traceId": known.trace, "spanId": known.span}
        opened = _Open(
            trace or self._id(_TRACE_BYTES, "trace", *begun.key),
            own or self._id(_SPAN_BYTES, "span", *begun.key),
            parent,
            elsewhere,
        )
        self._open[begun.key] = opened
        if begun.key in self._timeline.lineage.outgoing:
            self._named[begun.key] = opened

    def _end(self, ended: Slice) -> None:
        opened = self._open.pop(ended.key)
        process = ended.track.process
        args = {**ended.args, **ended.end_args}
        request = ended.name == REQUEST and "method" in args
        named = {_REQUEST_NAMES.get(key, key) if request else key: args[key] for key in args}
        named |= {"thread.id": ended.track.thread, "thread.name": ended.track.thread_name}
        named["shmrec.span"] = ended.span
        if ended.in_flight:
            named["shmrec.in_flight"] = True
        if ended.lost:
            named["shmrec.end_lost"] = True
        if ended.stack is not None:
            named["code.stacktrace"] = "\n".join(stack_texts(ended.stack))
        span: dict[str, Any] = {
            "traceId": opened.trace,
            "spanId": opened.span,
            "name": text(ended.name),
            "kind": _SERVER if request else _INTERNAL,
            "startTimeUnixNano": str(self._timeline.wall_ns(ended.begin_ns)),
            "endTimeUnixNano": str(self._timeline.wall_ns(ended.end_ns)),
            "attributes": _attributes(named),
        }
        if opened.parent:
            span["parentSpanId"] = opened.parent
        if opened.elsewhere is not None:
            span["links"] = [opened.elsewhere]
        if opened.events:
            span["events"] = opened.events
        if opened.dropped:
            span["droppedEventsCount"] = opened.dropped
        status = _status(process, ended, args)
        if status is not None:
            span["status"] = status
        self._put(process, span)

    def _happened(self, item: Item, process: Process) -> None:
        opened = self._open.get(item.slice.key) if item.slice is not None else None
        args = dict(item.args)
        name = item.name
        if item.kind == "exception":
            args = _exception(item.name, args)
            name = "exception"
        elif item.kind == "stack" and item.stack is not None:
            args["code.stacktrace"] = "\n".join(stack_texts(item.stack))
        args["shmrec.kind"] = item.kind
        when = str(self._timeline.wall_ns(item.time_ns))
        if opened is not None:
            if len(opened.events) < _EVENTS:
                opened.events.append(
                    {"timeUnixNano": when, "name": text(name), "attributes": _attributes(args)}
                )
            else:
                opened.dropped += 1
            return
        if item.track is not None:
            args |= {"thread.id": item.track.thread, "thread.name": item.track.thread_name}
        self._alone += 1
        span = {
            "traceId": self._id(_TRACE_BYTES, "alone", process.place, self._alone),
            "spanId": self._id(_SPAN_BYTES, "alone", process.place, self._alone),
            "name": text(name),
            "kind": _INTERNAL,
            "startTimeUnixNano": when,
            "endTimeUnixNano": when,
            "attributes": _attributes(args),
        }
        self._put(process, span)

    def _put(self, process: Process, span: dict[str, Any]) -> None:
        waiting = self._ended.setdefault(process, [])
        waiting.append(span)
        if len(waiting) >= _SPANS:
            self._flush(process)

    def _flush(self, process: Process) -> None:
        spans = self._ended.pop(process, [])
        if spans:
            scope = {"scope": {"name": "shmrec", "version": __version__}, "spans": spans}
            resource = {"attributes": _attributes(self._resource(process))}
            line = {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}
            self._out.write(f"{dumps(line)}\n".encode("ascii"))

    def _resource(self, process: Process) -> dict[str, Any]:
        header, producer = self._timeline.snapshot.header, process.producer
        return {
            "service.name": header.recording or "unknown_service",
            "service.instance.id": producer.identity or f"{header.run_id}/{producer.index}",
            "host.name": header.host,
            "process.pid": producer.pid,
            "telemetry.sdk.name": "shmrec",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.version": header.version,
            "shmrec.label": producer.label,
            "shmrec.state": process.state,
        }

    def _id(self, size: int, *what: object) -> str:
        """An id that is the same each time, and another one for each `what`."""
        header = self._timeline.snapshot.header
        salt = header.run_id, header.host, header.taken_mono_ns
        digest = hashlib.blake2b(repr((salt, what)).encode(), digest_size=size).hexdigest()
        return digest if int(digest, 16) else f"{1:0{2 * size}x}"


def _status(process: Process, ended: Slice, args: dict[str, Any]) -> dict[str, Any] | None:
    if ended.in_flight and process.died:
        return {"code": _ERROR, "message": text(f"in flight: {process.state}")}
    if "error" in args:
        return {"code": _ERROR, "message": text(args["error"])}
    status = args.get("status")
    if ended.name == REQUEST and type(status) is int and status >= _SERVER_ERROR:
        return {"code": _ERROR}
    return None


def _exception(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """An exception's arguments by the semantic conventions."""
    found: dict[str, Any] = {"exception.type": name}
    if "message" in args:
        found["exception.message"] = str(args.pop("message"))
    where = args.pop("where", None)
    if isinstance(where, list):
        found["exception.stacktrace"] = "\n".join(map(str, where))
    return {**found, **args}


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": text(key) or "?", "value": _any(value, 0)} for key, value in values.items()]


def _any(value: Any, depth: int) -> dict[str, Any]:
    """An AnyValue."""
    kind = type(value)
    if kind is bool:
        return {"boolValue": value}
    if kind is int and -_INT <= value < _INT:
        return {"intValue": str(value)}
    if kind is float:
        return {"doubleValue": value if math.isfinite(value) else _no_number(value)}
    if kind is bytes:
        return {"bytesValue": base64.b64encode(value).decode("ascii")}
    if kind is list and depth < _DEPTH:
        return {"arrayValue": {"values": [_any(item, depth + 1) for item in value]}}
    if kind is dict and depth < _DEPTH:
        return {
            "kvlistValue": {
                "values": [
                    {"key": text(key) or "?", "value": _any(item, depth + 1)}
                    for key, item in value.items()
                ]
            }
        }
    if value is None:
        return {}
    return {"stringValue": text(value)}


def _no_number(value: float) -> str:
    """What protobuf's JSON calls it."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
