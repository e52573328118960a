"""Exports opened by the programs that they are for, offline; skipped where one is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrec.exporting import slice_name
from shmrec.snapshot_file import read
from tools.pictures.interface import served as serving

from .conftest import WAIT_SECONDS
from .dumping import batch, dump, write_file
from .findings import SECOND, TAKEN, header, producer
from .incident import MS, ODD, incident, many, timeline_of
from .perfetto_client import interface, query
from .test_hostile_text import hostile_file
from .trace_viewers import ChromeTracing, firefox_profiler

CLIENTS = Path(__file__).parent / "clients"
NO_ERRORS = "select name, severity, value from stats where value > 0 and severity <> 'info'"
SCREENSHOT = "perfetto.png"
THREAD, BEGIN, END = 1, 4, 5
CHROMES_OWN = (
    "Profile",
    "ProfileChunk",
    "CpuProfile",
    "Screenshot",
    "ScriptCatchup",
    "TracingStartedInBrowser",
)
"""Names of events that mean something to Firefox Profiler."""


def views(module: str) -> Any:
    """A package of the extra `views`."""
    return pytest.importorskip(
        module, reason=f"{module.partition('.')[0]} is not installed: pip install '.[views]'"
    )


def tool(name: str, *arguments: str) -> str:
    """What a program of the system's says."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [program, *arguments],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        timeout=WAIT_SECONDS,
    )
    return done.stdout.decode("utf-8")


def leaves(value: Any) -> int:
    """How many arguments a value is to the trace processor."""
    if isinstance(value, dict) and value:
        return sum(map(leaves, value.values()))
    if isinstance(value, list) and value:
        return sum(map(leaves, value))
    return 1


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    views("perfetto")
    place = tmp_path_factory.mktemp("perfetto")
    dump("export", incident(place), "-o", place / "incident.pftrace")
    return place / "incident.pftrace"


def test_perfetto_counts_what_the_snapshot_has(trace: Path) -> None:
    timeline = timeline_of(trace.with_name("incident.shmrec"))
    items = list(timeline.items())
    kinds = Counter(item.kind for item in items)
    errors, processes, threads, slices, counters, flows, args, clocks, flights, stacks = query(
        trace,
        NO_ERRORS,
        "select pid, name from process where pid > 0 order by pid",
        "select p.pid, t.tid, t.name from thread t join process p using (upid) "
        "join thread_track k using (utid) where p.pid > 0 group by p.pid, t.tid order by 1, 2",
        "select s.name, s.ts, s.dur, s.depth, s.category from slice s order by s.ts, s.id",
        "select p.pid, t.name, c.ts, c.value from counter c join process_counter_track t "
        "on c.track_id = t.id join process p using (upid) order by c.ts, t.name",
        "select o.name as parent, i.name as child from flow f join slice o on f.slice_out = o.id "
        "join slice i on f.slice_in = i.id order by 1",
        "select count(*) as n from args where key like 'debug.%'",
        "select clock_name, clock_value from clock_snapshot",
        "select name, ts + dur as ends from slice where name like '%(in flight)'",
        "select s.name from slice s join args a using (arg_set_id) where a.key like 'debug.stack%' "
        "and a.display_value like '%crash%'",
    )
    assert errors == []
    assert processes == [
        {"pid": process.pid, "name": process.name} for process in timeline.processes
    ]
    assert [(row["pid"], row["tid"], row["name"]) for row in threads] == sorted(
        (process.pid, track.number, track.name)
        for process in timeline.processes
        for track in process.threads
    )
    moments = kinds.total() - kinds["begin"] - kinds["end"] - kinds["counter"]
    assert len(slices) == kinds["begin"] + moments
    shown = Counter(row["name"] for row in slices)
    assert shown["request"] == shown["request (in flight)"] == 1
    spans = {(each["name"], each["ts"]): each["dur"] for each in slices}
    for item in items:
        if item.kind == "end" and item.slice is not None and not item.slice.in_flight:
            found = spans[item.slice.name, item.slice.begin_ns]
            assert found == item.slice.end_ns - item.slice.begin_ns
    assert len(counters) == kinds["counter"]
    assert {(row["pid"], row["name"]) for row in counters} == {
        (item.process.pid, item.name)
        for item in items
        if item.kind == "counter" and item.process is not None
    }
    assert flows == [
        {"parent": "request (in flight)", "child": "task"},
        {"parent": "spawn", "child": "task"},
    ]
    expected = sum(leaves(item.args) for item in items if item.args)
    stacks_shown = [
        item.slice.stack if item.kind == "begin" and item.slice is not None else item.stack
        for item in items
    ]
    expected += sum(len(stack.frames) for stack in stacks_shown if stack is not None)
    assert args == [{"n": expected}]
    known = {row["clock_name"]: row["clock_value"] for row in clocks}
    assert known["MONOTONIC"] == timeline.taken_ns
    assert known["REALTIME"] == timeline.wall_ns(timeline.taken_ns)
    assert {row["ends"] for row in flights} == {timeline.taken_ns}
    assert {row["name"] for row in stacks} == {"query (in flight)"}
    assert leaves(ODD) == 12


