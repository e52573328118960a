"""Tables for DuckDB, pandas, Spark: events, and beside them producers.

Runs in ``shmrec-dump export``. A span is one row of the events, with the arguments of its beginning
and its end, also one that never ended; every other event is one too. Each row says which snapshot
it is of, so that the files of a hundred snapshots are one table. Arguments are JSON.

Memory: a row group.
"""

from __future__ import annotations

from typing import Any, Final

from shmrec.exporting import Out, Source, package, stack_texts
from shmrec.plain import dumps, text
from shmrec.slices import Item
from shmrec.tracks import Timeline

__all__ = ["BINARY", "COMPANION", "HELP", "SUFFIXES", "export", "export_companion"]

HELP: Final = "for DuckDB, pandas, Spark; processes: NAME.producers.parquet"
SUFFIXES: Final = (".parquet", ".pq")
BINARY: Final = True
COMPANION: Final = ".producers.parquet"

_EXTRA: Final = "parquet"
_ROWS: Final = 1 << 15
_INT: Final = 1 << 63
_BEGIN: Final = "begin"

_EVENTS: Final = (
    ("snapshot", "words"),
    ("recording", "words"),
    ("host", "words"),
    ("taken", "time"),
    ("producer", "int"),
    ("pid", "int"),
    ("label", "words"),
    ("thread", "int"),
    ("thread_name", "words"),
    ("kind", "words"),
    ("name", "words"),
    ("time", "time"),
    ("time_ns", "int"),
    ("duration_ns", "int"),
    ("in_flight", "bool"),
    ("lost", "bool"),
    ("span", "int"),
    ("depth", "int"),
    ("value", "double"),
    ("args", "text"),
    ("stack", "text"),
)
_PRODUCERS: Final = (
    ("snapshot", "words"),
    ("recording", "words"),
    ("host", "words"),
    ("reason", "text"),
    ("taken", "time"),
    ("producer", "int"),
    ("pid", "int"),
    ("label", "words"),
    ("state", "words"),
    ("cause", "text"),
    ("verdict", "text"),
    ("engine", "words"),
    ("attached_ns", "int"),
    ("ended_ns", "int"),
    ("begin_ns", "int"),
    ("end_ns", "int"),
    ("events", "int"),
    ("recorded", "int"),
    ("lost", "text"),
    ("peak_rss", "int"),
)


def export(source: Source, out: Out) -> None:
    """Write the events."""
    timeline = source.timeline
    with _Table(_EVENTS, out) as table:
        common = _common(timeline)
        for item in timeline.items():
            if item.kind != _BEGIN:
                table.add({**common, **_row(timeline, item)})


def export_companion(source: Source, out: Out) -> None:
    """Write the producers."""
    timeline = source.timeline
    with _Table(_PRODUCERS, out) as table:
        for process in timeline.processes:
            producer, verdict = process.producer, process.finding.verdict
            table.add(
                {
                    **_common(timeline),
                    "reason": timeline.snapshot.header.reason,
                    "producer": process.place,
                    "pid": producer.pid,
                    "label": producer.label,
                    "state": producer.state,
                    "cause": producer.cause.text if producer.cause is not None else None,
                    "verdict": verdict.text if verdict is not None else None,
                    "engine": producer.engine,
                    "attached_ns": producer.attached_ns or None,
                    "ended_ns": producer.ended_ns or None,
                    "begin_ns": process.begin_ns,
                    "end_ns": process.end_ns,
                    "events": producer.events,
                    "recorded": producer.recorded,
                    "lost": dumps(producer.losses),
                    "peak_rss": producer.peak_rss or None,
                }
            )


def _common(timeline: Timeline) -> dict[str, Any]:
    header = timeline.snapshot.header
    return {
        "snapshot": timeline.snapshot.path.name,
        "recording": header.recording,
        "host": header.host,
        "taken": timeline.wall_ns(timeline.taken_ns),
    }


def _row(timeline: Timeline, item: Item) -> dict[str, Any]:
    shown, process, track = item.slice, item.process, item.track
    row: dict[str, Any] = {
        "kind": item.kind,
        "name": item.name,
        "time_ns": item.time_ns,
        "args": dumps(item.args),
    }
    stack = item.stack
    if process is not None:
        producer = process.producer
        row |= {"producer": process.place, "pid": producer.pid, "label": producer.label}
    if track is not None:
        row |= {"thread": track.thread, "thread_name": track.thread_name}
    if item.kind == "end" and shown is not None:
        stack = shown.stack
        row |= {
            "kind": "span",
            "time_ns": shown.begin_ns,
            "duration_ns": shown.end_ns - shown.begin_ns,
            "in_flight": shown.in_flight,
            "lost": shown.lost,
            "span": shown.span,
            "depth": shown.depth,
            "args": dumps({**shown.args, **shown.end_args}),
        }
    elif item.kind == "counter":
        row["value"] = float(item.value)
    if stack is not None:
        row["stack"] = "\n".join(stack_texts(stack))
    row["time"] = timeline.wall_ns(row["time_ns"])
    return row


class _Table:
    """Rows on their way into a file."""

    def __init__(self, columns: tuple[tuple[str, str], ...], out: Out) -> None:
        arrow = package("pyarrow", _EXTRA)
        parquet = package("pyarrow.parquet", _EXTRA)
        types = {
            "words": arrow.string(),
            "text": arrow.string(),
            "int": arrow.int64(),
            "double": arrow.float64(),
            "bool": arrow.bool_(),
            "time": arrow.timestamp("ns", tz="UTC"),
        }
        self._columns = columns
        self._arrow = arrow
        self._schema = arrow.schema([(name, types[kind]) for name, kind in columns])
        self._rows: list[tuple[Any, ...]] = []
        self._writer = parquet.ParquetWriter(
            arrow.PythonFile(_Sink(out), mode="w"),
            self._schema,
            compression="zstd",
            use_dictionary=[name for name, kind in columns if kind == "words"],
        )

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
            self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """A row; columns that it lacks are null."""
        self._rows.append(tuple([_fit(row.get(name), kind) for name, kind in self._columns]))
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = [
            self._arrow.array(values, type=field.type)
            for values, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self._rows.clear()
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))


def _fit(value: Any, kind: str) -> Any:
    """The value in the range of its column."""
    if value is None:
        return None
    if kind in ("words", "text"):
        return text(value)
    if kind == "int" and type(value) is int:
        return value if -_INT <= value < _INT else None
    return value


class _Sink:
    """What pyarrow takes for a file."""

    closed = False

    def __init__(self, out: Out) -> None:
        self._out = out
        self._written = 0

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._out.write(piece)
        self._written += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Whoever gave the file does that."""

    def close(self) -> None:
        """Likewise."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False
