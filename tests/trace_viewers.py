"""The importers of chrome://tracing and of Firefox Profiler, as published, given a trace; offline.

Neither is in the checkout: a test skips where what it needs is not installed. The first is the
viewer of Chromium's catapult, which the package torch_tb_profiler bundles in one file, run in
headless Chromium; the polyfill is for elements that Chromium no longer has. The second is Firefox
Profiler's own program for the command line, run under Node.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import WAIT_SECONDS

__all__ = ["ChromeTracing", "firefox_profiler"]

_FOLDER = "SHMREC_NODE_CLIENTS"
_ADDRESS = "http://viewer.test/"

_PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>trace</title>
<style>html, body, #viewer {{ margin: 0; width: 100%; height: 100% }}</style>
<script>window.__hideTraceViewerPolyfillWarning = true</script>
<script src="/polyfill.js"></script><body>{viewer}</body>"""

_IMPORT = """async text => {
  const model = new tr.Model();
  await new tr.importer.Import(model).importTraces([text]);
  const container = document.createElement('track-view-container');
  container.id = 'track_view_container';
  const viewer = document.createElement('tr-ui-timeline-view');
  viewer.id = 'viewer';
  viewer.track_view_container = container;
  Polymer.dom(viewer).appendChild(container);
  viewer.globalMode = true;
  Polymer.dom(document.body).appendChild(viewer);
  viewer.model = model;
  const spans = thread => thread.sliceGroup.slices.filter(slice => slice.category === 'span');
  return {
    warnings: model.importWarnings.map(each => `${each.type}: ${each.message}`),
    flows: model.flowEvents.length,
    processes: Object.values(model.processes).map(process => ({
      pid: process.pid,
      name: process.name || '',
      labels: process.labels,
      counters: Object.values(process.counters).map(
        each => [each.name, each.series[0].samples.length]),
      threads: Object.values(process.threads).map(thread => ({
        name: thread.name || '',
        spans: spans(thread).map(each => ({
          name: each.title, start: each.start, duration: each.duration, args: each.args,
          inside: each.parentSlice ? each.parentSlice.title : null,
          cut: each.didNotFinish,
        })),
      })),
    })),
  };
}"""


def _node_client(*path: str) -> Path:
    folder = Path(os.environ.get(_FOLDER) or Path(__file__).parent / "clients")
    found = folder.joinpath("node_modules", *path)
    if not found.exists():
        pytest.skip(f"{path[0]} is not installed: npm install --prefix tests/clients")
    return found


class ChromeTracing:
    """The viewer, in a page of a browser of Playwright's."""

    def __init__(self, browser: Any) -> None:
        package = importlib.util.find_spec("torch_tb_profiler")
        if package is None or not package.submodule_search_locations:
            pytest.skip(
                "there is no viewer of chrome://tracing: pip install --no-deps torch-tb-profiler"
            )
        static = Path(package.submodule_search_locations[0]) / "static"
        viewer = (static / "trace_viewer_full.html").read_text("utf-8")
        polyfill = _node_client("webcomponents.js", "webcomponents.min.js").read_text("utf-8")
        self._files = {
            _ADDRESS: ("text/html; charset=utf-8", _PAGE.format(viewer=viewer)),
            f"{_ADDRESS}polyfill.js": ("text/javascript", polyfill),
        }
        self.page = browser.new_page(viewport={"width": 1400, "height": 700})
        self.failures: list[str] = []
        self.page.on("pageerror", lambda error: self.failures.append(str(error)))
        self.page.route("**/*", self._answer)

    def _answer(self, route: Any) -> None:
        if route.request.url not in self._files:
            route.abort()
            return
        kind, body = self._files[route.request.url]
        route.fulfill(content_type=kind, body=body)

    def read(self, trace: Path) -> dict[str, Any]:
        """What it made of a trace, which is then on the page."""
        self.page.goto(_ADDRESS)
        self.page.wait_for_function("!!(window.tr && window.Polymer && document.registerElement)")
        found: dict[str, Any] = self.page.evaluate(_IMPORT, trace.read_text("utf-8"))
        return found


def firefox_profiler(trace: Path, place: Path) -> list[dict[str, Any]]:
    """The markers that it made of a trace; `place` is a folder for its session."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node, which Firefox Profiler's program runs under")
    program = _node_client("@firefox-devtools", "profiler-cli", "dist", "profiler-cli.js")
    place.mkdir(exist_ok=True)
    env = {
        **os.environ,
        "PROFILER_CLI_SESSION_DIR": str(place),
        "PROFILER_CLI_NO_SYMBOLICATE": "1",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [node, program, *arguments],
            capture_output=True,
            text=True,
            env=env,
            stdin=subprocess.DEVNULL,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        run("load", str(trace))
        markers: list[dict[str, Any]] = json.loads(
            run("profile", "markers", "--json", "--limit", "0")
        )["markers"]
    finally:
        run("stop", "--all")
    return markers
