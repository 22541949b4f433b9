"""Responses from chat completions: whole, or as the protocol's events.

Knows the protocol's objects and the chat service; no routes.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from internvl.serving import protocol_responses as protocol
from internvl.serving.answering import Exchange
from internvl.serving.caller import Caller
from internvl.serving.chat_service import ChatService
from internvl.serving.protocol_chat import StreamOptions
from internvl.serving.protocol_responses import ResponseRequest


class Responding:
    """One response, from a request that was checked."""

    def __init__(self, service: ChatService, asked: ResponseRequest, exchange: Exchange) -> None:
        self.service, self.exchange = service, exchange
        self.item_id = f"msg_{secrets.token_hex(16)}"
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
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        begun, empty = self.begun, protocol.item(self.item_id, None, "in_progress")
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
        yield {"type": "response.content_part.added", **place, "part": protocol.text_part("")}
        text, cut_by, used = "", None, None
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                used = chunk["usage"] or used
                for choice in chunk["choices"]:
                    if choice["finish_reason"] == "length":
                        cut_by = choice.get("stop_reason", "max_output_tokens")
                    if piece := choice["delta"].get("content"):
                        text += piece
                        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
        status = "completed" if cut_by is None else "incomplete"
        message = protocol.item(self.item_id, text, status)
        assert used is not None, "the engine ended a request without its usage"
        yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": protocol.text_part(text)}
        yield {"type": "response.output_item.done", "output_index": 0, "item": message}
        response = protocol.finished(begun, message, cut_by, used)
        yield {"type": f"response.{status}", "response": response}

    def _chunks(self) -> Any:
        chunks: AsyncIterator[dict[str, Any]] = self.service.stream(self.exchange)
        return chunks
