"""Routes for batches. Knows HTTP; `batches` does the work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request

from internvl.serving.batches import Batches
from internvl.serving.protocol import Strict, at_most

MAX_METADATA = 16


class BatchRequest(Strict):
    """`/v1/batches`. The window is a promise of OpenAI's; here rows run as soon as they can."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, str], at_most(MAX_METADATA)] | None = None


def get_batches(request: Request) -> Batches:
    found: Batches = request.app.state.batches
    return found


Here = Annotated[Batches, Depends(get_batches)]


async def create_batch(asked: BatchRequest, batches: Here) -> dict[str, Any]:
    """Answer the rows of an uploaded file."""
    batch = await batches.create(asked.input_file_id, asked.endpoint, asked.completion_window, asked.metadata)
    return batches.as_json(batch)


async def list_batches(batches: Here) -> dict[str, Any]:
    """All batches, newest first."""
    return {
        "object": "list",
        "data": [batches.as_json(one) for one in batches.newest_first()],
        "has_more": False,
    }


async def find_batch(batch_id: str, batches: Here) -> dict[str, Any]:
    """How far a batch is."""
    return batches.as_json(batches.find(batch_id))


async def cancel_batch(batch_id: str, batches: Here) -> dict[str, Any]:
    """Begin no further row of it."""
    return batches.as_json(batches.cancel(batch_id))
