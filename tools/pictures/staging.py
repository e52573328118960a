"""The demo's incident, and what is to be drawn of it: `top`'s screen, the report, the trace.

Runs in the demo's environment, before ``drawing.py``. The screen is what a terminal showed of
``shmrec-dump top`` while the request that kills its worker a moment later was running.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import demo_incident as demo

COLUMNS, LINES = 150, 13
"""Of the terminal; in a narrower one the path is cut."""
_RATES = re.compile(r"; [1-9][\d,]* events a second")


def screen_of_top() -> str:
    """What `top` shows once it knows rates, with its colours as escape sequences."""
    tool = Path(sys.executable).parent / "shmrec-dump"
    tmux = ["tmux", "-L", f"shmrec-pictures-{os.getpid()}"]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*tmux, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": ""},
        )
        return done.stdout

    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    run("-f", "/dev/null", "new-session", "-d", *size, str(tool), "top", demo.RECORDING)
    try:

        def shown() -> str | None:
            plain = run("capture-pane", "-p")
            there = _RATES.search(plain) and demo.SLOW_PATH in plain
            return run("capture-pane", "-p", "-e") if there else None

        return demo.wait_for("top shows the slow request", shown)
    finally:
        run("kill-server")


def main() -> None:
    (place,) = map(Path, sys.argv[1:])
    os.environ["SHMREC_DIR"] = str(place)
    screens: list[str] = []
    with tempfile.TemporaryDirectory(prefix="shmrec-pictures-") as folder:
        victim, snapshot = demo.incident(Path(folder), lambda: screens.append(screen_of_top()))
    (place / "top.ansi").write_text(screens[0], "utf-8")
    (place / "victim").write_text(str(victim), "utf-8")
    demo.dump("report", str(snapshot), "-o", str(place / "incident.html"))
    demo.dump("export", str(snapshot), "-o", str(place / "incident.pftrace"))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            main()
        except demo.DemoError as error:
            sys.exit(f"pictures: {error}")
