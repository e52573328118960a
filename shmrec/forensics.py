"""What a snapshot means: why producers ended, what they were in the middle of, who is to blame.

Runs in whoever reads a snapshot; goes through its events once, opens nothing else, and prints
nothing. The same snapshot always gives the same analysis.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shmrec.culprits import Culprit, Group, groups, rank
from shmrec.findings import Finding, Thread, Trend, Verdict, find
from shmrec.snapshot_file import Snapshot
from shmrec.survey import Durations, Seen, survey
from shmrec.verdict import judge

__all__ = ["Analysis", "Culprit", "Finding", "Group", "Thread", "Trend", "Verdict", "analyse"]


@dataclass
class Analysis:
    """Of a whole snapshot.

    `findings` are of the producers, in their order. `culprits` and `groups` name them by their
    places in it. `durations` are those of completed spans whose names are open somewhere.
    `unknowns` are sentences: what cannot be known of the whole. `damage` says of which batches
    not all events could be read.
    """

    findings: list[Finding]
    culprits: list[Culprit] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    durations: dict[str, Durations] = field(default_factory=dict)
    unknowns: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    @property
    def died(self) -> list[Finding]:
        """Those whose death this snapshot is the first to tell, in the order of the culprits."""
        return [
            self.findings[each.finding]
            for each in self.culprits
            if self.findings[each.finding].untold
        ]


def analyse(snapshot: Snapshot) -> Analysis:
    """Work it all out. Raises `DamagedFileError` if the file changes meanwhile."""
    names = {span.name for each in snapshot.producers for span in each.open_spans}
    seen = survey(snapshot, names)
    findings = []
    for producer in snapshot.producers:
        finding = find(snapshot, producer, seen.seen.get(producer.index, Seen()))
        finding.verdict = judge(finding)
        findings.append(finding)
    header = snapshot.header
    suspects = [index for index in header.suspects if type(index) is int]
    return Analysis(
        findings,
        rank(findings, suspects, header.taken_mono_ns, seen.durations),
        groups(findings),
        seen.durations,
        _unknowns(snapshot, seen.damage),
        seen.damage,
    )


def _unknowns(snapshot: Snapshot, damage: list[str]) -> list[str]:
    said = []
    if snapshot.damage or damage:
        said.append("the file is damaged: producers or events may be missing")
    if not snapshot.header.flushes and snapshot.batches:
        said.append("nothing was flushed: the newest events of some may be missing")
    return said
