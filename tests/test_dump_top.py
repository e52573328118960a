"""``shmrec-dump top``: in a real terminal, once as text and JSON, and its view without either."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from shmrec import live
from shmrec.commands import fullscreen
from shmrec.commands.topframe import frame
from shmrec.commands.topview import SORTS, View
from shmrec.decoder import OpenSpan
from shmrec.entry import Entry
from shmrec.layout import ENTRY, LOSSES
from shmrec.observer import Sighting
from shmrec.segment import open_segment

from .conftest import snapshots, wait_until
from .dumping import DUMP, HOSTILE, Scene, a_scene, dump, dump_json, failure
from .recordings import rings
from .terminals import Bare, Tmux, needs_tmux

NOW = 1_000_000_000_000
SECOND = 1_000_000_000
ON, OFF = b"\x1b[?1049h", b"\x1b[?1049l"
SHOWN = b"\x1b[?25h"


@pytest.fixture
def scene(recording_name: str, tmp_path: Path) -> Iterator[Scene]:
    with a_scene(recording_name, tmp_path) as scene:
        yield scene


def top(scene: Scene, *args: str) -> tuple[str, ...]:
    return (*DUMP, "top", scene.name, "--interval", "0.2", *args)


# In a terminal.


@needs_tmux
def test_what_a_person_sees_and_does(scene: Scene) -> None:
    with Tmux(
        "sh", "-c", 'sh -c "$0 $*"; echo left $?; exec cat', *top(scene), columns=200
    ) as terminal:
        shown = terminal.see("master", "worker 2", "q quit")
        assert f"{scene.name}: open, collector pid {scene.collector()}" in shown
        assert "4 running" in shown
        assert "left" not in re.sub("q quit.*", "", shown)
        worker = next(line for line in shown.splitlines() if "worker 1" in line)
        assert "request  method=GET path=/slow/1" in worker
        assert r"query \x1b]0;owned\x07" in worker
        # The oldest open request first, whoever has none last.
        labels = re.findall(r"worker \d|master", shown)
        assert labels == ["worker 0", "worker 1", "worker 2", "master"]

        terminal.keys(">")
        terminal.see("ev/s↓")
        for _ in range(5):
            terminal.keys(">")
        terminal.see("pid↓")
        terminal.keys("r")
        assert re.findall(r"worker \d|master", terminal.see("pid↑"))[-1] == "master"
        terminal.keys("<", "r")

        terminal.keys("/")
        terminal.type("slow/2")
        assert "worker 1" not in terminal.see("filter: slow/2_", "worker 2")
        terminal.keys("Enter")
        wait_until(lambda: "slow/2_" not in terminal.shown())
        terminal.keys("Escape")
        terminal.see("worker 1")

        terminal.keys("Down", "Enter")
        assert "MainThread" in terminal.see("> ", "MainThread")
        terminal.keys("Enter", "a")
        wait_until(lambda: terminal.shown().count("MainThread") >= 3)
        terminal.keys("a", "d")
        terminal.see("detached")
        terminal.keys("?")
        terminal.see("have the collector take a snapshot")
        terminal.keys("x")

        terminal.keys("s")
        terminal.see("snapshot: ", "-requested-from-top-1.shmrec")
        assert len(snapshots(scene.directory, "requested-from-top")) == 1

        terminal.keys("p")
        terminal.see("standing still")
        os.kill(scene.workers[0], signal.SIGKILL)
        terminal.keys("p")
        assert re.search(r"worker 0 +dead ", terminal.see("1 dead", "3 running"))

        terminal.keys("q")
        assert "worker" not in terminal.see("left 0")


@needs_tmux
def test_it_follows_the_size_of_the_terminal(scene: Scene) -> None:
    with Tmux(*top(scene, "--interval", "3600"), columns=180, lines=30) as terminal:
        wide = terminal.see("inside of", "last event", "master")
        terminal.resize(50, 6)
        wait_until(lambda: "last event" not in terminal.shown())
        narrow = terminal.see("pid", "request", "q quit")
        assert len(narrow.rstrip("\n").splitlines()) == 6
        assert "inside of" in wide
        assert "inside of" not in narrow
        # The selected one is in sight however little there is.
        terminal.keys("End")
        terminal.see("> ", "master")
        for columns, lines in ((20, 2), (2, 1), (180, 30)):
            terminal.resize(columns, lines)
        terminal.see("inside of", "worker 0")


@needs_tmux
def test_it_goes_on_with_the_next_recording(scene: Scene, tmp_path: Path) -> None:
    with Tmux(*top(scene)) as terminal:
        terminal.see("worker 0")
        scene.script.say("workers and None")
        assert scene.script.line() == "done"
        assert scene.script.process.stdin is not None
        scene.script.process.stdin.close()
        terminal.see("it has ended, waiting for the next")
        with a_scene(scene.name, tmp_path / "again") as again:
            terminal.see("the recording has begun anew", "worker 0", str(again.workers[0]))


FORGETFUL = """
import sys
from shmrec.commands import dump
from shmrec.commands.verbs import top
top._SAID_NS = 1_000_000_000
sys.argv[0] = "shmrec-dump"
dump.main()
"""


@needs_tmux
def test_what_happened_once_is_not_said_for_ever(scene: Scene) -> None:
    command = [*top(scene)]
    command[1:3] = ["-c", FORGETFUL]
    scene.kill_collector()
    with Tmux(*command) as terminal:
        terminal.see("no collector", "worker 0")
        terminal.keys("s")
        terminal.see("no snapshot: recording")
        wait_until(lambda: "no snapshot: recording" not in terminal.shown())


FAILING = """
import sys
from shmrec.commands import dump
from shmrec.observer import Observer
looks, look = [], Observer.look
def fail(self, now):
    looks.append(now)
    return look(self, now) if len(looks) < 3 else 1 // 0
