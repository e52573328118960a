"""What others cost, each as it would be left switched on, beside shmrec in the same rounds.

Nothing of a peer runs in somebody else's sample: viztracer's tracing of functions is paused,
sentry hooks into nothing, and OpenTelemetry's exporting thread is drained after each sample,
outside what is timed, which is kind to it. Nothing leaves the process.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench import engines, event_cost, floors, lttng_peer, timing
from tools.bench.event_cost import COUNTER, INSTANT, SPAN, Case
from tools.bench.report import NotMeasuredError, Options, Result

_FLOORS = (event_cost.CLOCK, event_cost.COPY)
# Small enough for every buffer to have wrapped before it is measured.
_KEPT = 1_000


@dataclass(frozen=True)
class Peer:
    """One way to record with somebody else's library, and the case that it is comparable to."""

    title: str
    beside: Case
    sample: timing.Sample
    notes: str = ""


@dataclass(frozen=True)
class _Given:
    directory: Path
    number: int


_Maker = Callable[[_Given], "contextlib.AbstractContextManager[list[Peer]]"]


@contextlib.contextmanager
def _viztracer(given: _Given) -> Iterator[list[Peer]]:
    from viztracer import VizTracer

    tracer = VizTracer(tracer_entries=_KEPT, verbose=0)
    tracer.start()
    # Explicit events are recorded still; functions are not traced any more.
    tracer.pause()
    codes = {
        "add_instant": ('call("request", {"n": 3, "path": "/x"})', INSTANT),
        "log_instant": ('call("request", {"n": 3, "path": "/x"})', INSTANT),
        "log_event": ('with call("request"):\n    pass', SPAN),
    }
    try:
        yield [
            Peer(
                f"viztracer {name}",
                beside,
                timing.statement(code, {"call": getattr(tracer, name)}, given.number),
            )
            for name, (code, beside) in codes.items()
        ]
        if len(tracer.load()) < _KEPT:
            raise RuntimeError("viztracer recorded nothing of what it was measured at")
    finally:
        tracer.stop()
        tracer.clear()


class _NoExporter:
    """An OpenTelemetry span exporter."""

    exported = 0

    def __init__(self, success: Any) -> None:
        self._success = success

    def export(self, spans: Any) -> Any:
        self.exported += len(spans)
        return self._success

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


@contextlib.contextmanager
def _opentelemetry(given: _Given) -> Iterator[list[Peer]]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

    exporter = _NoExporter(SpanExportResult.SUCCESS)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("bench")
    timed = timing.statement(
        'with span("request"):\n    pass', {"span": tracer.start_as_current_span}, given.number
    )

    def sample() -> float:
        found = timed()
        provider.force_flush()
        return found

    try:
        yield [Peer("opentelemetry span", SPAN, sample, "export not counted")]
        if not exporter.exported:
            raise RuntimeError("OpenTelemetry recorded nothing of what it was measured at")
    finally:
        provider.shutdown()


@contextlib.contextmanager
def _logging(given: _Given) -> Iterator[list[Peer]]:
    handler = logging.handlers.MemoryHandler(_KEPT, target=logging.NullHandler())
    logger = logging.Logger("bench", logging.INFO)
    logger.addHandler(handler)
    code = 'info("request n=%d path=%s", 3, "/x")'
    try:
        sample = timing.statement(code, {"info": logger.info}, given.number)
        yield [Peer("logging to a MemoryHandler", INSTANT, sample)]
    finally:
        handler.close()


@contextlib.contextmanager
def _sentry(given: _Given) -> Iterator[list[Peer]]:
    import sentry_sdk
    from sentry_sdk.transport import Transport

    silent = type("Silent", (Transport,), {"capture_envelope": lambda self, envelope: None})
    before = sentry_sdk.get_global_scope().client
    sentry_sdk.init(
        # Without an address it would drop every breadcrumb.
        dsn="http://key@localhost/1",
        transport=silent,
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
    )
    code = 'add(category="request", message="request", data={"n": 3, "path": "/x"})'
    try:
        sample = timing.statement(code, {"add": sentry_sdk.add_breadcrumb}, given.number)
        yield [Peer("sentry add_breadcrumb", INSTANT, sample)]
        if not sentry_sdk.get_isolation_scope()._breadcrumbs:
            raise RuntimeError("sentry recorded nothing of what it was measured at")
    finally:
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(before)


