"""Requests that came without a connection of their own: answered by path and body, errors as objects."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from internvl.errors import EngineStoppedError, InternVLError, QueueFullError, RequestError
from internvl.serving.admission import RETRY_SECONDS
from internvl.serving.backend import Backend
from internvl.serving.caller import Caller, deadline_of
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_embeddings import EmbeddingRequest, embedding_list
from internvl.serving.protocol_messages import MediaReference
from internvl.serving.refusals import as_object, invalid_object, status_of
from internvl.serving.server import Server

PATHS = ("/v1/chat/completions", "/v1/embeddings")
CLIENT = "batches"
BATCH_PRIORITY = 1000
"""Rows of batches run when nobody waits for an answer."""
MAX_LOSSES = 3
"""Engines that end below a row before the row counts as what ends them."""


async def answer_row(server: Server, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer. Raises EngineStoppedError where nothing answers any more."""
    try:
        if path == PATHS[0]:
            return 200, await _chat(server, body)
        if path == PATHS[1]:
            return 200, await _embed(server, body)
        raise RequestError(f"rows may ask {', '.join(PATHS)}, not {path[:80]!r}", param="url")
    except ValidationError as reason:
        return 400, invalid_object(reason.errors())
    except EngineStoppedError as reason:
        if server.chat is None or not server.chat.backend.comes_back:
            raise
        return status_of(reason), as_object(reason)
    except InternVLError as reason:
        return status_of(reason), as_object(reason)


async def _chat(server: Server, body: Mapping[str, Any]) -> dict[str, Any]:
    chat = ChatRequest.model_validate(body)
    if chat.stream:
        raise RequestError("a row is answered as a whole: leave stream out", param="stream")
    service, name = server.chat_service(chat.model)
    if chat.priority is None:
        chat = chat.model_copy(update={"priority": BATCH_PRIORITY})
    losses = 0
    while True:
        await _until_alive(service.backend)
        try:
            deadline = deadline_of(chat.timeout, None)  # the server's own limit is for those who wait
            return await service.complete(chat, name, Caller(client=CLIENT, deadline=deadline))
        except QueueFullError:
            await asyncio.sleep(RETRY_SECONDS)  # nobody waits for a row, so the row does
        except EngineStoppedError:
            losses += 1
            if losses == MAX_LOSSES or not service.backend.comes_back:
                raise


async def _until_alive(backend: Backend) -> None:
    while not backend.is_alive and backend.comes_back:
        await asyncio.sleep(RETRY_SECONDS)


async def _embed(server: Server, body: Mapping[str, Any]) -> dict[str, Any]:
    return await embed(server, EmbeddingRequest.model_validate(body))


async def embed(server: Server, asked: EmbeddingRequest) -> dict[str, Any]:
    """The list of vectors of a request."""
    embedder, name = server.embedding_service(asked.model)
    items = asked.items()
    references = [item for item in items if isinstance(item, MediaReference)]
    async with server.read_pictures(references) as pictures:
        unseen = iter(pictures)
        found = [item if isinstance(item, str) else next(unseen) for item in items]
        made = await embedder.embed(asked, found)
    return embedding_list(made.vectors, asked.encoding_format, name, made.num_tokens)
