"""Chat completions of one model, from a parsed request to its answer.

Knows the protocol's objects and the engine; no routes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from internvl.api.chat import ChatModel
from internvl.serving import answering
from internvl.serving.backend import Backend
from internvl.serving.caller import Caller
from internvl.serving.metrics import Metrics
from internvl.serving.prepare import Preparer
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_replies import Head
from internvl.serving.threads import in_thread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChatService:
    """A chat model with what computes its answers. `adapters` are names of models that are adapters of it."""

    model: ChatModel
    backend: Backend
    preparer: Preparer
    metrics: Metrics
    adapters: frozenset[str]

    def adapter(self, name: str) -> str | None:
        """The adapter that answers under this name of a model."""
        return name if name in self.adapters else None

    async def begin(self, chat: ChatRequest, name: str, caller: Caller) -> answering.Exchange:
        """Read and check everything about a request; nothing is computed. Raises InputError, CapacityError
        for what the engine can never hold, and DeadlineError."""
        arrived = time.monotonic()
        key = f"chatcmpl-{secrets.token_hex(16)}"
        async with caller.in_time():
            prepared = await self.preparer.chat(chat, key, caller, self.adapter(name))
            await in_thread(self.backend.plan, prepared.request)
        return answering.Exchange(
            chat=chat,
            prepared=prepared,
            head=Head(id=key, model=name, created=int(time.time())),
            tokenizer=self.model.processor.tokenizer,
            arrived=arrived,
            observe=self.metrics.observe,
        )

    async def complete(self, chat: ChatRequest, name: str, caller: Caller) -> dict[str, Any]:
        """One chat completion."""
        exchange = await self.begin(chat, name, caller)
        try:
            return await answering.complete(exchange, self.backend)
        finally:
            self.metrics.forget(exchange.head.id)

    async def stream(self, exchange: answering.Exchange) -> AsyncIterator[dict[str, Any]]:
        """Its chunks."""
        try:
            async for chunk in answering.stream(exchange, self.backend):
                yield chunk
        finally:
            self.metrics.forget(exchange.head.id)
