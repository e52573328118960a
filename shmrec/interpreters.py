"""Whether this is the process's main interpreter: nobody is recorded from another one.

Runs in producers. Several interpreters of one process would each believe to be the process: one
that attaches would leave the ring of the other, and signals, exit functions and faulthandler serve
only the main one.
"""

from __future__ import annotations

import _thread
from typing import Any, Final

__all__ = ["REFUSAL", "in_main"]

REFUSAL: Final = (
    "this is a sub-interpreter, and only a process's main interpreter is recorded: run the "
    "application there (mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
)


def in_main() -> bool:
    """Whether this is the main interpreter, as far as that can be told."""
    # Since Python 3.12.
    known: Any = getattr(_thread, "_is_main_interpreter", None)
    if known is not None:
        return bool(known())
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found, unused-ignore]

        return bool(interpreters.get_current() == interpreters.get_main())
    except Exception:
        return True
