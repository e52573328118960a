"""What causes a snapshot besides a death and a request, as a text says it, and its limits.

Used wherever a recording is configured, and by the collector. Pure: the clock is passed in. A
trigger is one line, words and then ``key=value`` options::

    slow_span request* 5s window=2s    a span of such a name open for longer than that
    stall 10s                          a producer inside of spans, and no event for so long
    stall request* 10s                 the same, inside of spans of such a name
    stall 10s heartbeat=loop           no instant or counter of that name, seen before, for so long
    counter queue.depth > 1000         a counter of such a name beyond a value
    signal USR1                        a signal to the collector
    exception, log, timeout, death     as a producer, a host or the kernel says

Names are patterns of `fnmatch`, quoted where they hold spaces. Options: `window`, how long
recording goes on before the snapshot (but for `timeout` and `death`); `interval`, the least time
between two snapshots of the trigger; `daily`, the most of them within any 24 hours. A death is
never dropped because of its interval: it waits for it, and those that come meanwhile are in the
same snapshot.
"""

from __future__ import annotations

import re
import shlex
import signal as signals
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from shmrec.errors import TriggerError
from shmrec.events import NAME_LIMIT
from shmrec.layout import TRIGGERS

__all__ = [
    "STACKS",
    "Limits",
    "Trigger",
    "called",
    "check_texts",
    "defaults",
    "parse",
    "parse_all",
    "shortened",
]

STACKS: Final = ("suspects", "all", "none")
"""Of whom a snapshot that was not asked for has stacks taken."""
SIGNALS: Final = ("USR1", "USR2", "HUP")
"""Those that may be a trigger: the others stop the collector, or mean something else."""

_SECOND: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _SECOND
_INTERVAL_NS: Final = 30 * _SECOND
_DAILY: Final = 50
_DEATH_INTERVAL_NS: Final = 5 * _SECOND
_DAILY_DEATHS: Final = 500
_DAILY_AT_MOST: Final = 100_000
_LONGEST: Final = 7 * 86_400.0
_LONGEST_WINDOW: Final = 60.0
_TEXT_LIMIT: Final = 64
_UNITS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|)\Z", re.ASCII)
_COUNTER: Final = re.compile(r"(?P<name>.*?\S)\s*(?P<sign>>=|<=|>|<)\s*(?P<value>\S+)\Z", re.S)
_EXAMPLES: Final = {
    "slow_span": "slow_span request* 5s window=2s",
    "stall": "stall 10s heartbeat=loop",
    "counter": "counter queue.depth > 1000",
    "exception": "exception interval=60s",
    "log": "log daily=20",
    "signal": "signal USR1",
    "timeout": "timeout interval=10s",
    "death": "death daily=1000",
}
_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
}


@dataclass(frozen=True)
class Trigger:
    """One cause of snapshots and its limits. Times in nanoseconds.

    `threshold` is an age or a silence, or a counter's value. `name` is what it matches: spans
    or counters by pattern, or the signal's name.
    """

    kind: str
    name: str = "*"
    threshold: float = 0
    comparison: str = ">"
    heartbeat: str = ""
    window_ns: int = 0
    interval_ns: int = _INTERVAL_NS
    daily: int = _DAILY

    def matches(self, name: str) -> bool:
        """Whether it is about spans or counters of that name."""
        return self.name == "*" or fnmatchcase(name[:NAME_LIMIT], self.name)

    def beyond(self, value: float) -> bool:
        """Whether a counter's value calls for a snapshot."""
        return _COMPARISONS[self.comparison](value, self.threshold)

    @property
    def signal(self) -> int:
        """The number of its signal."""
        return int(signals.Signals[f"SIG{self.name}"])


