"""The report as a page: its words, its data, and what it does with markup that was recorded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from shmrec.commands.page import drawing
from shmrec.commands.page.rendering import LIBRARY_VERSION
from shmrec.events import BEGIN, COUNTER, END, EXCEPTION, INSTANT, LOG
from shmrec.manifest import Cause, Stack

from .dumping import batch, dump, failure, write_file
from .findings import CRASHED, MAIN, SECOND, TAKEN, header, producer

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "shmrec" / "commands" / "page"
MARKUP = """</script><script>owned()</script>"><img src="https://x.test/" onerror=owned()>{{7*7}}"""
VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """The elements of a page by their names, the texts of some, and whether they are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.shown = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data
        if not {"script", "style"} & set(self._open):
            self.shown += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]

    @property
    def data(self) -> Any:
        """What the timeline is drawn from."""
        packed = self.texts["script"][0]
        return json.loads(zlib.decompress(base64.b64decode(packed)))


def incident(path: Path, text: str = "request") -> Path:
    """A producer that crashed inside of a span, and one that is fine; `text` is everywhere."""
    dead = producer(
        pid=4242,
        label=text,
        state="dead",
        ended_ns=TAKEN - SECOND,
        recorded=6,
        newest_ns=TAKEN - 2 * SECOND,
        cause=Cause("signal 11 (SIGSEGV)", "kernel", 11, None),
        facts=[[TAKEN - n * SECOND, (9 - n) << 20, n, 3, 4, "S"] for n in (3, 2, 1)],
        stack_flags=3,
    )
    dead.stacks.append(
        Stack("fatal", TAKEN - SECOND, CRASHED.replace("crash", text), False, "", {0xA1: 4242})
    )
    history = batch(
        [1, 0, 4242, "MainThread"],
        [BEGIN.number, 1, "outer " + text, 1, {"path": text, text: text}],
        [BEGIN.number, SECOND, "query", 2],
        [INSTANT.number, 1, "moment " + text, {"said": text}],
        [END.number, SECOND, "query", SECOND + 1, 2],
        [EXCEPTION.number, 1, "ValueError", {"message": text}],
        [COUNTER.number, 1, "depth " + text, 3],
        start_ns=TAKEN - 4 * SECOND,
    )
    other = producer(1, label="idle", recorded=2, newest_ns=TAKEN - 5)
    quiet = batch(
        MAIN,
        [BEGIN.number, 1, "query", 1],
        [END.number, 5_000_000, "query", 5_000_000, 1],
        start_ns=TAKEN - SECOND,
    )
    return write_file(
        path,
        header(reason=f"death of {text}", trigger="death", suspects=[0]),
        [(dead, [history]), (other, [quiet])],
    )


def page_of(path: Path) -> Page:
    return Page(dump("report", path, "-o", "-").stdout)


def test_the_words_come_first(tmp_path: Path) -> None:
    page = page_of(incident(tmp_path / "a.shmrec"))
    texts = page.texts
    assert texts["h1"] == ["Death of request"]
    assert texts["title"] == ["Death of request - web"]
    order = [tag for tag, _ in page.elements]
    assert order.index("article") < order.index("script")
    for said in ("Died: pid 4242 (request)", "signal 11", "inside", "views.py:12", "outer request",
                 "Slowest spans", "1.0 s", "pid 101 (idle)", "Nothing was lost."):  # fmt: skip
        assert said in page.shown, said


def test_the_timeline_has_every_span_and_moment(tmp_path: Path) -> None:
    data = page_of(incident(tmp_path / "a.shmrec")).data
    spans = {
        (data["processes"][row["process"]]["title"], data["names"][name]): (length, flags)
        for row in data["rows"]
        for name, length, flags in zip(row["names"], row["lengths"], row["flags"], strict=True)
    }
    assert spans["pid 4242 (request)", "query"] == (SECOND + 1, 0)
    assert spans["pid 4242 (request)", "outer request"][1] == 1
    assert spans["pid 101 (idle)", "query"] == (5_000_000, 0)
    assert len(spans) == 3
    kinds = [kind for _, _, kind, _ in data["marks"]]
    assert sorted(kinds) == ["death", "exception", "instant", "mark"]
    curves = {(each["process"], each["name"]): each["values"] for each in data["curves"]}
    assert curves[0, "depth request"] == [3]
    assert curves[0, "process.rss"] == [6 << 20, 7 << 20, 8 << 20]
    assert {each["name"]: each["count"] for each in data["durations"]} == {"query": 2}


def test_what_was_logged_as_an_error_is_one(tmp_path: Path) -> None:
    logged = batch(
        MAIN,
        *(
            [LOG.number, 1, "app", {"message": "m", **level}]
            for level in (
                {"level": "INFO"},
                {"level": "WARNING"},
                {"level": "ERROR"},
                {"level": "CRITICAL"},
                {"level": "ALARM", "levelno": 45},
                {"level": "NOTICE", "levelno": 25},
            )
        ),
        start_ns=TAKEN - SECOND,
    )
    file = write_file(tmp_path / "a.shmrec", header(), [(producer(), [logged])])
    kinds = [kind for _, _, kind, _ in page_of(file).data["marks"]]
    assert kinds[:6] == ["log", "log", "error", "error", "error", "log"]


def test_of_too_many_moments_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_MARKS", 1)
    page = page_of(incident(tmp_path / "a.shmrec"))
    assert sorted(kind for _, _, kind, _ in page.data["marks"]) == ["death", "exception", "mark"]
    assert "1 earlier moment of the events not drawn" in page.shown


def test_nothing_is_loaded_and_no_other_script_may_run(tmp_path: Path) -> None:
    page = page_of(incident(tmp_path / "a.shmrec", MARKUP))
    for name in ("src", "href", "action", "style", "srcset", "background"):
        assert page.attributes(name) == []
    assert not [each for _, attrs in page.elements for each in attrs if each.startswith("on")]
    (policy,) = (attrs["content"] for tag, attrs in page.elements
                 if attrs.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    for text in (*page.texts["style"], *page.texts["script"][1:]):
        allowed.remove(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
    assert not allowed


def test_markup_that_was_recorded_stays_text(tmp_path: Path) -> None:
    plain = page_of(incident(tmp_path / "a.shmrec"))
    hostile = page_of(incident(tmp_path / "b.shmrec", MARKUP))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert MARKUP in hostile.texts["h1"][0]
    assert hostile.shown.count("<img") > 8
    assert f"outer {MARKUP}" in hostile.data["names"]


def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = incident(tmp_path / "a.shmrec")
    monkeypatch.chdir(tmp_path)
    assert dump("report", source).stdout == "a.html\n"
    written = tmp_path / "a.html"
    assert written.stat().st_mode & 0o777 == 0o600
    assert Page(written.read_text("utf-8")).texts["h1"] == ["Death of request"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.html", "a.shmrec"]


def test_nothing_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = incident(tmp_path / "a.shmrec")
    monkeypatch.chdir(tmp_path)
    before = source.read_bytes()
    assert "exists" in failure("report", source, "-o", source)
    assert source.read_bytes() == before
    (tmp_path / "a.html").write_text("mine")
    assert "exists" in failure("report", source)
    assert (tmp_path / "a.html").read_text() == "mine"


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    source = incident(tmp_path / "a.shmrec")
    assert "nowhere" in failure("report", source, "-o", tmp_path / "nowhere" / "a.html")


def test_without_the_template_engine(tmp_path: Path) -> None:
    source = incident(tmp_path / "a.shmrec")
    with mock.patch.dict(sys.modules, {"jinja2": None}):
        said = failure("report", source, "-o", tmp_path / "a.html")
    assert "pip install 'shmrec[report]'" in said
    assert not (tmp_path / "a.html").exists()


def test_the_library_is_the_one_that_is_named() -> None:
    assert f"echarts {LIBRARY_VERSION}" in (PAGE / "echarts.LICENSES.txt").read_text("utf-8")
    wanted = json.loads((ROOT / "tools" / "charts" / "package.json").read_text("utf-8"))
    assert wanted["dependencies"]["echarts"] == LIBRARY_VERSION
