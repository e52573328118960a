"""The C extension, if it is there and can be trusted.

Runs in every process that records or reads. An install without a compiler has no extension,
and one that was built from other tables, for another version or by another project would
write what no reader of this version understands: it is refused by its ``LAYOUT_ID``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

from shmrec.layout import LAYOUT_ID

__all__ = ["EXTENSION", "REFUSAL"]


def _load() -> tuple[ModuleType | None, str]:
    try:
        # Not `from shmrec import`, which does not tell a module that is missing from one that
        # does not load.
        import shmrec._native as _native
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "shmrec._native":
            return None, "it was not built: install shmrec again where there is a C compiler"
        return None, f"it cannot be loaded: {error}"
    found = getattr(_native, "LAYOUT_ID", None)
    if found != LAYOUT_ID:
        shown = f"{found:#x}" if type(found) is int else "unknown"
        return None, (
            f"it was built from other tables (layout {shown}, not {LAYOUT_ID:#x}): build it again"
        )
    return _native, ""


_loaded = _load()

EXTENSION: Final = _loaded[0]
"""The module, or None."""
REFUSAL: Final = _loaded[1]
"""Why there is no extension, or ""."""
