"""HTTP requests as spans: one each, never mixed, with the right status; nothing else of them."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

import shmrec
from shmrec.decoder import Event
from shmrec.integrations.gunicorn_requests import RequestSpans, check_fields
from tests.conftest import wait_until
from tests.integrations.gunicorn_service import ASGI, WSGI, Service, Start, configure, version

OVERLAPPING = [
    pytest.param(("-k", "gthread", "--threads", "8"), WSGI, id="gthread"),
    pytest.param(("-k", "gevent"), WSGI, id="gevent"),
    pytest.param(
        ("-k", "asgi"),
        ASGI,
        id="asgi",
        marks=pytest.mark.skipif(version() < 24, reason="gunicorn is too old for ASGI"),
    ),
]
KINDS = [pytest.param(("-k", "sync"), WSGI, id="sync"), *OVERLAPPING]


def spans(snapshot: shmrec.Snapshot) -> dict[str, list[Event]]:
    """The events of each request span, by path."""
    found: dict[tuple[int, int], list[Event]] = {}
    for event in snapshot:
        if event.name == "request":
            found.setdefault((event.producer, event.span), []).append(event)
    by_path: dict[str, list[Event]] = {}
    for events in found.values():
        by_path.setdefault(events[0].args["path"], []).extend(events)
    return by_path


def spans_over(service: Service, *paths: str) -> dict[str, list[Event]]:
    """The same once these have ended: some workers do what follows after they answered."""
    found: dict[str, list[Event]] = {}

    def over() -> bool:
        found.update(spans(service.now()))
        return all(found[path][-1].kind == "end" for path in paths)

    wait_until(over)
    return found


@pytest.mark.parametrize(("kind", "app"), OVERLAPPING)
def test_requests_that_overlap_have_a_span_each(
    start: Start, kind: tuple[str, ...], app: str
) -> None:
    service = start(*kind, app=app).ready()
    statuses = [200, 201, 404, 503, 202]
    paths = [service.enter(f"g{number}", status) for number, status in enumerate(statuses)]
    (busy,) = [producer for producer in service.now().producers if producer.open_spans]
    opened = [span.args["path"] for span in busy.open_spans if span.name == "request"]
    assert sorted(opened) == sorted(paths)
    # They end in another order than they began.
    for number in (3, 0, 4, 1, 2):
        service.let_out(f"g{number}")
        wait_until(partial(service.answers.__contains__, paths[number]))
    assert service.answers == dict(zip(paths, statuses, strict=True))

    found = spans_over(service, *paths)
    for path, status in zip(paths, statuses, strict=True):
        begin, end = found[path]
        assert (begin.kind, end.kind) == ("begin", "end")
        assert begin.args == {"method": "GET", "path": path}
        assert end.args == {"status": status}
        assert end.duration_ns is not None
        assert end.duration_ns > 0


@pytest.mark.parametrize("log", [(), ("--access-logfile", "access")], ids=["quiet", "logged"])
@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_how_a_request_ended(
    start: Start, kind: tuple[str, ...], app: str, log: tuple[str, ...]
) -> None:
    service = start(*kind, *log, app=app).ready()
    service.let_out("x")
    assert service.get("/gate/x/201")[0] == 201
    assert service.get("/gate/x/418?secret")[0] == 418
    assert service.get("/fail")[0] == 500
    found = spans_over(service, "/gate/x/201", "/gate/x/418", "/fail")
    assert found["/gate/x/201"][1].args == {"status": 201}
    assert found["/gate/x/418"][1].args == {"status": 418}
    assert found["/fail"][1].args == {"status": 500, "error": "ValueError"}


@pytest.mark.parametrize(("kind", "app"), KINDS)
def test_connections_that_are_kept_alive(start: Start, kind: tuple[str, ...], app: str) -> None:
    service = start(*kind, app=app).ready()
    paths = [f"/kept/{number}" for number in range(5)]
    service.get_all(paths)
    found = spans_over(service, *paths)
    for path in paths:
        assert [event.kind for event in found[path]] == ["begin", "end"]


@pytest.mark.skipif(version() < 24, reason="gunicorn is too old for ASGI")
def test_a_task_that_fails_in_an_asgi_application(start: Start) -> None:
    service = start("-k", "asgi", app=ASGI).ready()
    service.get("/lose")
    (worker,) = service.workers()

    def failures() -> list[Event]:
        return [event for event in service.now() if event.kind == "exception"]

    wait_until(failures)
    (event,) = failures()
    assert (event.pid, event.name) == (worker, "ValueError")
    assert (event.args["unhandled"], event.args["task"]) == ("task", "lost")
    # gunicorn's own handling of it is the loop's, which logs.
    assert "nobody awaits this" in service.log()


def test_fields_are_recorded_only_where_asked_for(start: Start) -> None:
    headers = {"X-Request-Id": "r-17", "Authorization": "never"}
    install = "install(globals(), fields=['query', 'scheme', 'header:x-request-id'])"
    service = start(config=configure(install)).ready()
    service.get("/asked?for=this", headers)
    (begin, _) = spans_over(service, "/asked")["/asked"]
    assert begin.args == {
        "method": "GET",
        "path": "/asked",
        "query": "for=this",
        "scheme": "http",
        "header:x-request-id": "r-17",
    }


class Record:
    """What a `Recorder` does, kept in lists."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.ended: dict[int, dict[str, Any]] = {}

    def begin(self, name: str, **args: Any) -> int:
        self.begun.append(args)
        return len(self.begun)

    def end(self, span: int, **args: Any) -> None:
        assert span not in self.ended
        self.ended[span] = args