def test_perfetto_shows_states_moments_and_families(trace: Path) -> None:
    timeline = timeline_of(trace.with_name("incident.shmrec"))
    items = list(timeline.items())
    labels, moments, families, units = query(
        trace,
        "select p.pid, a.display_value as state from process p join args a using (arg_set_id) "
        "where a.key = 'chrome.process_label[0]' and p.pid > 0 order by p.pid",
        # A moment lies on a thread's track, on a process's, or, the snapshot, on one of its own.
        "select s.category, s.name, s.ts, s.dur, coalesce(p.pid, q.pid) as pid, h.tid "
        "from slice s "
        "left join thread_track t on t.id = s.track_id left join thread h using (utid) "
        "left join process q on q.upid = h.upid left join process_track k on k.id = s.track_id "
        "left join process p on p.upid = k.upid where s.category <> 'span' order by s.ts, s.id",
        "select s.name, s.track_id as track, t.name as family, h.tid from slice s "
        "join thread_track t on t.id = s.track_id join thread h using (utid) "
        "where t.name is not null order by s.ts",
        "select distinct name, unit from counter_track where name like 'process.%' order by name",
    )
    assert labels == [
        {"pid": process.pid, "state": process.state} for process in timeline.processes
    ]
    assert labels[1]["state"].startswith("dead: ")
    assert [tuple(row.values()) for row in moments] == [
        (
            item.kind,
            item.name,
            item.time_ns,
            0,
            item.process.pid if item.process is not None else None,
            item.track.number if item.track is not None else None,
        )
        for item in items
        if item.kind not in ("begin", "end", "counter")
    ]
    told = {row["category"] for row in moments}
    assert told == {"instant", "exception", "log", "mark", "stack"}
    names = [row["name"] for row in moments if row["category"] == "mark"]
    assert names[0] == "exited"
    assert names[1].startswith("death: ")
    assert names[2].startswith("snapshot: ")
    # Two tasks overlap, the third begins when the first has ended: one family of two lanes.
    tasks = [row for row in families if row["family"] == "task"]
    assert [row["name"] for row in tasks] == ["task", "task", "step", "task (in flight)"]
    first, second, step, third = (row["track"] for row in tasks)
    assert first == step == third != second
    assert {row["tid"] for row in tasks} == {102}
    assert units == [
        {"name": "process.cpu", "unit": "%"},
        {"name": "process.open_files", "unit": ""},
        {"name": "process.rss", "unit": "bytes"},
        {"name": "process.threads", "unit": ""},
    ]


def test_perfetto_reads_trace_events(tmp_path: Path) -> None:
    views("perfetto")
    out = tmp_path / "incident.json"
    dump("export", incident(tmp_path), "-o", out)
    kinds = Counter(item.kind for item in timeline_of(tmp_path / "incident.shmrec").items())
    errors, slices, counters, flows = query(
        out,
        NO_ERRORS,
        "select count(*) as n from slice",
        "select count(*) as n from counter",
        "select count(*) as n from flow",
    )
    assert errors == []
    moments = kinds.total() - kinds["begin"] - kinds["end"] - kinds["counter"]
    assert slices == [{"n": kinds["begin"] + moments}]
    assert counters == [{"n": kinds["counter"]}]
    assert flows == [{"n": 2}]


