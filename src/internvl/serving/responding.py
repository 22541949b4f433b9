"""Responses from chat completions: whole, or as the protocol's events.

Knows the protocol's objects and the chat service; no routes.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from internvl.serving import protocol_responses as protocol
from internvl.serving.answering import Exchange
from internvl.serving.caller import Caller
from internvl.serving.chat_service import ChatService
from internvl.serving.protocol_chat import StreamOptions
from internvl.serving.protocol_items import Status
from internvl.serving.protocol_responses import ResponseRequest
from internvl.serving.response_items import Items


class Responding:
    """One response, from a request that was checked."""

    def __init__(self, service: ChatService, asked: ResponseRequest, exchange: Exchange) -> None:
        self.service, self.exchange = service, exchange
        self.items = Items(may_call=bool(exchange.chat.offered_tools))
        head = exchange.head
        self.begun = protocol.response_object(
            asked, f"resp_{secrets.token_hex(16)}", head.model, head.created
        )

    @classmethod
    async def begin(
        cls, service: ChatService, asked: ResponseRequest, name: str, caller: Caller
    ) -> Responding:
        """Read and check everything; nothing is computed. Raises InputError and ValidationError."""
        chat = asked.as_chat().model_copy(
            update={"stream": True, "stream_options": StreamOptions(include_usage=True)}
        )
        return cls(service, asked, await service.begin(chat, name, caller))

    async def whole(self) -> dict[str, Any]:
        """The response when it is finished."""
        last: Mapping[str, Any] = {}
        async with aclosing(self.events()) as events:
            async for event in events:
                last = event
        response: dict[str, Any] = last["response"]
        return response

    async def events(self) -> Any:
        """The protocol's events, numbered; the last one has the whole response."""
        number = 0
        async with aclosing(self._events()) as events:
            async for event in events:
                yield {**event, "sequence_number": number}
                number += 1

    async def _events(self) -> Any:
        begun, items = self.begun, self.items
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        for event in items.begin():
            yield event
        cut_by, used = None, None
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                used = chunk["usage"] or used
                for choice in chunk["choices"]:
                    if choice["finish_reason"] == "length":
                        cut_by = choice.get("stop_reason", "max_output_tokens")
                    for event in self._told(choice["delta"]):
                        yield event
        status: Status = "completed" if cut_by is None else "incomplete"
        for event in items.end(status):
            yield event
        assert used is not None, "the engine ended a request without its usage"
        response = protocol.finished(begun, items.done, cut_by, used)
        yield {"type": f"response.{status}", "response": response}

    def _told(self, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What one step of a chat completion adds."""
        if piece := delta.get("content"):
            yield from self.items.say(piece)
        for call in delta.get("tool_calls", ()):
            yield from self.items.call(call)

    def _chunks(self) -> Any:
        chunks: AsyncIterator[dict[str, Any]] = self.service.stream(self.exchange)
        return chunks
