"""What `shmrec-dump export` writes, format by format: golden files, and what no format may say.

``SHMREC_GOLDEN=write`` writes the golden files anew, to be read before they are committed.
"""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from shmrec import plain
from shmrec._version import __version__
from shmrec.commands import formats
from shmrec.errors import MissingPackageError
from shmrec.exporting import Source
from shmrec.snapshot_file import read

from .dumping import batch, write_file
from .findings import TAKEN, header, producer
from .incident import BEGIN, END, INSTANT, MS, THREAD, incident, timeline_of
from .test_hostile_text import hostile_file

GOLDEN = Path(__file__).parent / "golden"
TEXTS = ("chrome", "jsonl", "otlp", "speedscope", "text")
JSON = ("chrome", "speedscope")
LINES = ("jsonl", "otlp")


def exported(name: str, file: Path) -> bytes:
    out = io.BytesIO()
    formats.format_named(name).export(Source(read(file)), out)
    return out.getvalue()


def golden(name: str, said: str) -> None:
    """The text is that of the golden file."""
    file = GOLDEN / name
    said = said.replace(f'"{__version__}"', '"VERSION"').replace(
        f"shmrec {__version__}", "shmrec VERSION"
    )
    if os.environ.get("SHMREC_GOLDEN") == "write":
        file.write_text(said, "utf-8")
    assert said == file.read_text("utf-8")


def test_formats_are_the_files() -> None:
    assert formats.names() == (
        "chrome",
        "jsonl",
        "otlp",
        "parquet",
        "perfetto",
        "speedscope",
        "text",
    )
    for name in formats.names():
        each = formats.format_named(name)
        assert each.help
        assert all(re.fullmatch(r"\.[a-z.-]+", end) for end in each.suffixes)


def test_the_longest_end_of_a_name_tells_the_format() -> None:
    named = {
        "a.json": "chrome",
        "a.speedscope.json": "speedscope",
        "a.otlp.jsonl": "otlp",
        "a.JSONL": "jsonl",
        "a.pftrace": "perfetto",
        "a.perfetto-trace": "perfetto",
        "a.parquet": "parquet",
        "a.txt": "text",
    }
    for name, expected in named.items():
        found = formats.by_suffix(Path(name))
        assert found is not None
        assert found.name == expected
    assert formats.by_suffix(Path("a.shmrec")) is None
    parquet = formats.format_named("parquet")
    assert parquet.companion_of(Path("/x/a.parquet")) == Path("/x/a.producers.parquet")
    assert parquet.companion_of(Path("/x/a")) == Path("/x/a.producers.parquet")


@pytest.mark.parametrize("name", TEXTS)
def test_a_format_of_text(name: str, tmp_path: Path) -> None:
    file = incident(tmp_path)
    said = exported(name, file)
    assert said == exported(name, file)
    golden(f"incident{formats.format_named(name).suffixes[0]}", said.decode("utf-8"))


def test_perfetto(tmp_path: Path) -> None:
    pytest.importorskip("perfetto", reason="perfetto is not installed: pip install '.[views]'")
    messages = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = messages.Trace.FromString(exported("perfetto", incident(tmp_path)))
    golden("incident.pftrace.txt", str(trace))


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    file = incident(tmp_path)
    form = formats.format_named("parquet")
    lines = []
    for export in (form.export, form.export_companion):
        out = io.BytesIO()
        export(Source(read(file)), out)
        table = parquet.read_table(io.BytesIO(out.getvalue()))
        lines.append(f"# {table.num_rows} rows")
        lines += [f"{field.name}: {field.type}" for field in table.schema]
        names = [name for name in table.column_names if name not in ("time", "taken")]
        lines += [
            json.dumps({key: row[key] for key in names if row[key] is not None}, ensure_ascii=True)
            for row in table.select(names).to_pylist()
        ]
    golden("incident.parquet.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["perfetto", "parquet"])
def test_a_package_that_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}")

    form = formats.format_named(name)
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(MissingPackageError, match=rf"pip install 'shmrec\[{name}\]'"):
        form.export(Source(read(incident(tmp_path))), io.BytesIO())


