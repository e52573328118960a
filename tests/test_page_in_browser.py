"""The report in a real browser: quiet, offline, usable by keys; markup stays text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .dumping import dump
from .test_page import MARKUP, incident

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


class Seen:
    """A page, what its console said, and what it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, file: Path) -> None:
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", state="attached")
        assert self.asked == [file.as_uri()]

    def details(self) -> dict[str, str]:
        """What is said of the selected span."""
        terms = self.page.locator("#details dt").all_inner_texts()
        return dict(zip(terms, self.page.locator("#details dd").all_inner_texts(), strict=True))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=["light", "dark"])
def seen(browser: Any, request: pytest.FixtureRequest) -> Iterator[Seen]:
    page = browser.new_page(color_scheme=request.param)
    found = Seen(page)
    yield found
    assert found.said == []
    page.close()


def written(directory: Path, text: str = "request") -> Path:
    page = directory / "incident.html"
    dump("report", incident(directory / "a.shmrec", text), "-o", page)
    return page


def outermost(seen: Seen) -> dict[str, float]:
    """Where the dead one's outermost span is: on the second line, for most of the time shown."""
    box = seen.page.locator("#timeline").bounding_box()
    return {"x": box["width"] * 0.6, "y": 4 + 18 * 1.5}


def test_searching_and_keys(seen: Seen, tmp_path: Path) -> None:
    seen.open(written(tmp_path))
    page = seen.page
    assert "3 spans" in page.inner_text("#timeline-note")
    page.keyboard.press("Tab")
    page.fill("#search", "QUERY")
    page.press("#search", "Enter")
    assert page.inner_text("#found") == "1 of 2"
    assert seen.details()["process"] == "pid 4242 (request)"
    page.press("#search", "Enter")
    assert page.inner_text("#found") == "2 of 2"
    assert seen.details()["process"] == "pid 101 (idle)"
    page.focus("#timeline")
    page.keyboard.press("p")
    assert seen.details()["took"] == "1 s"
    page.keyboard.press("<")
    assert seen.details()["name"] == "outer request"
    assert seen.details()["took"].startswith("in flight for")
    page.keyboard.press("Escape")
    assert seen.details() == {}
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_a_click_selects_what_it_hits(seen: Seen, tmp_path: Path) -> None:
    seen.open(written(tmp_path))
    seen.page.locator("#timeline").click(position=outermost(seen))
    assert seen.details()["name"] == "outer request"


def test_markup_stays_text(seen: Seen, tmp_path: Path) -> None:
    seen.page.add_init_script("window.owned = () => { window.was = true }")
    seen.open(written(tmp_path, MARKUP))
    seen.page.fill("#search", "outer")
    seen.page.press("#search", "Enter")
    assert seen.details()["name"] == f"outer {MARKUP}"
    seen.page.locator("#timeline").hover(position=outermost(seen))
    seen.page.locator("#timeline").click(position=outermost(seen))
    assert seen.details()["process"] == f"pid 4242 ({MARKUP})"
    assert seen.page.evaluate("window.was") is None
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator("script").count() == 2


def test_without_scripts_the_words_are_there(browser: Any, tmp_path: Path) -> None:
    file = written(tmp_path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert "Died: pid 4242" in page.inner_text("body")
    assert "drawn by a script" in page.inner_text("#timeline-note")
    context.close()