@pytest.mark.parametrize("end", ["pftrace", "json"])
def test_perfetto_reads_hostile_texts(tmp_path: Path, end: str) -> None:
    views("perfetto")
    out = tmp_path / f"hostile.{end}"
    dump("export", hostile_file(tmp_path / "x.shmrec"), "-o", out)
    errors, processes = query(out, NO_ERRORS, "select count(*) as n from process where pid > 0")
    assert errors == []
    # The snapshot itself is one more where there is no track without a process.
    assert processes == [{"n": 4 if end == "pftrace" else 5}]


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    return found


def artefacts(otherwise: Path) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("SHMREC_ARTEFACTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def chrome_tracing() -> Iterator[ChromeTracing]:
    with views("playwright.sync_api").sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        viewer = ChromeTracing(browser)
        yield viewer
        assert viewer.failures == []
        browser.close()


def spans_shown(file: Path) -> Counter[tuple[int, str]]:
    return Counter(
        (item.process.pid, slice_name(item.slice))
        for item in timeline_of(file).items()
        if item.kind == "begin" and item.slice is not None and item.process is not None
    )


@pytest.mark.stress
def test_chrome_tracing_reads_trace_events(tmp_path: Path, chrome_tracing: ChromeTracing) -> None:
    file, out = incident(tmp_path), tmp_path / "incident.json"
    dump("export", file, "-o", out)
    found = chrome_tracing.read(out)
    assert found["warnings"] == []
    assert found["flows"] == 2
    spans = [
        (process["pid"], thread["name"], span)
        for process in found["processes"]
        for thread in process["threads"]
        for span in thread["spans"]
    ]
    assert Counter((pid, span["name"]) for pid, _, span in spans) == spans_shown(file)
    assert not any(span["cut"] for _, _, span in spans)
    (query,) = (span for _, _, span in spans if span["name"] == "query (in flight)")
    assert query["inside"] == "request (in flight)"
    assert "crash" in json.dumps(query["args"]["stack"])
    (request,) = (span for _, _, span in spans if span["name"] == "request")
    assert request["args"] == {"method": "GET", "path": "/old", "status": 200}
    assert request["duration"] == 1003
    processes = {process["pid"]: process for process in found["processes"]}
    assert dict(processes[100]["counters"])["process.rss"] == 2
    (label,) = processes[101]["labels"]
    assert label.startswith("dead: Fatal signal: SIGSEGV")
    page = chrome_tracing.page
    page.locator("tr-ui-timeline-view").get_by_text("worker (pid 101)").last.wait_for()
    page.screenshot(path=artefacts(tmp_path) / "chrome-tracing.png")


@pytest.mark.stress
def test_chrome_tracing_reads_hostile_texts(tmp_path: Path, chrome_tracing: ChromeTracing) -> None:
    file, out = hostile_file(tmp_path / "x.shmrec"), tmp_path / "hostile.json"
    dump("export", file, "-o", out)
    found = chrome_tracing.read(out)
    assert sum(
        len(thread["spans"]) for process in found["processes"] for thread in process["threads"]
    ) == sum(spans_shown(file).values())
    # Where the end of a span says again what its beginning said, the later is shown.
    assert {warning.partition(":")[0] for warning in found["warnings"]} <= {"arg_merge_error"}


def marked(markers: list[dict[str, Any]]) -> Counter[tuple[int, str]]:
    """The spans among Firefox Profiler's markers."""
    return Counter(
        (int(each["pid"]), each["name"]) for each in markers if each["category"] == "span"
    )


def test_firefox_profiler_reads_trace_events(tmp_path: Path) -> None:
    for file in (incident(tmp_path), hostile_file(tmp_path / "x.shmrec")):
        out = file.with_suffix(".json")
        dump("export", file, "-o", out)
        markers = firefox_profiler(out, tmp_path / "session")
        assert sum(marked(markers).values()) == sum(spans_shown(file).values())
        assert all(each["duration"] >= 0 for each in markers if each["category"] == "span")
        # What names a thread is there for each, or it would be called after Chrome.
        assert "Chrome Thread" not in {each["threadName"] for each in markers}
        if file.stem == "incident":
            assert marked(markers) == spans_shown(file)
            assert {each["name"] for each in markers} >= {"boot", "app.views", "KeyError"}


def test_firefox_profiler_takes_nothing_for_its_own(tmp_path: Path) -> None:
    """Names and arguments that mean something to it, in events of Chrome's."""
    happened: list[list[Any]] = [[THREAD, 0, 100, "MainThread"]]
    for number, name in enumerate((*CHROMES_OWN, "mine")):
        args = {"data": ["text", 7, ["a"], {"type": "t"}, None, 0, True][number], "detail": name}
        happened += [[BEGIN, 1000, name, number + 1, args], [END, 1000, name, 1000, number + 1]]
    file = write_file(
        tmp_path / "x.shmrec",
        header(),
        [(producer(), [batch(*happened, start_ns=TAKEN - 1_000_000)])],
    )
    dump("export", file, "-o", tmp_path / "x.json")
    markers = firefox_profiler(tmp_path / "x.json", tmp_path / "session")
    assert set(marked(markers)) == {
        (100, "mine"),
        *((100, f"{name} (span)") for name in CHROMES_OWN),
    }


def test_speedscope_knows_the_file(tmp_path: Path) -> None:
    jsonschema = views("jsonschema")
    schema = json.loads((CLIENTS / "speedscope.schema.json").read_text("utf-8"))
    for file in (incident(tmp_path), hostile_file(tmp_path / "x.shmrec")):
        out = file.with_suffix(".speedscope.json")
        dump("export", file, "-o", out)
        found = json.loads(out.read_text("utf-8"))
        jsonschema.validate(found, schema)
        for profile in found["profiles"]:
            inside: list[int] = []
            last = profile["startValue"]
            for event in profile["events"]:
                assert last <= event["at"] <= profile["endValue"]
                last = event["at"]
                if event["type"] == "O":
                    inside.append(event["frame"])
                else:
                    assert inside.pop() == event["frame"]
            assert not inside


def test_opentelemetry_parses_every_line(tmp_path: Path) -> None:
    formats = views("google.protobuf.json_format")
    messages = views("opentelemetry.proto.trace.v1.trace_pb2")
    for file in (incident(tmp_path), hostile_file(tmp_path / "x.shmrec")):
        out = file.with_suffix(".otlp.jsonl")
        dump("export", file, "-o", out)
        spans = 0
        for line in out.read_text("utf-8").splitlines():
            # Its ids are hexadecimal in OTLP, where protobuf's JSON has base64: other bytes, which
            # are as long as they should be if the text is.
            data = formats.Parse(line, messages.TracesData())
            for resource in data.resource_spans:
                named = {each.key: each.value for each in resource.resource.attributes}
                assert named["telemetry.sdk.name"].string_value == "shmrec"
                for span in resource.scope_spans[0].spans:
                    spans += 1
                    assert (len(span.trace_id), len(span.span_id)) == (24, 12)
                    assert span.start_time_unix_nano <= span.end_time_unix_nano
        kinds = Counter(item.kind for item in timeline_of(file).items())
        assert spans >= kinds["begin"]


def test_duckdb_reads_lines_of_json(tmp_path: Path) -> None:
    duckdb = views("duckdb")
    file = incident(tmp_path)
    dump("export", file, "-o", tmp_path / "x.jsonl")
    events = f"read_json('{tmp_path}/x.jsonl', format = 'newline_delimited')"
    kinds = duckdb.sql(f"select kind, count(*) from {events} group by kind").fetchall()
    snapshot = read(file)
    expected = Counter(event.kind for run in snapshot.runs(facts=True) for event in run)
    assert dict(kinds) == expected
    longest = duckdb.sql(
        f"select name, duration_ns, pid, wall from {events} "
        "where kind = 'end' order by duration_ns desc limit 1"
    ).fetchall()
    assert [row[:3] for row in longest] == [("request", SECOND + 3 * MS, 101)]


def test_jq_reads_lines_of_json(tmp_path: Path) -> None:
    """The filter is the one that `help export` shows."""
    for file in (incident(tmp_path), hostile_file(tmp_path / "x.shmrec")):
        out = file.with_suffix(".jsonl")
        dump("export", file, "-o", out)
        found = tool("jq", "-ac", 'select(.kind == "exception") | [.name, .args]', str(out))
        events = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        assert [json.loads(line)[0] for line in found.splitlines()] == [
            each["name"] for each in events if each["kind"] == "exception"
        ]
        assert len(tool("jq", "-ac", ".time_ns", str(out)).splitlines()) == len(events)


def test_grep_takes_text_for_text(tmp_path: Path) -> None:
    """Of what it finds to be binary it would only say that something matches."""
    for file, name, lines in (
        (incident(tmp_path), "KeyError", 1),
        (hostile_file(tmp_path / "x.shmrec"), "evil", None),
    ):
        out = file.with_suffix(".txt")
        dump("export", file, "-o", out)
        found = tool("grep", name, str(out)).splitlines()
        assert found == [line for line in out.read_text("utf-8").splitlines() if name in line]
        assert lines in (None, len(found))


def test_duckdb_finds_the_slowest_span_over_a_hundred_snapshots(tmp_path: Path) -> None:
    duckdb = views("duckdb")
    views("pyarrow")
    for number in range(100):
        place = tmp_path / f"{number}"
        place.mkdir()
        file = many(place, 64) if number else incident(place)
        dump("export", file, "-o", tmp_path / f"web-{number}.parquet")
    readme = f"""
        select name, duration_ns / 1e6 as ms, in_flight, label, pid, args, snapshot
        from '{tmp_path}/*[0-9].parquet' where kind = 'span' order by duration_ns desc limit 3
    """
    rows = duckdb.sql(readme).fetchall()
    assert [row[:3] for row in rows] == [
        ("request", 1995.0, True),
        ("query", 1992.0, True),
        ("request", 1003.0, False),
    ]
    assert json.loads(rows[2][5]) == {"method": "GET", "path": "/old", "status": 200}
    states = duckdb.sql(
        f"select label, state from '{tmp_path}/*.producers.parquet' where state = 'dead'"
    ).fetchall()
    assert states == [("worker", "dead")]
    events = duckdb.sql(f"select count(*) from '{tmp_path}/*[0-9].parquet' where kind = 'span'")
    kinds = Counter(item.kind for item in timeline_of(tmp_path / "0" / "incident.shmrec").items())
    assert events.fetchall() == [(kinds["begin"] + 99 * 32,)]


# In its own interface.


@pytest.fixture
def served(trace: Path) -> Iterator[str]:
    """Perfetto's interface with the trace, at an address of this machine."""
    with serving(trace, interface()) as address:
        yield address


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_perfettos_interface_shows_the_tracks(trace: Path, served: str) -> None:
    """The screenshot goes to ``$SHMREC_ARTEFACTS``, or where the trace is."""
    browsers = views("playwright.sync_api")
    folder = artefacts(trace.parent)
    outside = []
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1500, "height": 900})

        def only_here(route: Any) -> None:
            if route.request.url.startswith((served, "data:", "blob:")):
                route.continue_()
            else:
                outside.append(route.request.url)
                route.abort()

        page.route("**/*", only_here)
        page.goto(served)
        page.wait_for_selector("text=worker 101", timeout=120_000)
        for name in ("worker 101", "tasks 102", "master 100"):
            page.locator(f"text={name}").first.click()
        for name in ("pool_0 4243", "lost begin", "task", "process.rss", "workers"):
            page.wait_for_selector(f"text={name}")
        # A dialogue would be one of errors.
        assert not page.locator("text=went wrong").count()
        page.screenshot(path=str(folder / SCREENSHOT))
        browser.close()
    assert (folder / SCREENSHOT).stat().st_size > 10_000
