"""Fixtures for tests with real services."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmrec
from shmrec.segment import Segment
from tests.integrations.gunicorn_service import HOOKS, WSGI, Service, Start
from tests.recordings import unserved


@pytest.fixture
def made(recording_name: str) -> Iterator[Segment]:
    """A recording that nobody serves, to which this process is attached."""
    with unserved(recording_name) as opened:
        attached = shmrec.attach(opened.name, required=True, exceptions=False)
        yield opened
        attached.detach()


@pytest.fixture
def start(recording_name: str) -> Iterator[Start]:
    """Starts gunicorn services and ends all that is left of them with the test."""
    pytest.importorskip("gunicorn")
    with contextlib.ExitStack() as stack:

        def begin(
            *options: str,
            recording: str = recording_name,
            app: str = WSGI,
            config: str = HOOKS,
            environment: dict[str, str] | None = None,
        ) -> Service:
            if "gevent" in options:
                pytest.importorskip("gevent")
            # A unix socket's path has room for 107 bytes, which pytest's folders may use up.
            folder = Path(tempfile.mkdtemp(prefix="shmrec-"))
            stack.callback(shutil.rmtree, folder)
            # Workers of another user want to pass.
            folder.chmod(0o755)
            service = Service(
                folder, recording, *options, app=app, config=config, environment=environment
            )
            stack.callback(service.close)
            return service

        yield begin
