"""gunicorn's two hooks of a request alone, again and again, in this process.

Recording, and with recording calls that do nothing, against gunicorn's own default hooks. A
part of `web_service`: in a service they cost several times as much, since a request leaves
little of them in the processor's caches.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

from tools.bench import switched_hooks, timing
from tools.bench.report import Options, Result
from tools.bench.rig import attached


def measure_hooks(options: Options, request_us: float) -> list[Result]:
    """`request_us` is what a request costs, in microseconds."""
    from gunicorn.config import PostRequest, PreRequest
    from gunicorn.glogging import Logger

    from shmrec.integrations import gunicorn
    from shmrec.integrations.gunicorn_requests import RequestSpans

    rounds, number = (15, 100) if options.quick else (200, 300)
    worker = SimpleNamespace(log=Logger(_configuration()))
    names = {
        "worker": worker,
        "request": SimpleNamespace(method="GET", path="/get"),
        "environ": {},
        "response": SimpleNamespace(status="200 OK", headers_sent=True),
    }
    call = "before(worker, request); after(worker, request, environ, response)"
    ours = {"before": gunicorn.pre_request, "after": gunicorn.post_request}
    theirs = {"before": PreRequest.default, "after": PostRequest.default}
    before = gunicorn._spans
    with attached(options.directory) as recorder:

        def with_spans(spans: RequestSpans) -> timing.Sample:
            sample = timing.statement(call, names | ours, number)

            def taken() -> float:
                gunicorn._spans = spans
                return sample()

            return taken

        unrecorded: Any = switched_hooks.Unrecorded()
        titles = ("the two hooks, recording", "the two hooks, recording replaced by nothing")
        theirs_title = "gunicorn's default hooks"
        try:
            samples = timing.interleaved(
                {
                    titles[0]: with_spans(RequestSpans(recorder)),
                    titles[1]: with_spans(RequestSpans(unrecorded)),
                    theirs_title: timing.statement(call, names | theirs, number),
                },
                rounds,
            )
        finally:
            gunicorn._spans = before
    results = []
    default = statistics.median(samples[theirs_title]) / 1e3
    for title in titles:
        value = statistics.median(samples[title]) / 1e3
        added = value - default
        share = f"adds {added:.2f} us, {100 * added / request_us:.2f} % of a request's"
        ratios = {theirs_title: round(timing.ratio(samples, title, theirs_title), 3)}
        results.append(Result("web", title, value, "us/request", ratios, notes=share))
    return results


def _configuration() -> Any:
    from gunicorn.config import Config

    return Config()
