"""An application on a port until the process is told to stop; then what runs may finish.

SIGTERM and Ctrl-C close the port at once; answers get `shutdown_seconds`, then they end with an error.
Connections on which no request begins are closed.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

GRACE = 2
"""Seconds in which answers that have ended with an error are sent; connections are cut after them."""


class Punctual(H11Protocol):
    """A connection that is closed if the head of a request is not there within the server's `body_seconds`.

    They count from the beginning of the connection, and later from the first byte after an answer: until
    that one comes it is uvicorn that closes idle connections. Bodies have the time of `guard`.
    """

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._stop_expecting()
        elif self._closing is None and not self.transport.is_closing():
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def _expect(self) -> None:
        app = self.config.app
        assert isinstance(app, FastAPI)
        # What was sent and is not yet read is given up too: a close would wait for it.
        seconds = app.state.server.settings.body_seconds
        self._closing = self.loop.call_later(seconds, self.transport.abort)

    def _stop_expecting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None


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
        http=Punctual,
        ws="none",
    )
    server = _Announcing(config)
    server.on_start, server.shutdown_seconds = on_start, shutdown_seconds
    server.on_late = lambda: app.state.server.stop()
    # uvicorn sends the signals that ended it once more when it is done; by then they have had their effect.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _heard)
    server.run()
    return server.started
