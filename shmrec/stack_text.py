"""What `faulthandler` writes, read back: the threads of a process and what each was executing.

Runs in whoever reads a snapshot. The text is hostile: it may be cut anywhere, hold several
dumps one after another, or be no dump at all. Whatever it is, reading it never raises, looks at
each character a bounded number of times, and keeps a bounded number of things; what could not
be understood is kept by the line, the first few of them, and counted.

Source of the format: CPython's Python/traceback.c and Modules/faulthandler.c, 3.11 to 3.14. Text
is escaped as ``\\xhh``, ``\\uhhhh``, ``\\Uhhhhhhhh``; a backslash and a quote are written as they
are, so that a file's name may look like the end of it. The last place that can be its end is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

__all__ = ["Dump", "Frame", "ThreadStack", "parse"]

_TEXT_LIMIT: Final = 1 << 20
_DUMPS_LIMIT: Final = 16
_THREADS_LIMIT: Final = 512
_FRAMES_LIMIT: Final = 1024
_LINE_LIMIT: Final = 4096
_ODD_LIMIT: Final = 20
_ODD_LENGTH: Final = 200

_FATAL: Final = "Fatal Python error: "
_TIMEOUT: Final = "Timeout ("
_FILE: Final = "  File "
_UNKNOWN: Final = "???"
_RECENT: Final = "(most recent call first):"
_THREAD: Final = re.compile(
    r"(?:(?P<current>Current )thread|Thread) 0x(?P<ident>[0-9a-fA-F]{1,16})"
    r"(?: \[(?P<name>.*)\])? \(most recent call first\):\Z"
)
_HEADS: Final = ("Thread 0x", "Current thread 0x", "Stack ", "Current thread's C stack")
_WHOLE_CUTS: Final = ("...", "  ...", "  <truncated rest of calls>")
_NO_FRAME: Final = ("  <no Python frame>", "  <tstate is freed>", "  <freed interpreter>")
_PASSED_OVER: Final = (
    "Python runtime state: ",
    "Extension modules: ",
    "<Cannot show all threads while the GIL is disabled>",
    "  <cannot get C stack on this system>",
    "  <timed out>",
)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")

_INSTALLED: Final = re.compile(
    r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib(?:64)?[/\\]python\d(?:\.\d+t?)?[/\\]"
    r"|[/\\]python\d+\.zip(?:[/\\]|\Z)|\A<frozen [^>]*>\Z"
    # What starts programs.
    r"|[/\\]bin[/\\][^/\\.]+\Z"
    # This package, where it is run from a checkout.
    r"|[/\\]shmrec[/\\](?:integrations[/\\]\w+|recorder|writer|batch|_engine|__init__)\.py\Z"
)
_PACKAGES: Final = re.compile(
    r".*[/\\](?:(?:site|dist)-packages|lib(?:64)?[/\\]python\d(?:\.\d+t?)?|python\d+\.zip|bin)[/\\]"
)


@dataclass(frozen=True)
class Frame:
    """A call. `line` is None where it was not known, and so are names that read ``???``."""

    file: str
    line: int | None
    function: str

    @property
    def library(self) -> bool:
        """Whether it is installed, standard or frozen code, and not the application's own."""
        return _is_library(self.file)

    @property
    def place(self) -> str:
        """File and line; a library's file from where its packages lie."""
        file = _PACKAGES.sub("", self.file) if self.library else self.file
        return f"{file}:{self.line if self.line is not None else '?'}"


@lru_cache(maxsize=4096)
def _is_library(file: str) -> bool:
    return _INSTALLED.search(file) is not None


@dataclass
class ThreadStack:
    """A thread's calls, the newest first. `ident` is what Python's `threading` calls it by.

    `current` marks the thread that the dump was made in: at a fatal signal, the one that it hit.
    `cut` says that there were more calls than were written.
    """

    ident: int
    current: bool = False
    name: str = ""
    frames: list[Frame] = field(default_factory=list)
    cut: bool = False
    garbage_collecting: bool = False

    def innermost(self) -> Frame | None:
        """The newest call of the application; None if all are the libraries'."""
        return next((frame for frame in self.frames if not frame.library), None)

    def telling(self) -> Frame | None:
        """The call that tells most of it: the application's newest, or else the newest."""
        return self.innermost() or next(iter(self.frames), None)


@dataclass
class Dump:
    """One dump. `fatal` is the error's name ("Segmentation fault"), or "".

    `cut` says that there were more threads, or that the text ended within a line; `odd` are
    lines that could not be understood, `odd_count` how many there were.
    """

    fatal: str = ""
    threads: list[ThreadStack] = field(default_factory=list)
    cut: bool = False
    odd: list[str] = field(default_factory=list)
    odd_count: int = 0

    @property
    def current(self) -> ThreadStack | None:
        """The thread that the dump was made in, if the text says which."""
        return next((thread for thread in self.threads if thread.current), None)


