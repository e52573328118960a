"""A screenful of `top`: as many lines as the terminal has, none wider than it is.

Runs in ``shmrec-dump top``. Columns that have no room are left out, cells are cut, never broken;
the selected producer is always among what is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from shmrec import live
from shmrec.commands.screen import STYLES, Part
from shmrec.commands.topview import COLUMNS, SORTS, Row, View, disbelieved, rows
from shmrec.commands.wording import clock, counted, safe
from shmrec.observer import Sighting

__all__ = ["frame", "summary"]

_GAP: Final = 2
_SHARING: Final = 16
"""Cells that each column gets at least that shares what the others leave."""
_WIDEST: Final = 2
"""How many times as wide as it is at least a column gets."""
_MESSAGE: Final = 4
"""Lines of a message at most."""
_MARK: Final = {True: "> ", False: "  "}
_SELECTED: Final = Style(reverse=True)
_OF_SORT: Final = {
    "pid": 0,
    "label": 1,
    "rate": 3,
    "cpu": 4,
    "rss": 5,
    "lost": 6,
    "silent": 7,
    "oldest": 9,
}
_KEYS: Final = (
    ("q", "quit"),
    ("?", "help"),
    ("s", "snapshot"),
    ("/", "filter"),
    ("< >", "sort"),
    ("r", "reverse"),
    ("enter", "threads"),
)
_HELP: Final = (
    ("q, Ctrl-C", "leave"),
    ("s", "have the collector take a snapshot"),
    ("/", "show only what has the text: pid, label, state, open spans; Esc shows all again"),
    ("< >", f"order by the next column: {', '.join(SORTS)}"),
    ("r", "the other way round"),
    ("up down, j k", "select a process; also page up, page down, home, end"),
    ("enter, space", "show the threads of the selected process, or hide them"),
    ("a", "show the threads of all, or hide them"),
    ("d", "show processes that left in order, too"),
    ("p", "stand still, and go on"),
    ("?, h", "this help; any key leaves it"),
)


def summary(
    recording: live.Recording | None, sightings: Sequence[Sighting], name: str
) -> list[list[Part]]:
    """Two lines of the recording as a whole."""
    if recording is None:
        return [[(safe(name), "strong"), (": it has ended, waiting for the next", "warn")], []]
    collector = f"collector pid {recording.collector}" if recording.collector else "no collector"
    first: list[Part] = [
        (safe(recording.name), "strong"),
        f": {recording.state}, ",
        (collector, "" if recording.collector else "bad"),
        f", generation {recording.generation}, {counted(recording.snapshots, 'snapshot')}",
    ]
    states: dict[str, int] = {}
    for each in sightings:
        states[each.state] = states.get(each.state, 0) + 1
    rate = sum(each.rate or 0.0 for each in sightings)
    lost = sum(sum(each.entry.losses.values()) for each in sightings)
    said = ", ".join(f"{count} {state}" for state, count in states.items()) or "no processes"
    second: list[Part] = [f"{said}; {rate:,.0f} events a second"]
    if lost:
        second.append((f"; {counted(lost, 'event')} lost", "warn"))
    if recording.refused:
        second.append((f"; {counted(recording.refused, 'attach')} refused", "warn"))
    return [first, second]


def frame(
    view: View,
    recording: live.Recording | None,
    sightings: Sequence[Sighting],
    *,
    name: str,
    now: tuple[int, int],
    message: Part,
    width: int,
    height: int,
) -> tuple[list[Text], list[tuple[int, int]]]:
    """The lines of the screen, and the producers on the table, in order.

    `now` is CLOCK_MONOTONIC and the wall clock.
    """
    found = rows(view, sightings, now[0])
    shown = [row.key for row in found if row.head]
    first, second = summary(recording, sightings, name)
    first.append((f"  {clock(now[1]).partition('.')[0]} UTC", "dim"))
    if not message and (doubts := disbelieved(view.chosen(sightings))):
        more = f" (+{len(doubts) - 1})" if doubts[1:] else ""
        message = (doubts[0] + more, "bad")
    lines = [_text(first, width), _text(second, width)]
    lines += _message(_third(view, message), width, height)
    room = max(0, height - len(lines) - 2)
    if view.helping:
        lines += [Text(), *_help(width)][:room]
    else:
        widths = _widths(found, width - len(_MARK[True]))
        lines.append(_headings(view, widths, width))
        for row in _window(view, found, room):
            chosen = row.key == view.selected
            lines.append(_row(row, chosen, widths, width))
        if not found and recording is not None:
            lines.append(_text(["  No process" + " has that in it." * bool(view.needle)], width))
    lines = lines[: max(0, height - 1)]
    lines += [Text()] * (height - 1 - len(lines))
    keys: list[Part] = []
    for key, what in _KEYS:
        keys += [(f" {key} ", "strong"), f"{what} "]
    return [*lines, _text(keys, width)], shown


def _third(view: View, message: Part) -> Part:
    if view.typing:
        return (f"filter: {safe(view.needle)}_", "strong")
    words = [f"filter: {safe(view.needle)}"] if view.needle else []
    words += ["standing still, p goes on"] if view.paused else []
    if words:
        text = message if isinstance(message, str) else message[0]
        return ("   ".join([*words, text]), "warn")
    return message


def _message(said: Part, width: int, height: int) -> list[Text]:
    """What is said, on more lines than one where it does not fit: a path is to be taken whole."""
    text, style = (said, "") if isinstance(said, str) else said
    most = max(1, min(_MESSAGE, height // 4))
    found = wrap(text, max(1, width), break_on_hyphens=False)
    if found[most:]:
        found = [*found[: most - 1], " ".join(found[most - 1 :])]
    return [_text([(line, style) if style else line], width) for line in found or [""]]


def _help(width: int) -> Iterator[Text]:
    for key, what in _HELP:
        for number, line in enumerate(wrap(what, max(16, width - 16))):
            yield _text([f"  {'' if number else key:<13} {line}"], width)


def _window(view: View, found: Sequence[Row], room: int) -> Sequence[Row]:
    """As many rows as there is room for, the selected one among them."""
    places = [place for place, row in enumerate(found) if row.key == view.selected]
    if not places or places[0] < room:
        return found[:room]
    # With its threads, as far as they fit.
    end = min(places[-1] + 1, places[0] + room)
    return found[max(0, end - room) : end]


def _widths(found: Sequence[Row], width: int) -> dict[int, int]:
    """The cells of each column that has room, by its place."""
    places = list(range(len(COLUMNS)))
    while True:
        taken = {
            place: min(
                _WIDEST * COLUMNS[place].cells,
                max([_least(place), *(_cells(row.cells[place]) for row in found)]),
            )
            for place in places
            if COLUMNS[place].cells
        }
        sharing = [place for place in places if not COLUMNS[place].cells]
        left = width - sum(taken.values()) - _GAP * (len(places) - 1)
        least = max(COLUMNS[place].rank for place in places)
        if left >= _SHARING * len(sharing) or not least:
            break
        places = [place for place in places if COLUMNS[place].rank != least]
    wished = {
        place: max([_least(place), *(_cells(row.cells[place]) for row in found)])
        for place in sharing
    }
    for number, place in enumerate(sorted(sharing, key=wished.__getitem__)):
        # What one does not need is another's.
        share = max(0, left) // (len(sharing) - number)
        taken[place] = min(share, wished[place])
        left -= taken[place]
    return {place: taken[place] for place in places}


def _least(place: int) -> int:
    """What a column needs for its heading, with the mark of the order, and for what is usual."""
    column = COLUMNS[place]
    return max(column.cells, len(column.heading.removesuffix(">")) + 1)


def _cells(part: Part) -> int:
    return cell_len(part if isinstance(part, str) else part[0])


def _headings(view: View, widths: dict[int, int], width: int) -> Text:
    text = Text(_MARK[False])
    for number, (place, cells) in enumerate(widths.items()):
        heading = COLUMNS[place].heading
        name = heading.removesuffix(">")
        if _OF_SORT[view.sort] == place:
            name = f"{name}{'↑' if view.reverse else '↓'}"
        text.append(" " * _GAP * bool(number))
        text.append(_fitted(name, cells, heading.endswith(">")), STYLES["dim"])
    return _cut(text, width)


def _row(row: Row, selected: bool, widths: dict[int, int], width: int) -> Text:
    text = Text(_MARK[selected and row.head])
    for number, (place, cells) in enumerate(widths.items()):
        part = row.cells[place]
        said, style = (part, "") if isinstance(part, str) else part
        text.append(" " * _GAP * bool(number))
        text.append(
            _fitted(said, cells, COLUMNS[place].heading.endswith(">")),
            STYLES[style] if style else Style.null(),
        )
    text = _cut(text, width)
    if selected and row.head:
        text.stylize(_SELECTED)
    return text


def _fitted(text: str, cells: int, right: bool) -> str:
    """The text in exactly so many cells."""
    length = cell_len(text)
    if length > cells:
        return f"{set_cell_size(text, cells - 1)}…" if cells > 1 else set_cell_size(text, cells)
    return " " * (cells - length) + text if right else text + " " * (cells - length)


def _text(parts: Sequence[Part], width: int) -> Text:
    text = Text()
    for part in parts:
        said, style = (part, "") if isinstance(part, str) else part
        text.append(said, STYLES[style] if style else Style.null())
    return _cut(text, width)


def _cut(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text
