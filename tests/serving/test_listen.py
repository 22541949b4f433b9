"""Connections on which no request begins are closed; all others stay."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from internvl.serving.listen import Punctual, listen
from internvl.serving.settings import Settings
from tests.serving.conftest import serving

SECONDS = 0.3
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """A server whose answer takes longer than a head may."""
    app = FastAPI()
    app.state.server = SimpleNamespace(settings=Settings(body_seconds=SECONDS))

    @app.get("/")
    async def answer() -> str:
        await asyncio.sleep(1.5 * SECONDS)
        return "done"

    with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


def read_answer(connection: socket.socket) -> bytes:
    """What there is of it, if the connection is closed."""
    answer = b""
    while not answer.endswith(b'"done"') and (piece := connection.recv(1000)):
        answer += piece
    return answer


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
def test_a_head_that_does_not_arrive_is_not_waited_for(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        start = time.monotonic()
        connection.sendall(sent)
        assert connection.recv(100) == b""
        assert time.monotonic() - start > 0.9 * SECONDS


def drip(connection: socket.socket) -> None:
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(SECONDS / 10)


@pytest.mark.parametrize("num_before", [0, 1])
def test_bytes_that_come_one_at_a_time_give_no_more_time(address: tuple[str, int], num_before: int) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(num_before):
            connection.sendall(HEAD + b"\r\n")
            read_answer(connection)
        with pytest.raises(ConnectionError):
            drip(connection)


def test_a_connection_stays_between_requests_and_while_it_is_answered(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(2):
            connection.sendall(HEAD)
            time.sleep(SECONDS / 10)
            connection.sendall(b"\r\n")
            assert read_answer(connection).endswith(b'"done"')
            time.sleep(1.2 * SECONDS)
        connection.sendall(2 * (HEAD + b"\r\n") + HEAD[:5])
        for _ in range(2):
            assert read_answer(connection).endswith(b'"done"')


def test_this_is_what_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server: found.append(server.config))
    listen(FastAPI(), "127.0.0.1", 0, shutdown_seconds=1, log_level="error", on_start=lambda _: None)
    assert [(config.http, config.ws) for config in found] == [(Punctual, "none")]
