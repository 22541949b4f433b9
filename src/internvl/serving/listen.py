"""An application on a port until the process is told to stop; then what runs may finish.

SIGTERM and Ctrl-C close the port at once; answers get `shutdown_seconds`, then they end with an error.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

GRACE = 2
"""Seconds in which answers that have ended with an error are sent; connections are cut after them."""


class _Announcing(uvicorn.Server):
    """Tells its port when it listens, and when the time for what still runs is over."""

    on_start: Callable[[int], None]
    on_late: Callable[[], None]
    shutdown_seconds: int

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self.on_start(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = asyncio.get_running_loop().call_later(self.shutdown_seconds, self.on_late)
        await super().shutdown(sockets=sockets)
        late.cancel()


def _heard(*_: object) -> None:
    """Nothing more to do."""


def listen(
    app: FastAPI,
    host: str,
    port: int,
    *,
    shutdown_seconds: int,
    log_level: str,
    on_start: Callable[[int], None],
) -> bool:
    """Serve until a signal; False if it could not start. `on_start` is told the port."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log_level,
        timeout_graceful_shutdown=shutdown_seconds + GRACE,
        server_header=False,
        lifespan="on",
    )
    server = _Announcing(config)
    server.on_start, server.shutdown_seconds = on_start, shutdown_seconds
    server.on_late = lambda: app.state.server.stop()
    # uvicorn sends the signals that ended it once more when it is done; by then they have had their effect.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _heard)
    server.run()
    return server.started