Observer.look = fail
sys.argv[0] = "shmrec-dump"
dump.main()
"""


@pytest.mark.parametrize("ending", ["q", "\x03", signal.SIGTERM, signal.SIGHUP, "error"])
def test_the_terminal_is_as_it_was_however_it_ends(
    scene: Scene, ending: str | signal.Signals
) -> None:
    command = [*top(scene)]
    if ending == "error":
        command[1:3] = ["-c", FAILING]
    with Bare(command) as terminal:
        before = terminal.modes
        terminal.see("worker 0")
        if isinstance(ending, signal.Signals):
            terminal.running.send_signal(ending)
        elif ending != "error":
            assert terminal.modes != before
            terminal.keys(ending)
        status = {"q": 0, "\x03": 130, "error": 1}
        assert terminal.wait() == (status[ending] if ending in status else 128 + int(ending))
        assert terminal.modes == before
        last = terminal.sent.rindex(b"worker 0")
        wait_until(lambda: OFF in terminal.sent)
        assert terminal.sent.startswith(ON)
        assert terminal.sent.count(ON) == terminal.sent.count(OFF) == 1
        assert terminal.sent.index(OFF) > last
        assert terminal.sent.rindex(SHOWN) > last
        assert (b"Traceback" in terminal.sent) == (ending == "error")


@needs_tmux
def test_control_z_gives_the_terminal_back_for_a_while(scene: Scene) -> None:
    with Tmux("bash", "--norc", "--noprofile", columns=100, env={"PS1": "$ "}) as terminal:
        terminal.type(" ".join(top(scene)))
        terminal.keys("Enter")
        terminal.see("worker 0", "q quit")
        terminal.keys("C-z")
        assert "q quit" not in terminal.see("Stopped")
        terminal.type("stty -a | grep -o -e -icanon; fg")
        terminal.keys("Enter")
        terminal.see("worker 0", "q quit")
        terminal.keys("q")
        wait_until(lambda: "q quit" not in terminal.shown())
        terminal.type("echo left $?")
        terminal.keys("Enter")
        shown = terminal.see("left 0")
        assert "\n-icanon" not in shown


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours(scene: Scene, no_color: str) -> None:
    with Bare(top(scene), env={"NO_COLOR": no_color}) as terminal:
        terminal.see("worker 2")
        terminal.keys("q")
        assert terminal.wait() == 0
        styles = set(re.findall(rb"\x1b\[[0-9;]*m", terminal.sent))
        assert bool(styles - {b"\x1b[0m"}) != bool(no_color)


def test_without_a_terminal(scene: Scene) -> None:
    line = failure("top", scene.name, check=2)
    assert "standard output is no terminal" in line
    assert "--once" in line
    assert "--json" in line
    with Bare(top(scene), env={"TERM": "dumb"}) as terminal:
        assert terminal.wait() == 2
        assert b"cannot move its cursor" in terminal.sent
        assert b"\x1b" not in terminal.sent


# Once, as text and as JSON.


def test_once(scene: Scene) -> None:
    shown = dump("top", scene.name, "--once", "--interval", "0.1").stdout
    assert re.match(rf"{scene.name}: open, collector pid {scene.collector()}, ", shown)
    assert "4 running" in shown
    assert re.search(r"worker 1 +running +0 .* request  method=GET path=/slow/1 +\d", shown)
    assert "left" not in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
    shown = dump("top", scene.name, "--once", "--interval", "0.1", "--all", "--threads").stdout
    assert re.search(r"left +detached", shown)
    assert shown.count("MainThread") == 3
    shown = dump("top", scene.name, "--once", "--interval", "0.1", "--filter", "SLOW/2").stdout
    assert re.findall(r"worker \d|master", shown) == ["worker 2"]
    assert "No process" in dump("top", scene.name, "--once", "-d", "0.1", "--filter", "§").stdout


def test_as_json(scene: Scene) -> None:
    scene.do("shmrec.recorder.default.instant('x')")
    found = dump_json("top", scene.name, "--interval", "0.1", "--sort", "label")
    assert found["name"] == scene.name
    labels = [each["label"] for each in found["producers"]]
    assert labels == ["master", "worker 0", "worker 1", "worker 2"]
    for each in found["producers"]:
        assert each["rate"] == 0
        assert each["rss"] > 1 << 20
        assert each["threads"] >= 1
        assert each["cpu_percent"] >= 0
    assert [span["name"] for span in found["producers"][1]["open_spans"]] == [
        "request",
        f"query {HOSTILE}",
    ]


def test_it_disturbs_nobody(scene: Scene) -> None:
    with open_segment(scene.name, writable=False) as segment:
        scene.kill_collector()
        before = bytes(segment.view[: segment.geometry.rings_offset])
        dump("top", scene.name, "--once", "--interval", "0.1")
        assert bytes(segment.view[: segment.geometry.rings_offset]) == before


@needs_tmux
def test_a_count_that_is_a_lie(scene: Scene) -> None:
    pid = scene.workers[1]
    with open_segment(scene.name) as segment:
        [index] = [each.index for each in rings(segment) if each.entry().pid == pid]
        at = ENTRY.word("opening", segment.geometry.entry(index))
        honest = dump_json("top", scene.name, "--interval", "0.1")["producers"]
        assert not any(each["damage"] for each in honest)
        with Tmux(*top(scene), columns=200) as terminal:
            terminal.see("worker 1")
            kept, segment.words[at] = segment.words[at], 1 << 40
            said = f"! worker 1[{pid}]: not all of its ring is to be believed: ring {index}: newest"
            shown = terminal.see(f"!{pid}", said)
            assert shown.count("/slow/") == 3
            once = dump("top", scene.name, "--once", "--interval", "0.1").stdout
            assert said in " ".join(once.split())
            assert once.count("!") == 2
            lied = dump_json("top", scene.name, "--interval", "0.1")["producers"]
            segment.words[at] = kept
            wait_until(lambda: "!" not in terminal.shown())
    before, after = (next(each for each in all if each["pid"] == pid) for all in (honest, lied))
    assert str(1 << 40) in after["damage"][0]
    assert len(before["open_spans"]) == 2
    for key in ("recorded", "lost", "newest_ns", "rate"):
        assert after[key] == before[key]
    assert [each["span"] for each in after["open_spans"]] == [
        each["span"] for each in before["open_spans"]
    ]


# The view.


def sighting(index: int, label: str = "w", spans: int = 1, **more: object) -> Sighting:
    entry = Entry(
        index, 1, 2, 100 + index, 1, 0, 0, "native", True, "", label, 0, 1, 0,
        dict.fromkeys(LOSSES, 0), 0, 0, 0, 0,
    )  # fmt: skip
    inside = [
        OpenSpan(n, ("request", "query")[n > 0], 7, "MainThread", NOW - (9 - n) * SECOND, {"n": n})
        for n in range(spans)
    ]
    found = Sighting(entry, live.DETACHED if more.pop("left", False) else live.RUNNING)
    found.open_spans, found.newest_ns = inside, NOW - SECOND
    for name, value in more.items():
        setattr(found, name, value)
    return found


def drawn(
    view: View,
    seen: list[Sighting],
    width: int = 120,
    height: int = 20,
    message: str = "",
    *,
    ended: bool = False,
) -> tuple[list[str], list[tuple[int, int]]]:
    lines, shown = frame(
        view,
        None if ended else live.Recording("web", live.OPEN, collector=5),
        seen,
        name="web",
        now=(NOW, 1_700_000_000_000_000_000),
        message=message,
        width=width,
        height=height,
    )
    return [line.plain for line in lines], shown


def test_a_frame_fills_the_terminal_and_no_more() -> None:
    seen = [
        sighting(n, f"工作者 {n} " * (n % 4), n % 4, rate=1e6 * n, rss=1 << n) for n in range(40)
    ]
    for width in range(1, 200, 7):
        for height in (1, 2, 3, 5, 24, 60):
            for view in (View(), View(all_expanded=True), View(helping=True), View(typing=True)):
                for message in ("", "a snapshot: " + "/long" * 50, "a b " * 500):
                    lines, _ = drawn(view, seen, width, height, message)
                    assert len(lines) == height
                    assert max(map(cell_len, lines)) <= width


def test_what_is_long_goes_on_in_the_next_line() -> None:
    path = "/var/lib/shmrec/web-20261124T190723Z-requested-from-top-1.shmrec"
    lines, _ = drawn(View(), [sighting(0)], 40, 24, f"snapshot: {path}")
    assert path in "".join(lines)
    assert "pid" in lines[4]
    lines, _ = drawn(View(helping=True), [], 40, 24)
    said = " ".join(" ".join(lines).split())
    assert "show only what has the text: pid, label, state, open spans; Esc shows all again" in said
    assert "? help" in lines[-1]


def test_of_a_recording_that_has_ended_nothing_is_said_of_processes() -> None:
    view = View(needle="x")
    assert any("No process has that in it." in line for line in drawn(view, [])[0])
    assert not any("No process" in line for line in drawn(view, [], ended=True)[0])


def test_the_selected_one_is_in_sight() -> None:
    seen = [sighting(n) for n in range(50)]
    view = View(sort="pid")
    for place in (0, 10, 49, 25):
        view.selected = (place, 1)
        lines, shown = drawn(view, seen, height=12)
        [line] = [line for line in lines if line.startswith("> ")]
        assert f" {100 + place} " in line
        assert len(shown) == 50


def test_moving_and_opening() -> None:
    seen = [sighting(n) for n in range(5)]
    view = View(sort="pid")
    shown = [each.key for each in seen]
    for key, place in (
        ("down", 0), ("down", 1), ("j", 2), ("up", 1), ("end", 4), ("down", 4), ("home", 0),
        ("page down", 3), ("page up", 0),
    ):  # fmt: skip
        view.press(key, shown, 3)
        assert view.selected == (place, 1)
    view.press("enter", shown, 3)
    assert [view.opened(key) for key in shown] == [True, False, False, False, False]
    view.press("a", shown, 3)
    assert all(view.opened(key) for key in shown)
    view.press(" ", shown, 3)
    assert not view.opened((0, 1))
    # It stays with the process wherever that goes, and is gone with it.
    view.press("r", shown, 3)
    assert view.selected == (0, 1)
    view.press("enter", [], 3)
    view.press("down", [], 3)


def test_orders() -> None:
    seen = [
        sighting(0, "b", spans=0, rate=5.0, cpu=None, rss=3),
        sighting(1, "a", spans=1, rate=None, cpu=2.0, rss=1),
        sighting(2, "c", spans=1, rate=9.0, cpu=1.0, rss=2, left=True),
    ]
    seen[1].entry.losses["oversized"] = 3
    seen[0].newest_ns = 1
    orders = {
        "oldest": "102", "rate": "201", "cpu": "120", "rss": "021", "lost": "102",
        "silent": "012", "pid": "012", "label": "102",
    }  # fmt: skip
    assert set(orders) == set(SORTS)
    for sort, order in orders.items():
        view = View(sort=sort, everything=True)
        assert "".join(str(each.entry.index) for each in view.chosen(seen)) == order, sort
        assert len(View(sort=sort).chosen(seen)) == 2
    view = View(sort="pid", reverse=True, everything=True)
    assert [each.entry.index for each in view.chosen(seen)] == [2, 1, 0]
    for _ in range(len(SORTS)):
        view.press(">", [], 3)
    assert view.sort == "pid"
    view.press("<", [], 3)
    assert view.sort != "pid"


def test_typing_a_filter() -> None:
    view = View()
    for key in ("/", "q", "ü", "x", "backspace", "up"):
        view.press(key, [], 3)
    assert (view.needle, view.typing, view.over) == ("qü", True, False)
    for key in ("clear", "q", "ü"):
        view.press(key, [], 3)
    view.press("enter", [], 3)
    view.press("q", [], 3)
    assert (view.needle, view.typing, view.over) == ("qü", False, True)
    view.press("escape", [], 3)
    assert view.needle == ""
    assert View(needle="N=1").chosen([sighting(0), sighting(1, spans=2)])[0].entry.index == 1


def test_keys() -> None:
    assert fullscreen.keys("q\x1b[A\x1bOB\x1b[5~ü\r\x7f\x15\x1b") == [
        "q", "up", "down", "page up", "ü", "enter", "backspace", "clear", "escape",
    ]  # fmt: skip
    # What is not known is nothing, least of all the letters that it ends with.
    assert fullscreen.keys("\x1b[1;5q\x1b[200~x") == ["x"]


def test_spans_that_are_too_many() -> None:
    lines, _ = drawn(View(), [sighting(0, spans=5, partial=True)], width=160)
    [line] = [line for line in lines if "request" in line and "oldest" not in line]
    assert re.search(r"request  n=0 +9\.0 s +query  n=4 \(\+3 or more\) +5\.0 s", line)
