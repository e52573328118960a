"""What changed between two snapshots, for people.

Runs in ``shmrec-dump diff``. In order: which two; who died, came and went; what is still going on
that was going on before, which is where to look first; then the figures of every process and of
every kind of span; then what was lost.
"""

from __future__ import annotations

from typing import Final

from shmrec.commands.screen import Part, Screen
from shmrec.commands.stack_lines import call
from shmrec.commands.timeline import inside_of, thread_of
from shmrec.commands.wording import (
    MAIN_THREAD,
    age,
    cause,
    counted,
    moment,
    safe,
    size,
    some,
    thread_said,
    who,
)
from shmrec.comparison import (
    CAME,
    DIED,
    FINISHED,
    LEFT,
    NEW,
    STILL,
    WENT,
    Change,
    Comparison,
    SpanChange,
)
from shmrec.manifest import ENDED
from shmrec.stillness import Stillness

__all__ = ["print_difference"]

_SHOWN: Final = 20
_ARGUMENTS: Final = 100
_NAMED: Final = 8
_WORSE: Final = 2
"""So many times as long is worth a colour."""
_SAID: Final = {
    CAME: "Came",
    LEFT: "Left in order",
    WENT: "Went before, a ring's next owner is there instead",
}
_SAID_OF_RUNS: Final = {CAME: "Only in the later run", WENT: "Only in the earlier run"}


def print_difference(screen: Screen, found: Comparison, *, everything: bool = False) -> None:
    """Print it; at most so many rows of a table, unless `everything` is wanted."""
    most = len(found.names) + sum(len(each.spans) for each in found.changes) if everything else 0
    most = max(most, _SHOWN)
    _which(screen, found)
    _ends(screen, found)
    if found.same_run:
        _spans(screen, found, STILL, "Still inside of, as before:", most)
        _unmoved(screen, found, most)
        _spans(screen, found, NEW, "Open since:", most)
        _spans(screen, found, FINISHED, "Open before, no longer:", most)
    _processes(screen, found)
    _names(screen, found, most)
    _losses(screen, found)


def _which(screen: Screen, found: Comparison) -> None:
    header = found.after.header
    where = f"{safe(header.recording)} on {safe(header.host) or '?'}"
    screen.line((f"What changed in {where} in {age(found.elapsed_ns)}", "strong"))
    screen.line()
    for name, snapshot in (("before", found.before), ("after", found.after)):
        taken = moment(snapshot.header.taken_wall_ns)
        reason = safe(snapshot.header.reason) or "no reason given"
        screen.line((f"{name:<6}", "dim"), f"  {taken}  {reason}", indent=2, hang=8)
        screen.stream(" " * 10, (safe(snapshot.path), "dim"))
    if found.swapped:
        screen.line("The newer was named first; the older is what was before.", indent=2)
    for name, snapshot in (("earlier", found.before), ("later", found.after)):
        if snapshot.damage:
            lacks = f"The {name} one is damaged: what it lacks may look like a change."
            screen.line((lacks, "bad"), indent=2)
    if not found.same_run:
        screen.line()
        screen.line(
            ("These are two runs of the recording", "bad"),
            ": processes are paired by label, and no span or thread can be followed.",
        )


def _ends(screen: Screen, found: Comparison) -> None:
    screen.line()
    for change in found.changes:
        if change.what == DIED:
            came = ", which came meanwhile" if change.before is None and found.same_run else ""
            why = cause(change.producer)[0]
            screen.line(("Died", "bad"), f": {who(change.producer)}{came}: {why}")
    said = _SAID if found.same_run else _SAID_OF_RUNS
    for what, title in said.items():
        names = [who(change.producer) for change in found.changes if change.what == what]
        if names:
            screen.line((title, "strong"), f": {some(names, _NAMED)}")
    if not any(change.what in (DIED, *said) for change in found.changes):
        screen.line("Nobody came, went or died.")


def _spans(screen: Screen, found: Comparison, what: str, title: str, most: int) -> None:
    those = [(change, span) for change in found.changes for span in change.spans]
    those = [(change, span) for change, span in those if span.what == what]
    if not those:
        if what == STILL:
            screen.line()
            screen.line("Nothing that was open is still open.")
        return
    # The oldest first: it is what hangs.
    those.sort(key=lambda pair: (pair[1].span.start_ns, pair[0].producer.index))
    screen.line()
    screen.line((title, "strong"))
    threads = any(thread_of(span.span) != MAIN_THREAD for _, span in those)
    headings = ["pid>", "label", "inside of", *_span_headings(what)]
    rows = [_span_row(change, span, threads) for change, span in those[:most]]
    screen.table(headings + ["thread"] * threads, rows, indent=2)
    _more(screen, len(those) - most)


def _span_headings(what: str) -> list[str]:
    return {STILL: ["then>", "now>"], NEW: ["for>"], FINISHED: ["then>", "took>"]}[what]


def _span_row(change: Change, found: SpanChange, threads: bool) -> list[Part]:
    span = found.span
    inside = inside_of(span, _ARGUMENTS)
    row: list[Part] = [
        str(change.producer.pid),
        _ended(change),
        (inside, "bad" if found.what == STILL else "name"),
    ]
    if found.what == STILL:
        row += [age(found.earlier_ns), (age(found.age_ns), "bad")]
    elif found.what == NEW:
        row.append(age(found.age_ns))
    else:
        took = age(found.took_ns) if found.took_ns is not None else ("not known", "dim")
        row += [age(found.earlier_ns), took]
    return row + [(thread_of(span), "dim")] * threads


