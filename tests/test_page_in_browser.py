"""The report in a real browser: quiet, offline, usable by keys; markup stays text."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrec.events import BEGIN, END

from . import incident as everything
from .dumping import batch, dump, write_file
from .findings import MAIN, SECOND, TAKEN, header, producer
from .test_page import MARKUP, PAGE, incident

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


COUNTING = """(() => {
  let library;
  window.counted = [], window.charts = {};
  Object.defineProperty(window, "echarts", {
    get: () => library,
    set: (found) => {
      library = { init: (box, ...rest) => {
        const chart = found.init(box, ...rest), draw = chart.setOption.bind(chart);
        window.charts[box.id] = chart;
        if (box.id === "timeline") chart.setOption = (options, ...how) => {
          draw(options, ...how);
          window.counted.push(options.series[0].data.length);
        };
        return chart;
      } };
    },
  });
})()"""
"""Notes the charts, and of each drawing how many spans it has."""


FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"

TIP = """(id => {
  const all = window.charts[id].getZr().storage.getDisplayList();
  const tip = all.find(each => each.type === "rect" && each.z === 60);
  return [tip.transform[4], tip.transform[5], tip.shape.width, tip.shape.height];
})"""
"""Where a chart says what is pointed at."""


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


def on_screen(seen: Seen, place: dict[str, float]) -> tuple[float, float]:
    """Where a place of the timeline is in the window."""
    timeline = seen.page.locator("#timeline")
    timeline.scroll_into_view_if_needed()
    box = timeline.bounding_box()
    return box["x"] + place["x"], box["y"] + place["y"]


def whole_tip(seen: Seen, name: str) -> tuple[float, float, float, float]:
    """Where a chart says what is pointed at, which is within it."""
    x, y, width, height = seen.page.evaluate(TIP, name)
    chart = seen.page.locator(f"#{name}").bounding_box()
    assert x >= 0
    assert x + width <= chart["width"]
    assert y >= 0
    assert y + height <= chart["height"]
    return x, y, width, height


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


def test_what_is_pointed_at_stays_what_it_is(seen: Seen, tmp_path: Path) -> None:
    """The library lights it up, and must know its colour: or it is empty in the next frame."""
    seen.page.add_init_script(COUNTING)
    seen.open(written(tmp_path))
    x, y = on_screen(seen, outermost(seen))
    seen.page.mouse.move(x, y)
    seen.page.evaluate(FRAMES)
    place = outermost(seen)
    found = f"window.charts.timeline.getZr().handler.findHover({place['x']}, {place['y']})"
    assert seen.page.evaluate(f"{found}.target?.style.fill")
    seen.page.mouse.down()
    seen.page.mouse.up()
    assert seen.details()["name"] == "outer request"


def test_all_that_is_said_of_what_is_pointed_at_can_be_read(seen: Seen, tmp_path: Path) -> None:
    """Its box lies within the timeline, which here has four lines, and not under the mouse."""
    seen.page.add_init_script(COUNTING)
    seen.open(written(tmp_path, "long words " + "x" * 300))
    place = outermost(seen)
    seen.page.mouse.move(*on_screen(seen, place))
    seen.page.evaluate(FRAMES)
    x, y, width, height = whole_tip(seen, "timeline")
    assert not (x <= place["x"] <= x + width and y <= place["y"] <= y + height)


def test_so_it_is_of_curves_and_distributions(seen: Seen, tmp_path: Path) -> None:
    """Of more processes than there is room for, those with the most."""
    facts = [[TAKEN - n * SECOND, (9 - n) << 20, n, 3, 4, "S"] for n in (3, 2, 1)]
    made = batch(MAIN, [BEGIN.number, 1, "a", 1], [END.number, 9, "a", 9, 1], start_ns=TAKEN - 99)
    producers = [(producer(place, pid=100 + place, facts=facts), [made]) for place in range(20)]
    page = tmp_path / "a.html"
    dump("report", write_file(tmp_path / "a.shmrec", header(), producers), "-o", page)
    seen.page.add_init_script(COUNTING)
    seen.open(page)
    axis = seen.page.evaluate("window.charts.curves.getOption().yAxis[0]")
    # At most 8 MiB: memory has round numbers beside it.
    assert (axis["interval"], axis["max"]) == (2 << 20, 8 << 20)
    for name in ("curves", "durations"):
        chart = seen.page.locator(f"#{name}")
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        seen.page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2 - 13)
        seen.page.evaluate(FRAMES)
        whole_tip(seen, name)


def test_a_click_counts_though_it_is_drawn_anew_meanwhile(seen: Seen, tmp_path: Path) -> None:
    """The window changes, or its colours: what was under the finger is drawn by other elements."""
    seen.open(written(tmp_path))
    x, y = on_screen(seen, outermost(seen))
    seen.page.mouse.move(x, y)
    seen.page.mouse.down()
    seen.page.evaluate("window.dispatchEvent(new Event('resize'))")
    seen.page.mouse.up()
    assert seen.details()["name"] == "outer request"


def test_what_is_dragged_is_not_clicked(seen: Seen, tmp_path: Path) -> None:
    seen.open(written(tmp_path))
    x, y = on_screen(seen, outermost(seen))
    seen.page.mouse.move(x, y)
    seen.page.mouse.down()
    seen.page.mouse.move(x + 30, y, steps=3)
    seen.page.mouse.up()
    assert seen.details() == {}
    seen.page.mouse.down()
    seen.page.mouse.up()
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
    assert seen.page.locator("script").count() == len(list(PAGE.glob("*.js")))


def test_without_scripts_the_words_are_there(browser: Any, tmp_path: Path) -> None:
    file = written(tmp_path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert "Died: pid 4242" in page.inner_text("body")
    assert "drawn by a script" in page.inner_text("#timeline-note")
    context.close()


def test_a_long_span_behind_a_short_one_is_itself(seen: Seen, tmp_path: Path) -> None:
    """Short ones that no pixel tells apart are drawn as one; what a worker died in is not short."""
    happened = [MAIN]
    for number in range(20):
        happened += [
            [BEGIN.number, 1000, "short", 2 * number + 1],
            [END.number, 1000, "short", 1000, 2 * number + 1],
        ]
    happened.append([BEGIN.number, 1000, "long", 99])
    made = batch(*happened, start_ns=TAKEN - 3 * SECOND)
    page = tmp_path / "a.html"
    dump("report", write_file(tmp_path / "a.shmrec", header(), [(producer(), [made])]), "-o", page)
    seen.open(page)
    seen.page.locator("#timeline").click(position=outermost(seen))
    assert seen.details()["name"] == "long"


# Much of it.


@pytest.mark.parametrize("events", [200_000, 1_000_000])
def test_however_much_there_is_only_what_pixels_tell_apart_is_drawn(
    browser: Any, tmp_path: Path, events: int
) -> None:
    """Fluid is what draws little: a number of shapes by the width, not by the events."""
    file = tmp_path / "a.html"
    dump("report", everything.many(tmp_path, events), "-o", file)
    page = browser.new_page()
    seen = Seen(page)
    page.add_init_script(COUNTING)
    seen.open(file)
    assert f"{events // 2:,} spans" in page.inner_text("#timeline-note")
    width = page.locator("#timeline").bounding_box()["width"]
    page.focus("#timeline")
    drawn = 0
    for key in (*"0+++", "ArrowLeft", *"++++++", "ArrowRight", *"-----0"):
        page.keyboard.press(key)
        page.wait_for_function("drawn => window.counted.length > drawn", arg=drawn)
        drawn = page.evaluate("window.counted.length")
    counts = page.evaluate("window.counted")
    # Of each of eight lines a shape for three pixels; its words are in it.
    assert 0 < max(counts) <= 8 * width / 3
    page.fill("#search", "query")
    page.press("#search", "Enter")
    assert seen.details()["name"] == "query"
    assert seen.said == []
    page.close()


# On paper, and read aloud.


def test_paper_has_everything(browser: Any, tmp_path: Path) -> None:
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    report, printed = tmp_path / "a.html", tmp_path / "a.pdf"
    dump("report", everything.incident(tmp_path), "-o", report)
    page = browser.new_page(color_scheme="dark")
    seen = Seen(page)
    seen.open(report)
    closed = page.locator("details.card:not([open])")
    assert closed.count()
    hidden = closed.locator("li").all_text_contents()
    before = page.locator("#timeline").bounding_box()
    page.pdf(path=printed, format="A4")
    assert seen.said == []
    # The screen is as it was.
    assert closed.locator("li").all_text_contents() == hidden
    assert page.locator("#timeline").bounding_box() == before
    with pdfium.PdfDocument(printed) as document:
        said = "".join(sheet.get_textpage().get_text_range() for sheet in document)
        # Whatever the screen's colours are, paper is white.
        for sheet in document:
            histogram = sheet.render().to_pil().convert("L").histogram()
            assert histogram.index(max(histogram)) == 255
    squeezed = "".join(said.split())
    for words in (*hidden, "Slowest spans", "How long spans took", "Two flushes"):
        assert "".join(words.split()) in squeezed
    assert "Nothing is selected" not in said
    page.close()


def test_paper_is_as_wide_as_what_is_drawn(browser: Any, tmp_path: Path) -> None:
    """Drawn for the screen, it would be cut off, or shrink all else with it."""
    page = browser.new_page(viewport={"width": 1600, "height": 900}, color_scheme="dark")
    Seen(page).open(written(tmp_path, "long words " + "x" * 300))
    wide = """() => ['timeline', 'curves', 'durations'].map(
        id => document.getElementById(id).querySelector('canvas').clientWidth)"""
    found = f"window.addEventListener('beforeprint', () => {{ window.found = ({wide})() }})"
    ink = "window.ink = getComputedStyle(document.documentElement).getPropertyValue('--text')"
    page.evaluate(f"{found}; window.addEventListener('beforeprint', () => {{ {ink} }})")
    on_screen = page.evaluate(wide)
    page.pdf(format="A4")
    # What A4 has between its margins.
    assert all(300 < each <= (210 - 24) / 25.4 * 96 for each in page.evaluate("window.found"))
    assert page.evaluate("window.ink") == "#000"
    assert page.evaluate(wide) == on_screen
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    cut = """() => [...document.querySelectorAll('body *')].filter(
        each => !each.closest('[hidden], .unseen') && each.getBoundingClientRect().right > 703)
        .map(each => each.outerHTML.slice(0, 99))"""
    assert page.evaluate(cut) == []
    page.close()


def test_a_screen_reader_finds_its_way(seen: Seen, tmp_path: Path) -> None:
    seen.open(written(tmp_path))
    page = seen.page
    devtools = page.context.new_cdp_session(page)

    def tree() -> list[dict[str, Any]]:
        found = devtools.send("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node["role"]["value"],
                "name": node.get("name", {}).get("value", ""),
                "description": node.get("description", {}).get("value", ""),
                **{each["name"]: each["value"].get("value") for each in node["properties"]},
            }
            for node in found
            if not node["ignored"]
        ]

    nodes = tree()
    by_role: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        by_role.setdefault(node["role"], []).append(node)
    assert {"banner", "main", "contentinfo", "region"} <= set(by_role)
    levels = [int(node["level"]) for node in by_role["heading"]]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert all(node["name"] for node in by_role["heading"])
    for role in ("button", "searchbox", "combobox", "slider", "DisclosureTriangle", "image"):
        assert all(node["name"] for node in by_role.get(role, ()))
    (timeline,) = by_role["application"]
    assert timeline["name"] == "Timeline of all processes"
    assert "tables below" in timeline["description"]
    # What is only drawn is said as well, here or in a table.
    assert {"Slowest spans", "How long spans took"} <= {node["name"] for node in by_role["table"]}
    assert any(
        node["name"] == "process.rss over the same time. pid 4242 (request): 6 MiB to 8 MiB"
        for node in by_role["image"]
    )
    page.focus("#timeline")
    page.keyboard.press(".")
    (region,) = (node for node in tree() if node["name"] == "selected span")
    assert region["live"] == "polite"
    assert "outer request" in page.locator("[aria-label='selected span']").inner_text()
