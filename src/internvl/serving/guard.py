"""What every request passes first: keys, a body that is complete, in time and not too large, and a client
that reads its answer.

Plain ASGI, so that nothing of the body is parsed before. Knows no routes beyond those open to all.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeAlias

from internvl.errors import RequestError
from internvl.serving.refusals import refuse
from internvl.serving.settings import Settings

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health"})
"""Load balancers have no key."""


class ClientGoneError(Exception):
    """The client left before its request was complete, or does not read its answer."""


class Guard:
    """Wraps an application; answers itself what does not get in."""

    def __init__(self, inner: Application, settings: Settings) -> None:
        self.inner, self.settings = inner, settings
        self.num_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        body = bytearray()
        try:
            self._check_key(scope)
            await self._fill(body, scope, receive)
            await self.inner(scope, _replay(bytes(body), receive), self._in_time(send))
        except RequestError as reason:
            await refuse(reason)(scope, receive, send)
        except ClientGoneError:
            return
        finally:
            self.num_bytes -= len(body)

    def _check_key(self, scope: Message) -> None:
        is_open = scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS"
        if is_open or not self.settings.api_keys:
            return
        given = _header(scope["headers"], b"authorization")
        kind, _, key = given.partition(b" ")
        # All are compared, each in constant time: how long it takes says nothing.
        matches = [hmac.compare_digest(key.strip(), known.encode()) for known in self.settings.api_keys]
        if kind.lower() != b"bearer" or not any(matches):
            raise RequestError(
                "this server needs a key: send the header Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
            )
        # Whose requests these are is known by the place of the key; nothing behind here sees the key itself.
        scope.setdefault("state", {})["client"] = f"key {matches.index(True)}"

    async def _fill(self, body: bytearray, scope: Message, receive: Receive) -> None:
        announced = _header(scope["headers"], b"content-length")
        if announced.isdigit() and int(announced) > self.settings.max_body_bytes:
            raise _too_large(self.settings.max_body_bytes)
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while self._take(body, await receive()):
                    continue
        except TimeoutError as reason:
            raise RequestError(
                f"the request did not arrive within {self.settings.body_seconds:g} s", status=408
            ) from reason

    def _in_time(self, send: Send) -> Send:
        """Raises ClientGoneError where nobody takes what is sent; the connection is closed then."""

        async def sending(message: Message) -> None:
            try:
                async with asyncio.timeout(self.settings.send_seconds):
                    await send(message)
            except TimeoutError as reason:
                raise ClientGoneError from reason

        return sending

    def _take(self, body: bytearray, message: Message) -> bool:
        """Add a piece; whether there is more. All bodies inside share the memory."""
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece = message.get("body", b"")
        body += piece
        self.num_bytes += len(piece)
        if len(body) > self.settings.max_body_bytes:
            raise _too_large(self.settings.max_body_bytes)
        if self.num_bytes > self.settings.max_bytes_inside:
            raise RequestError(
                f"all requests inside have {self.num_bytes} bytes, the limit is "
                f"{self.settings.max_bytes_inside}; try again later",
                status=429,
                code="bodies_full",
            )
        return bool(message.get("more_body"))


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then what the connection says."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key.lower() == name), b"")


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"the request has more than {limit} bytes; upload large files to /v1/files, or use smaller pictures",
        status=413,
        code="body_too_large",
    )