def _ended(change: Change) -> str:
    """The label, and that it has ended."""
    state = change.producer.state
    label = safe(change.producer.label)
    return f"{label} ({safe(state)})".lstrip() if state in ENDED else label


def _unmoved(screen: Screen, found: Comparison, most: int) -> None:
    those = [(change, thread) for change in found.changes for thread in change.threads]
    if not those:
        return
    screen.line()
    moved = sum(thread.moved for _, thread in those)
    if moved == len(those):
        screen.line("Every thread whose stack is in both has moved.")
        return
    screen.line(("Threads that have not moved, innermost call of the application:", "strong"))
    rows: list[list[Part]] = []
    for change, thread in those:
        if not thread.moved:
            producer = change.producer
            name = _thread_name(change, thread)
            at = _at(thread)
            rows.append([str(producer.pid), safe(producer.label), name, at])
    screen.table(["pid>", "label", "thread", "in"], rows[:most], indent=2)
    _more(screen, len(rows) - most)
    if moved:
        screen.line(f"{counted(moved, 'other')} moved.", indent=2)


def _at(thread: Stillness) -> str:
    """The innermost call of the application; what it called, where that is a library's."""
    newest = thread.frames[0]
    mine = next((frame for frame in thread.frames if not frame.library), newest)
    return call(mine) if mine is newest else f"{call(mine)}, in {call(newest)}"


def _thread_name(change: Change, thread: Stillness) -> str:
    """What the process's spans call it, else its number."""
    for producer in (change.after, change.before):
        for span in producer.open_spans if producer is not None else ():
            if span.thread == thread.thread != 0:
                return thread_of(span)
    return thread_said("", thread.thread, thread.ident)


def _processes(screen: Screen, found: Comparison) -> None:
    screen.line()
    screen.line(("Processes:", "strong"))
    rows: list[dict[str, Part]] = []
    for change in found.changes:
        # Those that had ended before did not change.
        if change.before is not None and change.before.state in ENDED and found.same_run:
            continue
        facts = change.facts
        row: dict[str, Part] = {
            "pid>": _pids(change),
            "label": safe(change.producer.label),
            "state": (_states(change), "bad" if change.what == DIED else ""),
            "events/s then>": _rate(change.rate_before),
            "between>": _rate(change.rate_between),
            "now>": _rate(change.rate_after),
            "memory>": _then_now(*(size(each) if each else "" for each in facts.rss)),
            "threads>": _then_now(*("" if n is None else str(n) for n in facts.threads)),
            "files>": _then_now(*("" if n is None else str(n) for n in facts.files)),
            "busy>": "" if facts.busy is None else f"{facts.busy:.0%}",
        }
        rows.append(row)
    if not rows:
        screen.line("None that lived.", indent=2)
        return
    always = ("pid>", "label", "state")
    headings = [name for name in rows[0] if name in always or any(row[name] for row in rows)]
    screen.table(headings, [[row[name] for name in headings] for row in rows], indent=2)


def _pids(change: Change) -> str:
    pids = [str(each.pid) for each in (change.before, change.after) if each is not None]
    return " → ".join(dict.fromkeys(pids))


def _states(change: Change) -> str:
    then, now = (safe(each.state) if each else "" for each in (change.before, change.after))
    return _then_now(then or change.what, now or change.what)


def _then_now(then: str, now: str) -> str:
    if then == now or not now:
        return then
    return f"{then} → {now}" if then else now


def _rate(rate: float | None) -> str:
    if rate is None:
        return ""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _names(screen: Screen, found: Comparison, most: int) -> None:
    if not found.names:
        return
    screen.line()
    meanwhile = "ended since" if found.same_run else "ended in the later run"
    screen.line(("Spans that had ended before, and those that ", "strong"), (meanwhile, "strong"))
    rows: list[list[Part]] = []
    for each in found.names[:most]:
        then, now = each.before, each.after
        median: list[Part] = ["", ""]
        longest: list[Part] = ["", ""]
        if then.count:
            median[0], longest[0] = age(then.median_ns), age(then.most_ns)
        if now.count:
            median[1] = _marked(then.count, then.median_ns, now.median_ns)
            longest[1] = _marked(then.count, then.most_ns, now.most_ns)
        rows.append(
            [(safe(each.name), "name"), f"{then.count:,}", f"{now.count:,}", *median, *longest]
        )
    headings = ("name", "then>", "now>", "median then>", "now>", "longest then>", "now>")
    screen.table(headings, rows, indent=2)
    _more(screen, len(found.names) - most)


def _marked(count: int, then_ns: int, now_ns: int) -> Part:
    worse = count and now_ns > _WORSE * then_ns
    return age(now_ns), "warn" if worse else ""


def _losses(screen: Screen, found: Comparison) -> None:
    screen.line()
    lost = [change for change in found.changes if change.losses]
    if found.same_run and not lost:
        screen.line("Nothing was lost meanwhile.")
    for change in lost if found.same_run else ():
        told = some(f"{number:,} {safe(kind)}" for kind, number in sorted(change.losses.items()))
        usual = set(change.losses) == {"overwritten"}
        screen.line((f"Lost by {who(change.producer)}: {told}", "dim" if usual else "warn"))
    if found.suppressed:
        told = some(f"{number:,} {safe(kind)}" for kind, number in sorted(found.suppressed.items()))
        screen.line((f"Snapshots that limits forbade meanwhile: {told}", "warn"))


def _more(screen: Screen, number: int) -> None:
    if number > 0:
        screen.line(f"and {number:,} more: --all lists them", indent=2)