@contextlib.contextmanager
def _prometheus(given: _Given) -> Iterator[list[Peer]]:
    variable = "PROMETHEUS_MULTIPROC_DIR"
    before = os.environ.get(variable)
    # Looked at when the library is imported.
    os.environ[variable] = str(given.directory)
    try:
        from prometheus_client import CollectorRegistry, Counter

        counter = Counter("bench", "Requests", registry=CollectorRegistry())
        sample = timing.statement("inc()", {"inc": counter.inc}, given.number)
        yield [Peer("prometheus Counter.inc, multiprocess", COUNTER, sample)]
        if not any(given.directory.glob("counter_*.db")):
            raise RuntimeError("prometheus_client did not count in a shared file")
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


@contextlib.contextmanager
def _lttng(given: _Given) -> Iterator[list[Peer]]:
    with lttng_peer.running(given.number) as sample:
        yield [Peer("lttng-ust C tracepoint(int, str)", INSTANT, sample, "in a C program")]


_PEERS: dict[str, _Maker] = {
    "viztracer": _viztracer,
    "opentelemetry": _opentelemetry,
    "logging": _logging,
    "sentry": _sentry,
    "prometheus": _prometheus,
    "lttng-ust": _lttng,
}


def measure(options: Options) -> list[Result]:
    """shmrec by every engine, then every peer; one line for each that is not there."""
    rounds, number = (15, 100) if options.quick else (200, 300)
    absent: list[Result] = []
    peers: list[Peer] = []
    candidates: dict[str, timing.Sample] = {}
    in_c = event_cost.c_floors()
    with contextlib.ExitStack() as stack:
        given = _Given(options.directory, number)
        for name, make in _PEERS.items():
            try:
                peers += stack.enter_context(make(given))
            except ImportError:
                absent += event_cost.absent(NotMeasuredError("not installed"), "peers", name)
            except NotMeasuredError as error:
                absent += event_cost.absent(error, "peers", name)
        recorders = stack.enter_context(engines.attached(options.directory))
        for case in (INSTANT, SPAN, COUNTER):
            for engine, recorder in recorders.items():
                candidates[_own(engine, case)] = timing.statement(
                    case.call, event_cost.calls(recorder), number
                )
            for floor in _FLOORS if in_c else ():
                code = event_cost.floor_code(floor, case.arguments)
                candidates[code] = timing.statement(code, in_c, number)
        own = [name for name in candidates if name.startswith("shmrec")]
        candidates |= {peer.title: peer.sample for peer in peers}
        samples = timing.interleaved(candidates, rounds)
    best = next(iter(recorders))
    cases = {_own(engine, case): case for engine in recorders for case in (INSTANT, SPAN, COUNTER)}
    results = [_result(samples, name, cases[name], "", "") for name in own]
    results += [
        _result(samples, peer.title, peer.beside, _own(best, peer.beside), peer.notes)
        for peer in peers
    ]
    return results + absent + event_cost.absent(floors.load(), "peers", "floors in C")


def _own(engine: str, case: Case) -> str:
    return f"shmrec {engine}: {case.title}"


def _result(samples: timing.Samples, name: str, case: Case, own: str, notes: str) -> Result:
    wanted = {own.partition("(")[0]: own} if own else {}
    wanted |= {floor: event_cost.floor_code(floor, case.arguments) for floor in _FLOORS}
    ratios = event_cost.ratios_to(samples, name, wanted)
    return Result(
        "peers",
        name,
        statistics.median(samples[name]),
        "ns",
        {floor: round(ratio, 3) for floor, ratio in ratios.items()},
        notes=notes,
    )