def parse(text: str) -> list[Dump]:
    """The dumps in the text, in their order; [] if there is nothing but blanks."""
    reader = _Reader()
    cut = len(text) > _TEXT_LIMIT
    text = text[:_TEXT_LIMIT].replace("\0", "\n")
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        if end < 0:
            end = len(text)
            # faulthandler ends every line; one without an end was cut within.
            cut = True
        reader.line(text[start : min(end, start + _LINE_LIMIT)])
        start = end + 1
    if cut and reader.dumps:
        reader.dumps[-1].cut = True
    return reader.dumps


class _Reader:
    """Reads line by line; `dumps` are those found so far."""

    def __init__(self) -> None:
        self.dumps: list[Dump] = []
        self._thread: ThreadStack | None = None
        self._idents: set[int] = set()
        self._in_c = False

    def line(self, line: str) -> None:
        line = line.rstrip("\r")
        if not line or line.isspace():
            return
        if line.startswith(_FILE):
            self._call(line)
        elif line.startswith(_FATAL):
            self._open().fatal = _text(line[len(_FATAL) :])
        elif line.startswith(_TIMEOUT):
            self._open()
        elif line.startswith(_HEADS):
            self._head(line)
        elif line in _WHOLE_CUTS:
            self._dump().cut = True
            if self._thread is not None and line != "...":
                self._thread.cut = True
        elif line == "  Garbage-collecting" and self._thread is not None:
            self._thread.garbage_collecting = True
        elif not (
            line.startswith((*_PASSED_OVER, *_NO_FRAME)) or (self._in_c and line.startswith("  "))
        ):
            self._odd(line)

    def _dump(self) -> Dump:
        return self.dumps[-1] if self.dumps else self._open()

    def _open(self) -> Dump:
        if len(self.dumps) < _DUMPS_LIMIT:
            self.dumps.append(Dump())
        else:
            self.dumps[-1].cut = True
        self._thread, self._in_c = None, False
        self._idents.clear()
        return self.dumps[-1]

    def _head(self, line: str) -> None:
        self._in_c = line.startswith("Current thread's C stack")
        if self._in_c:
            self._thread = None
            return
        match = _THREAD.match(line)
        if match is None:
            self._thread = None
            if line == f"Stack {_RECENT}":
                # A thread's alone, without its ident.
                if self._dump().threads:
                    self._open()
                self._begin(ThreadStack(0, current=True))
            else:
                self._odd(line)
            return
        ident = int(match["ident"], 16)
        dump = self._dump()
        if ident in self._idents or (match["current"] and dump.current is not None):
            # A thread comes once in a dump: this is the next one's.
            self._open()
        self._begin(ThreadStack(ident, bool(match["current"]), _text(match["name"] or "")))

    def _begin(self, thread: ThreadStack) -> None:
        dump = self._dump()
        if len(dump.threads) >= _THREADS_LIMIT:
            dump.cut = True
            self._thread = None
            return
        self._idents.add(thread.ident)
        dump.threads.append(thread)
        self._thread = thread

    def _call(self, line: str) -> None:
        frame = _frame(line)
        if frame is None:
            self._odd(line)
        elif self._thread is None:
            # Its head was lost.
            if not self._dump().threads:
                self._begin(ThreadStack(0))
                self._call(line)
            else:
                self._odd(line)
        elif len(self._thread.frames) < _FRAMES_LIMIT:
            self._thread.frames.append(frame)
        else:
            self._thread.cut = True

    def _odd(self, line: str) -> None:
        dump = self._dump()
        dump.odd_count += 1
        if len(dump.odd) < _ODD_LIMIT:
            dump.odd.append(line[:_ODD_LENGTH])


def _frame(line: str) -> Frame | None:
    rest = line[len(_FILE) :]
    if rest.startswith('"'):
        end = rest.rfind('", line ')
        if end < 1:
            return None
        file, rest = _text(rest[1:end]), rest[end + len('", line ') :]
    elif rest.startswith(f"{_UNKNOWN}, line "):
        file, rest = _UNKNOWN, rest[len(f"{_UNKNOWN}, line ") :]
    else:
        return None
    number, between, function = rest.partition(" in ")
    if not between or not function:
        return None
    if number == _UNKNOWN:
        return Frame(file, None, _text(function))
    # Ten digits are more than any file has lines, and int() is slow for very long ones.
    if not (number.isascii() and number.isdigit() and len(number) <= 10):
        return None
    return Frame(file, int(number), _text(function))


def _text(escaped: str) -> str:
    return _ESCAPE.sub(_unescaped, escaped) if "\\" in escaped else escaped


def _unescaped(match: re.Match[str]) -> str:
    number = int(match[1] or match[2] or match[3], 16)
    return chr(number) if number <= 0x10FFFF else match[0]
