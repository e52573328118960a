"""The JSON of what a snapshot means, and of stacks: part of the contract of `jsonform`.

Runs in the command-line tools. Keys may be added, never taken away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shmrec.findings import stack_missing
from shmrec.forensics import Analysis, Finding, Thread, Trend, Verdict
from shmrec.manifest import FACTS, Producer, Stack
from shmrec.stack_text import Frame, ThreadStack, parse

__all__ = ["analysis_object", "finding_object", "frame_objects", "stack_objects"]


def analysis_object(analysis: Analysis) -> dict[str, Any]:
    """Of the whole snapshot. Producers are named by their place in `producers`, and by pid."""
    findings = analysis.findings
    return {
        "culprits": [
            {
                "producer": each.finding,
                "pid": findings[each.finding].producer.pid,
                "label": findings[each.finding].producer.label,
                "rank": each.rank,
                "reasons": each.reasons,
            }
            for each in analysis.culprits
        ],
        "groups": [
            {
                "name": each.name,
                "args": each.shared,
                "of": each.of,
                "text": each.text,
                "members": [
                    {"producer": place, "pid": findings[place].producer.pid, "thread": thread}
                    for place, thread in each.members
                ],
            }
            for each in analysis.groups
        ],
        "durations": {
            name: {"count": each.count, "median_ns": each.median, "longest_ns": each.longest}
            for name, each in analysis.durations.items()
            if each.count
        },
        "unknowns": analysis.unknowns,
    }


def finding_object(finding: Finding) -> dict[str, Any]:
    """What is added to a producer's object."""
    producer = finding.producer
    return {
        "verdict": _verdict(finding.verdict),
        "silence_ns": finding.silence_ns,
        "history_ns": finding.history_ns,
        "rate_before": finding.rate_before,
        "rate_last": finding.rate_last,
        "waiting": finding.waiting,
        "trend": _trend(finding.trend),
        "facts": [dict(zip(FACTS, row, strict=True)) for row in producer.facts],
        "peak_rss": producer.peak_rss,
        "memory": producer.memory,
        "host": producer.host,
        "doing": producer.doing,
        "stack_flags": producer.stack_flags,
        "stack_missing": stack_missing(producer),
        "requests": [span.span for span in finding.requests],
        "threads": [_thread(each) for each in finding.threads],
        "stacks": stack_objects(producer),
        "spans_missing": producer.spans_missing,
        "unknowns": finding.unknowns,
    }


def stack_objects(producer: Producer) -> list[dict[str, Any]]:
    """All dumps of a producer."""
    return [_stack(each) for each in producer.stacks]


def _stack(stack: Stack) -> dict[str, Any]:
    dumps = parse(stack.text)
    return {
        "kind": stack.kind,
        "taken_ns": stack.taken_ns,
        "fatal": next((dump.fatal for dump in reversed(dumps) if dump.fatal), ""),
        "cut": stack.cut or any(dump.cut for dump in dumps),
        "note": stack.note,
        "text": stack.text,
        "dumps": [
            {
                "fatal": dump.fatal,
                "cut": dump.cut,
                "not_understood": dump.odd_count,
                "threads": [
                    {"thread": stack.idents.get(each.ident, 0), **_calls(each)}
                    for each in dump.threads
                ],
            }
            for dump in dumps
        ],
    }


def _thread(thread: Thread) -> dict[str, Any]:
    return {
        "thread": thread.thread,
        "thread_name": thread.name,
        "spans": [span.span for span in thread.spans],
        "stack": _calls(thread.stack) if thread.stack is not None else None,
    }


def _calls(stack: ThreadStack) -> dict[str, Any]:
    return {
        "ident": stack.ident,
        "name": stack.name,
        "current": stack.current,
        "cut": stack.cut,
        "garbage_collecting": stack.garbage_collecting,
        "frames": frame_objects(stack.frames),
    }


def frame_objects(frames: Iterable[Frame]) -> list[dict[str, Any]]:
    """Of a stack, newest first."""
    return [
        {
            "file": frame.file,
            "line": frame.line,
            "function": frame.function,
            "library": frame.library,
        }
        for frame in frames
    ]


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    return vars(verdict) if verdict is not None else None


def _trend(trend: Trend | None) -> dict[str, Any] | None:
    return {**vars(trend), "growth": trend.growth} if trend is not None else None
