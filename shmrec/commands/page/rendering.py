"""The page: template and assets put together, with a policy that admits these scripts only.

Runs in ``shmrec-dump report``. The template engine escapes whatever it is given; what goes in
unescaped are the package's own style and scripts, and base64. Each script is an element of its
own, and uses what those before it define.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Final

from shmrec._version import __version__
from shmrec.commands.page.drawing import draw
from shmrec.commands.page.story import tell
from shmrec.commands.wording import age, clock, safe
from shmrec.exporting import Source, package

__all__ = ["LIBRARY_VERSION", "render"]

LIBRARY_VERSION: Final = "6.1.0"
_SCRIPTS: Final = (
    "echarts.js",
    "words.js",
    "recording.js",
    "ink.js",
    "shapes.js",
    "timeline.js",
    "moving.js",
    "curves.js",
    "durations.js",
    "page.js",
)
"""In their order; the last one begins."""
_ENDS_SCRIPT: Final = "</script"


def render(source: Source) -> str:
    """The report of a snapshot as one HTML text.

    Raises `MissingPackageError` without the template engine, `DamagedFileError` if the file
    changes meanwhile.
    """
    jinja2 = package("jinja2", "report")
    trusted = package("markupsafe", "report").Markup
    drawing = draw(source.timeline)
    css = _asset("page.css")
    scripts = [_asset(name) for name in _SCRIPTS]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html").render(
        story=tell(source.snapshot, source.analysis),
        drawing=drawing,
        css=trusted(css),
        scripts=[trusted(text) for text in scripts],
        style_sources=trusted(_source(css)),
        script_sources=trusted(" ".join(map(_source, scripts))),
        age=age,
        clock=lambda time_ns: clock(source.timeline.wall_ns(time_ns)),
        version=__version__,
        echarts=LIBRARY_VERSION,
        file=safe(source.snapshot.path),
    )
    assert isinstance(page, str)
    return page


def _asset(name: str) -> str:
    text = resources.files(__package__).joinpath(name).read_text("utf-8")
    assert _ENDS_SCRIPT not in text.lower(), name
    return text


def _source(text: str) -> str:
    """What a content security policy calls a script or style with this text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