class Request:
    __slots__ = ("headers", "method", "path", "remote_addr")

    def __init__(self, path: str = "/") -> None:
        self.method, self.path = "GET", path
        self.headers = [("HOST", "x")]
        self.remote_addr = ("192.0.2.1", 4)


def test_requests_without_an_end_do_not_pile_up() -> None:
    record = Record()
    open_spans = RequestSpans(record)  # type: ignore[arg-type]
    kept = [Request() for _ in range(10_500)]
    for request in kept:
        open_spans.begin(request)
    assert list(record.ended.values()) == [{"abandoned": True}] * 500
    open_spans.begin(kept[-1])
    assert record.ended[10_500] == {"abandoned": True}
    open_spans.end(kept[-1], None, None)
    open_spans.end(kept[-1], None, None)
    assert record.ended[10_501] == {}
    assert list(record.ended) == [*range(1, 501), 10_500, 10_501]


@pytest.mark.parametrize(
    ("status", "args"),
    [
        ("200 OK", {"status": 200}),
        ("404", {"status": 404}),
        (204, {"status": 204}),
        ("odd", {}),
        (None, {}),
    ],
)
def test_a_status_is_a_number_or_none(status: object, args: dict[str, int]) -> None:
    record = Record()
    open_spans = RequestSpans(record)  # type: ignore[arg-type]
    request = Request()
    open_spans.begin(request)
    open_spans.end(request, SimpleNamespace(status=status, headers_sent=True), None)
    assert record.ended == {1: args}


def test_an_error_before_anything_was_sent_has_the_status_that_gunicorn_sends() -> None:
    record = Record()
    open_spans = RequestSpans(record)  # type: ignore[arg-type]
    for sent in (False, True):
        request = Request()
        open_spans.begin(request)
        response = SimpleNamespace(status="200 OK", headers_sent=sent)
        open_spans.end(request, response, ValueError())
    assert record.ended == {
        1: {"status": 500, "error": "ValueError"},
        2: {"status": 200, "error": "ValueError"},
    }


def test_an_address_and_a_header_that_is_missing() -> None:
    record = Record()
    RequestSpans(record, ["remote_addr", "header:x-none"]).begin(Request())  # type: ignore[arg-type]
    assert record.begun == [{"method": "GET", "path": "/", "remote_addr": "192.0.2.1"}]


@pytest.mark.parametrize("wrong", ["query", ["body"], ["header:"]])
def test_unknown_fields_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"header:NAME|list of names"):
        check_fields(wrong)
