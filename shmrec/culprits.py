"""Who is to blame, in an order with reasons, and who waits for the same thing.

Runs in whoever reads a snapshot, over its findings. An order is no proof: each reason says what
it rests on, and a producer without one is not on the list.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shmrec.findings import REQUEST, Finding
from shmrec.phrases import age, arguments, safe, some, span_named
from shmrec.survey import Durations
from shmrec.verdict import raised, raised_at

__all__ = ["RANKS", "Culprit", "Group", "groups", "rank"]

RANKS: Final = ("died", "suspect", "stalled", "silent", "raised", "outlier")
"""Why somebody is on the list, the strongest first."""

_SILENT: Final = 5_000_000_000
_SHORTLY: Final = 10_000_000_000
_OUTLIER: Final = 100_000_000
_WAITED: Final = 100_000_000
"""Whoever is inside of something for less does not wait: a busy service is always in requests."""
_SAMPLES: Final = 5
_TIMES: Final = 10
_OUTLIERS_SAID: Final = 3
_DEAD_NAMED: Final = 4
_GROUPS_LIMIT: Final = 32
_SHARED_ARGUMENTS: Final = 120
_NUMBERED: Final = re.compile(r"[\s\-_.:#/]*\d+\Z")


@dataclass
class Culprit:
    """A producer, by its place in the findings; `rank` is the strongest of RANKS that holds."""

    finding: int
    rank: str
    reasons: list[str] = field(default_factory=list)


@dataclass
class Group:
    """Threads inside spans of one name that have `shared` arguments in common.

    `members` are pairs: a place in the findings, a kernel thread id. `of` counts the producers
    with the labels of the members' that were there. `text` says it in words.
    """

    name: str
    shared: dict[str, object]
    members: list[tuple[int, int]]
    of: int
    text: str


def rank(
    findings: Sequence[Finding],
    suspects: Sequence[int],
    taken_ns: int,
    durations: Mapping[str, Durations],
) -> list[Culprit]:
    """The culprits, the first the most likely.

    `suspects` are producers' indexes that the snapshot's trigger names; `durations` of the
    completed spans in the snapshot, by name.
    """
    found = []
    for place, finding in enumerate(findings):
        reasons = _reasons(finding, suspects, taken_ns, durations)
        if reasons:
            first = min((kind for kind, _ in reasons), key=RANKS.index)
            found.append(Culprit(place, first, [text for _, text in reasons]))

    def order(culprit: Culprit) -> tuple[int, int, int, int]:
        finding = findings[culprit.finding]
        oldest = finding.oldest
        since = when = oldest.start_ns if oldest is not None else 1 << 64
        if culprit.rank == "died":
            when = finding.producer.ended_ns or 1 << 64
        elif culprit.rank == "suspect":
            when = suspects.index(finding.producer.index)
        elif culprit.rank == "raised":
            when = -finding.unhandled[-1].time_ns
        return RANKS.index(culprit.rank), when, since, culprit.finding

    return sorted(found, key=order)


def _reasons(
    finding: Finding, suspects: Sequence[int], taken_ns: int, durations: Mapping[str, Durations]
) -> list[tuple[str, str]]:
    said = []
    if finding.untold:
        before = taken_ns - finding.producer.ended_ns
        when = f" {age(max(0, before))} before the snapshot" if finding.producer.ended_ns else ""
        said.append(("died", f"it died{when}"))
    elif finding.ended:
        return []
    if finding.producer.index in suspects:
        said.append(("suspect", "the trigger names it"))
    oldest = finding.oldest
    if finding.stalled:
        said.append(("stalled", "it did not show that it had finished its last event"))
    if (
        not finding.ended
        and oldest is not None
        and finding.silence_ns is not None
        and finding.silence_ns >= _SILENT
    ):
        said.append(
            (
                "silent",
                f"no event for {age(finding.silence_ns)}, with `{safe(oldest.name)}` open for "
                f"{age(finding.age_ns(oldest))}",
            )
        )
    for event in finding.unhandled[-1:]:
        before = finding.reference_ns - event.time_ns
        if 0 <= before <= _SHORTLY:
            said.append(
                ("raised", f"unhandled {age(before)} before: {raised(event)}{raised_at(event)}")
            )
    said += [("outlier", text) for text in _outliers(finding, durations)]
    return said


def _outliers(finding: Finding, durations: Mapping[str, Durations]) -> list[str]:
    """Open spans that are out of all proportion to the completed ones of the same name.

    Of each name the oldest.
    """
    said: dict[str, str] = {}
    spans = [span for thread in finding.threads for span in thread.spans]
    for span in sorted(spans, key=lambda span: (span.start_ns, span.span)):
        if span.name in said:
            continue
        others = durations.get(span.name)
        open_ns = finding.age_ns(span)
        if open_ns < _OUTLIER or others is None or others.count < _SAMPLES:
            continue
        if open_ns > others.longest and open_ns > _TIMES * others.median:
            said[span.name] = (
                f"`{safe(span.name)}` open {age(open_ns)}; the other {others.count:,} in this "
                f"snapshot took {age(others.median)} at the median, {age(others.longest)} at most"
            )
        if len(said) == _OUTLIERS_SAID:
            break
    return list(said.values())


@dataclass
class _Member:
    finding: int
    thread: int
    args: dict[str, object]
    pairs: frozenset[str]


def groups(findings: Sequence[Finding]) -> list[Group]:
    """Who waits inside the same thing, the largest group first; a group has two members or more.

    Threads whose innermost spans have equal arguments come together; of the others, those that
    share some, but for requests, which have more in common than says anything.
    """
    by_name: dict[str, list[_Member]] = defaultdict(list)
    for place, finding in enumerate(findings):
        if finding.ended and not finding.untold:
            continue
        for thread in finding.threads:
            if thread.spans and finding.age_ns(thread.spans[0]) >= _WAITED:
                span = thread.spans[0]
                pairs = frozenset(arguments({key: value}) for key, value in span.args.items())
                by_name[span.name].append(_Member(place, thread.thread, span.args, pairs))
    found = []
    for name, members in by_name.items():
        for together in _together(members, wholly=name == REQUEST):
            group = _group(findings, name, together)
            places = {place for place, _ in group.members}
            # The threads of one process wait together only where all their arguments are the
            # same; what one that died was inside of is told with it.
            alone = len(places) == 1
            if not alone or (group.shared == together[0].args and not findings[min(places)].ended):
                found.append(group)
    found.sort(key=lambda group: (-len(group.members), group.members))
    return found[:_GROUPS_LIMIT]


def _together(members: list[_Member], *, wholly: bool) -> list[list[_Member]]:
    equal: dict[frozenset[str], list[_Member]] = defaultdict(list)
    for member in members:
        equal[member.pairs].append(member)
    found = [same for same in equal.values() if len(same) > 1]
    rest = [member for member in members if len(equal[member.pairs]) == 1]
    while not wholly and len(rest) > 1 and len(found) < _GROUPS_LIMIT:
        counts = Counter(pair for member in rest for pair in member.pairs)
        pair, number = min(counts.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
        if number < 2:
            found.append(rest)
            break
        found.append([member for member in rest if pair in member.pairs])
        rest = [member for member in rest if pair not in member.pairs]
    return found


def _group(findings: Sequence[Finding], name: str, members: list[_Member]) -> Group:
    common = frozenset.intersection(*(member.pairs for member in members))
    shared = {
        key: value for key, value in members[0].args.items() if arguments({key: value}) in common
    }
    places = sorted({member.finding for member in members})
    kinds = {_kind(findings[place]) for place in places}
    of = sum(_kind(finding) in kinds for finding in findings if not finding.ended or finding.untold)
    inside = span_named(name, shared, _SHARED_ARGUMENTS)
    kind = _plural(kinds.pop() if len(kinds) == 1 else "")
    if len(members) > len(places):
        number = f"{len(members)} threads in {len(places)} of {of} {kind}"
    else:
        number = f"{len(members)} of {of} {kind}"
    text = f"{number} inside `{inside}`"
    dead = [findings[place].producer.pid for place in places if findings[place].untold]
    if dead:
        text += f", among them pid {some(map(str, dead), _DEAD_NAMED)}, which died"
    ids = [(member.finding, member.thread) for member in members]
    return Group(name, shared, ids, of, text)


def _kind(finding: Finding) -> str:
    """The label without the number that tells one of its kind from another."""
    return _NUMBERED.sub("", finding.producer.label)


def _plural(kind: str) -> str:
    shown = safe(kind)
    if not shown:
        return "processes"
    return f"{shown}s" if shown[-1].isalpha() and shown[-1] != "s" else f"processes ({shown})"
