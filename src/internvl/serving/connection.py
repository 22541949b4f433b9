"""Answers over a connection that may be gone at any moment; whoever is gone costs nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from internvl.errors import EngineError, InternVLError
from internvl.serving.json_text import json_text
from internvl.serving.refusals import as_object

Result = TypeVar("Result")


class ClientGoneError(EngineError):
    """The client closed the connection; nobody reads this."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; it is cancelled when the client goes. Raises ClientGoneError then."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("the client closed the connection")
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


class Events(StreamingResponse):
    """Server-sent events: a JSON document each, then [DONE]. `on_end` is called however it ends."""

    end: str | None = "data: [DONE]\n\n"

    def __init__(self, documents: Any, on_end: Callable[[], None]) -> None:
        """`documents` is an asynchronous generator of mappings; it is closed at the end."""
        self.lines = self._as_lines(documents)
        self.on_end = on_end
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self.lines, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.lines.aclose()
            self.on_end()

    async def _as_lines(self, documents: Any) -> AsyncGenerator[str, None]:
        """An error that comes when the stream has begun is its last event."""
        try:
            async for document in documents:
                yield self.line(document)
            if self.end is not None:
                yield self.end
        except InternVLError as reason:
            yield self.line(self.failure(reason))
        finally:
            await documents.aclose()

    def line(self, document: Mapping[str, Any]) -> str:
        return f"data: {json_text(document)}\n\n"

    def failure(self, error: InternVLError) -> dict[str, Any]:
        return as_object(error)


class NamedEvents(Events):
    """Events with the name of their type, as responses have them; the last one says that it is the last."""

    end = None

    def line(self, document: Mapping[str, Any]) -> str:
        return f"event: {document['type']}\n{super().line(document)}"

    def failure(self, error: InternVLError) -> dict[str, Any]:
        return {**as_object(error)["error"], "type": "error"}