def strict(text: str | bytes) -> Any:
    """JSON as the standard has it, without names that come twice in an object."""

    def wrong(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), pairs
        return dict(pairs)

    return json.loads(text, parse_constant=wrong, object_pairs_hook=once)


@pytest.mark.parametrize("name", formats.names())
def test_hostile_texts(name: str, tmp_path: Path) -> None:
    """Whatever was recorded: what comes out is what the format says, and drives no terminal."""
    form = formats.format_named(name)
    if form.binary:
        pytest.importorskip({"perfetto": "perfetto", "parquet": "pyarrow"}[name])
    said = exported(name, hostile_file(tmp_path / "x.shmrec"))
    assert said
    if form.binary:
        return
    text = said.decode("utf-8")
    assert "evil" in text
    bad = {
        char
        for char in text
        if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    assert not bad
    if name in JSON:
        strict(text)
    for line in text.splitlines() if name in LINES else ():
        strict(line)
    assert name not in (*JSON, *LINES) or text.isascii()


@pytest.mark.parametrize("name", JSON)
def test_numbers_that_a_double_does_not_have_are_texts(name: str, tmp_path: Path) -> None:
    whole = (1 << 53) - 1

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for each in value.values():
                check(each)
        elif isinstance(value, list):
            for each in value:
                check(each)
        elif isinstance(value, int):
            assert -whole <= value <= whole

    found = strict(exported(name, incident(tmp_path)))
    check(found)
    assert plain.doubled([whole, whole + 1, {"a": -whole - 1}]) == [
        whole,
        str(whole + 1),
        {"a": str(-whole - 1)},
    ]


def test_pairs_of_trace_events_nest(tmp_path: Path) -> None:
    file = incident(tmp_path)
    events = strict(exported("chrome", file))["traceEvents"]
    inside: dict[tuple[int, int], list[str]] = defaultdict(list)
    last: Counter[tuple[int, int]] = Counter()
    for event in events:
        where = event["pid"], event["tid"]
        if event["ph"] == "B":
            inside[where].append(event["name"])
        elif event["ph"] == "E":
            assert inside[where].pop() == event["name"]
        if event["ph"] in "BE":
            assert event["ts"] >= last[where]
            last[where] = event["ts"]
    assert not any(inside.values())
    assert {event["ph"] for event in events} == set("MBEiCsf")
    shown = Counter(item.kind for item in timeline_of(file).items())
    phases = Counter(event["ph"] for event in events)
    assert (phases["B"], phases["C"]) == (shown["begin"], shown["counter"])
    assert phases["s"] == phases["f"] == 2
    flights = {event["name"] for event in events if event["ph"] == "B"}
    assert {name for name in flights if name.endswith(" (in flight)")} == {
        "query (in flight)",
        "request (in flight)",
        "task (in flight)",
    }


def test_a_span_that_took_no_time_is_found_by_its_arguments(tmp_path: Path) -> None:
    """speedscope takes the end of another one first, unless name and arguments are the same."""
    made = batch(
        [THREAD, 0, 1, "t"],
        [BEGIN, 0, "a", 1, {"n": 1}],
        [BEGIN, 1, "b", 2, {"n": 2}],
        [END, 0, "b", 0, 2, {"n": 3}],
        [END, 1, "a", 2, 1, {"m": 4}],
        start_ns=TAKEN,
    )
    file = write_file(tmp_path / "x.shmrec", header(), [(producer(), [made])])
    events = [
        (event["ph"], event["name"], event["args"])
        for event in strict(exported("chrome", file))["traceEvents"]
        if event["ph"] in "BEi" and event["pid"] == 100
    ]
    assert events == [
        ("B", "a", {"n": 1}),
        ("B", "b", {"n": 2}),
        ("i", "b", {"n": 3}),
        ("E", "b", {"n": 2}),
        ("E", "a", {"m": 4}),
    ]


def test_no_arrow_from_a_parent_that_began_later(tmp_path: Path) -> None:
    """Clocks of one machine agree, but a program may say what it likes."""
    child = batch(
        [THREAD, 0, 1, "t"], [BEGIN, 0, "child", 1, {"parent": "101/1"}], start_ns=TAKEN - 9
    )
    parent = batch([THREAD, 0, 1, "t"], [BEGIN, 0, "parent", 1], start_ns=TAKEN - 5)
    file = write_file(
        tmp_path / "x.shmrec", header(), [(producer(), [child]), (producer(1), [parent])]
    )
    events = strict(exported("chrome", file))["traceEvents"]
    assert "f" not in {event["ph"] for event in events}
    messages = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = messages.Trace.FromString(exported("perfetto", file))
    assert not any(packet.track_event.terminating_flow_ids for packet in trace.packet)


def test_times_of_trace_events_keep_their_nanoseconds(tmp_path: Path) -> None:
    file = write_file(
        tmp_path / "x.shmrec",
        header(),
        [(producer(), [batch([THREAD, 0, 1, "t"], [INSTANT, 7, "x"], start_ns=TAKEN)])],
    )
    assert f'"ts": {TAKEN // 1000}.007}}'.encode() in exported("chrome", file)


def test_ids_of_opentelemetry(tmp_path: Path) -> None:
    spans = [
        span
        for line in exported("otlp", incident(tmp_path)).splitlines()
        for resource in strict(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    ids = [span["spanId"] for span in spans]
    assert len(set(ids)) == len(ids)
    for span in spans:
        assert re.fullmatch(r"[0-9a-f]{32}", span["traceId"])
        assert re.fullmatch(r"[0-9a-f]{16}", span["spanId"])
        assert int(span["traceId"], 16)
        assert int(span["spanId"], 16)
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    by_id = {span["spanId"]: span for span in spans}
    for span in spans:
        if "parentSpanId" in span:
            assert by_id[span["parentSpanId"]]["traceId"] == span["traceId"]
    spawn = next(span for span in spans if span["name"] == "spawn")
    assert (spawn["spanId"], spawn["traceId"][:4]) == ("00f067aa0ba902b7", "4bf9")
    child = next(span for span in spans if span.get("parentSpanId") == spawn["spanId"])
    assert child["name"] == "task"
    flying = [span for span in spans if span.get("status", {}).get("code") == 2]
    assert {span["name"] for span in flying} == {"request", "query"}


def test_a_span_of_opentelemetry_has_so_many_events_at_most(tmp_path: Path) -> None:
    instants = [[INSTANT, 1, "x"]] * 200
    made = batch(
        [THREAD, 0, 1, "t"],
        [BEGIN, 0, "a", 1],
        *map(list, instants),
        [END, MS, "a", MS, 1],
        start_ns=TAKEN - MS,
    )
    file = write_file(tmp_path / "x.shmrec", header(), [(producer(), [made])])
    (span,) = strict(exported("otlp", file))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (len(span["events"]), span["droppedEventsCount"]) == (128, 72)


def test_tables_of_names_that_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    form = formats.format_named("perfetto")
    monkeypatch.setattr(form.module, "_NAMES", 4)
    file = incident(tmp_path)
    trace = messages.Trace.FromString(exported("perfetto", file))
    names: dict[int, str] = {}
    found, cleared = [], 0
    for packet in trace.packet:
        if packet.sequence_flags & messages.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED:
            names.clear()
            cleared += 1
            assert packet.trace_packet_defaults.timestamp_clock_id
        for name in packet.interned_data.event_names:
            assert name.iid not in names
            names[name.iid] = name.name
        if packet.HasField("track_event") and packet.track_event.name_iid:
            found.append(names[packet.track_event.name_iid])
    assert cleared > 2
    expected = [
        f"{item.name}{' (in flight)' if item.slice and item.slice.in_flight else ''}"
        if item.kind == "begin"
        else item.name
        for item in timeline_of(file).items()
        if item.kind not in ("end", "counter")
    ]
    assert found == expected