def shortened(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Somebody's text as a part of a reason: printable, on one line, cut."""
    shown = "".join(each if each.isprintable() else "?" for each in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def called(label: str, pid: int) -> str:
    """A process in a reason."""
    return f"{shortened(label)} pid {pid}" if label else f"pid {pid}"


def parse(text: str) -> Trigger:
    """The trigger that a text describes; `TriggerError` says what is wrong with it."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _wrong(text, "", f"its quotes do not match ({error})") from None
    if not words:
        raise _wrong(text, "", "it is empty")
    kind = words[0]
    if kind == "request":
        raise _wrong(text, "", "a request by a person is never limited")
    if kind not in _EXAMPLES:
        raise _wrong(text, "", f"there is no {shortened(kind)!r}, only {', '.join(_EXAMPLES)}")
    rest, options = words[1:], {}
    known = ["window", "interval", "daily", *(["heartbeat"] if kind == "stall" else [])]
    # A name may hold a "=" as well: an option is one only by its key.
    while rest and rest[-1].partition("=")[0] in known and "=" in rest[-1]:
        key, _, value = rest.pop().partition("=")
        if key in options:
            raise _wrong(text, kind, f"{key} is given twice")
        options[key] = value
    found = _limited(_named(Trigger(kind), rest, text), options, text)
    if found.heartbeat and found.name != "*":
        raise _wrong(text, kind, "it names spans or a heartbeat, not both")
    return found


def parse_all(texts: Iterable[str]) -> tuple[Trigger, ...]:
    """Several of them, of which only some may be of one kind."""
    if isinstance(texts, str):
        raise _wrong(texts, "", "triggers are a list of texts")
    found: list[Trigger] = []
    for text in texts:
        trigger = parse(text)
        if any(_same_cause(trigger, other) for other in found):
            raise _wrong(text, trigger.kind, f"{trigger.kind} is given twice")
        found.append(trigger)
    return tuple(found)


def check_texts(texts: Iterable[str], stacks: str) -> tuple[str, ...]:
    """The texts of triggers, to be passed on, once they and `stacks` are known to be right."""
    kept = texts if isinstance(texts, str) else tuple(texts)
    parse_all(kept)
    if stacks not in STACKS:
        raise ValueError(f"stacks must be one of {', '.join(STACKS)}, not {stacks!r}")
    return tuple(kept)


def _same_cause(one: Trigger, other: Trigger) -> bool:
    if one.kind in ("slow_span", "stall", "counter"):
        return one == other
    return one.kind == other.kind and one.name == other.name


def defaults(given: Iterable[Trigger], death_interval_ns: int) -> tuple[Trigger, ...]:
    """The triggers given, and those that there are without being given."""
    found = list(given)
    kinds = {trigger.kind for trigger in found}
    found += [Trigger(kind) for kind in ("exception", "log", "timeout") if kind not in kinds]
    if "signal" not in kinds:
        found.append(Trigger("signal", SIGNALS[0]))
    if "death" not in kinds:
        found.append(Trigger("death", interval_ns=death_interval_ns, daily=_DAILY_DEATHS))
    return tuple(found)


def _wrong(text: str, kind: str, what: str) -> TriggerError:
    examples = [_EXAMPLES[kind]] if kind else list(_EXAMPLES.values())[:3]
    shown = " or ".join(f"`{example}`" for example in examples)
    return TriggerError(f"trigger {shortened(text, 80)!r}: {what}; write for example {shown}")


def _named(trigger: Trigger, rest: list[str], text: str) -> Trigger:
    kind = trigger.kind
    if kind in ("slow_span", "stall"):
        if not 1 <= len(rest) <= 2:
            raise _wrong(
                text, kind, "it takes a pattern of names, which may be left out, and a time"
            )
        name = rest[0] if len(rest) == 2 else "*"
        age = _duration(text, kind, rest[-1], _LONGEST)
        if not age:
            raise _wrong(text, kind, "its time must be more than 0")
        return replace(trigger, name=name, threshold=age)
    if kind == "counter":
        matched = _COUNTER.match(" ".join(rest))
        if matched is None:
            raise _wrong(text, kind, "it takes a pattern of names, one of > >= < <=, and a number")
        try:
            value = float(matched["value"])
        except ValueError:
            value = float("nan")
        if value != value:
            raise _wrong(text, kind, f"{shortened(matched['value'])!r} is no number")
        return replace(trigger, name=matched["name"], comparison=matched["sign"], threshold=value)
    if kind == "signal":
        name = rest[0].upper().removeprefix("SIG") if len(rest) == 1 else ""
        if name not in SIGNALS:
            raise _wrong(text, kind, f"it takes one of {', '.join(SIGNALS)}")
        return replace(trigger, name=name)
    if rest:
        raise _wrong(text, kind, f"{shortened(rest[0])!r} means nothing here")
    if kind == "death":
        return replace(trigger, interval_ns=_DEATH_INTERVAL_NS, daily=_DAILY_DEATHS)
    return trigger


def _limited(trigger: Trigger, options: Mapping[str, str], text: str) -> Trigger:
    kind = trigger.kind
    heartbeat = options.get("heartbeat", "")
    if "heartbeat" in options and not heartbeat:
        raise _wrong(text, kind, "heartbeat takes the name of an instant or a counter")
    window = interval = None
    if "window" in options:
        if kind == "timeout":
            raise _wrong(text, kind, "it has no window: the process is about to be ended")
        if kind == "death":
            raise _wrong(text, kind, "it has no window: the process has ended")
        window = _duration(text, kind, options["window"], _LONGEST_WINDOW)
    if "interval" in options:
        interval = _duration(text, kind, options["interval"], _LONGEST)
    daily = options.get("daily")
    if daily is not None and not (
        daily.isascii() and daily.isdigit() and 1 <= int(daily[:9]) <= _DAILY_AT_MOST
    ):
        raise _wrong(text, kind, f"daily takes a number from 1 to {_DAILY_AT_MOST}")
    return replace(
        trigger,
        heartbeat=heartbeat,
        window_ns=trigger.window_ns if window is None else window,
        interval_ns=trigger.interval_ns if interval is None else interval,
        daily=trigger.daily if daily is None else int(daily[:9]),
    )


def _duration(text: str, kind: str, value: str, longest: float) -> int:
    """Nanoseconds of ``250ms``, ``5s``, ``5``, ``2m`` or ``1h``."""
    matched = _DURATION.match(value)
    seconds = float(matched[1]) * _UNITS[matched[2]] if matched else -1.0
    if not 0 <= seconds <= longest:
        raise _wrong(
            text, kind, f"{shortened(value)!r} is no time from 0 to {longest:g} s, as 250ms or 5s"
        )
    return round(seconds * _SECOND)


class Limits:
    """Which firings may become a snapshot, and how many did not, by kind of trigger.

    `suppressed` counts on from what it is given. What was taken is forgotten with the process.
    """

    def __init__(self, suppressed: Mapping[str, int] | None = None) -> None:
        self.suppressed = dict.fromkeys(TRIGGERS, 0) | dict(suppressed or {})
        self._taken: dict[Trigger, deque[int]] = {}
        self._last: dict[Trigger, int] = {}

    def refusal(self, trigger: Trigger, now: int) -> str:
        """Why there must be no snapshot now, "" if there may be; changes nothing."""
        taken = self._taken.get(trigger, deque())
        while taken and now - taken[0] >= _DAY_NS:
            taken.popleft()
        if len(taken) >= trigger.daily:
            return f"its limit of {trigger.daily} snapshots in 24 h is reached"
        since = now - self._last.get(trigger, now - trigger.interval_ns)
        if trigger.kind != "death" and since < trigger.interval_ns:
            return (
                f"its last one is {since / 1e9:.1f} s old, and its limit is one in "
                f"{trigger.interval_ns / 1e9:g} s"
            )
        return ""

    def took(self, trigger: Trigger, now: int) -> None:
        """Count a snapshot, taken or about to be."""
        self._taken.setdefault(trigger, deque(maxlen=trigger.daily)).append(now)
        self._last[trigger] = now

    def failed(self, trigger: Trigger) -> None:
        """The last one that was counted could not be taken: it is none of the day's, though the
        next one is not due any sooner."""
        taken = self._taken.get(trigger)
        if taken:
            taken.pop()

    def suppress(self, trigger: Trigger, count: int = 1) -> None:
        """Count firings that became no snapshot."""
        self.suppressed[trigger.kind] += count
