"""What an ASGI application under test answers when its server begins and ends.

Runs in gunicorn's workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["live"]


async def live(receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Agree to everything, until the server shuts down."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
