"""What processes are in the middle of: open spans with ages, and the stacks of their threads.

Runs in ``shmrec-dump info`` and ``stacks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shmrec.commands.screen import Part, Surface
from shmrec.commands.stack_lines import call, stack_lines
from shmrec.commands.timeline import thread_of
from shmrec.commands.wording import age, arguments, counted, safe, thread_said
from shmrec.decoder import OpenSpan
from shmrec.findings import REQUEST
from shmrec.forensics import Finding, Thread
from shmrec.stack_text import ThreadStack

__all__ = ["print_inside", "print_stack", "side_by_side", "span_parts", "thread_named"]

_ARGUMENTS: Final = 300
_SPANS: Final = 20
_CALLS: Final = 10
_STACKS: Final = 3
_IDLE: Final = 3
_TURNS: Final = "its thread takes turns at these, and was executing:"


def thread_named(thread: Thread) -> str:
    """A thread in words."""
    stack = thread.stack
    name = thread.name or (stack.name if stack is not None else "")
    said = thread_said(name, thread.thread, stack.ident if stack is not None else 0)
    return f"{said} (thread {thread.thread})" if name and thread.thread else said


def print_inside(screen: Surface, finding: Finding, *, stacks: bool = True) -> None:
    """The open spans of a producer, each thread's with its stack, if `stacks`."""
    spans = [span for thread in finding.threads for span in thread.spans]
    if not spans:
        screen.line("It was not inside of any span.", indent=2)
    else:
        threads = sum(bool(thread.spans) for thread in finding.threads)
        order = ", the newest first" if len(spans) > 1 else ""
        if threads > 1:
            order = f", in {threads} threads, the newest of each first"
        screen.line((f"It was in the middle of{order}:", "strong"), indent=2)
    wide = _widths(finding, spans)
    left, shown, idle = _SPANS, 0, []
    for thread in finding.threads:
        lines = thread.spans[:left]
        left -= len(lines)
        for span in lines:
            screen.line(*span_parts(span, finding.reference_ns, *wide), indent=4)
        if thread.stack is None or not stacks:
            continue
        struck = thread is finding.struck
        if struck or (lines and shown < _STACKS):
            # Those that the spans are of come besides the one that a signal hit.
            shown += not struck
            if not lines:
                screen.line(thread_named(thread), indent=4)
            turns = side_by_side(lines)
            if struck:
                which = ", which takes turns at these" if turns else ""
                screen.line((f"{safe(finding.fatal)} in this thread{which}:", "bad"), indent=6)
            elif turns:
                screen.line((_TURNS, "warn"), indent=6)
            print_stack(screen, thread, indent=6, most=_CALLS)
        elif lines:
            screen.line((_at(thread.stack), "dim"), indent=6)
        else:
            idle.append(thread)
    if len(spans) > _SPANS:
        screen.line(f"and {len(spans) - _SPANS} more", indent=4)
    _idle(screen, idle)


def side_by_side(spans: Sequence[OpenSpan]) -> bool:
    """Whether the spans of a thread are of greenlets or tasks that take turns in it."""
    names = [span.name for span in spans]
    return names.count(REQUEST) > 1


def span_parts(
    span: OpenSpan, reference_ns: int, name: int = 0, length: int = 0, *, thread: bool = True
) -> list[Part]:
    """An open span; its name and age so wide; with its `thread`."""
    return [
        (f"{safe(span.name):<{name}}", "name"),
        "  for ",
        (f"{age(max(0, reference_ns - span.start_ns)):<{length}}", "bad"),
        f"  {arguments(span.args, _ARGUMENTS)}" if span.args else "",
        (f"  in {thread_of(span)}" if thread else "", "dim"),
    ]


def print_stack(screen: Surface, thread: Thread, *, indent: int, most: int = 0) -> None:
    """The stack of a thread that has one."""
    assert thread.stack is not None
    for parts in stack_lines(thread.stack, most):
        screen.line(*parts, indent=indent)


def _widths(finding: Finding, spans: Sequence[OpenSpan]) -> tuple[int, int]:
    shown = spans[:_SPANS]
    return (
        max((len(safe(span.name)) for span in shown), default=0),
        max((len(age(finding.age_ns(span))) for span in shown), default=0),
    )


def _idle(screen: Surface, threads: Sequence[Thread]) -> None:
    """The other threads that have a stack, in a line each."""
    for thread in threads[:_IDLE]:
        assert thread.stack is not None
        screen.line((f"{thread_named(thread)}: {_at(thread.stack)}", "dim"), indent=4)
    if len(threads) > _IDLE:
        screen.line((f"and {counted(len(threads) - _IDLE, 'more thread')}", "dim"), indent=4)


def _at(stack: ThreadStack) -> str:
    """The call that tells most."""
    frame = stack.telling()
    return f"in {call(frame)}" if frame else "no call"
