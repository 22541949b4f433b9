"""An application on a port until the process is told to stop; then what runs may finish.

SIGTERM and Ctrl-C close the port at once; open connections get `shutdown_seconds`.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI


class _Announcing(uvicorn.Server):
    """Tells its port when it listens."""

    on_start: Callable[[int], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self.on_start(self.servers[0].sockets[0].getsockname()[1])


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
        timeout_graceful_shutdown=shutdown_seconds,
        server_header=False,
        lifespan="on",
    )
    server = _Announcing(config)
    server.on_start = on_start
    # uvicorn sends the signals that ended it once more when it is done; by then they have had their effect.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _heard)
    server.run()
    return server.started
