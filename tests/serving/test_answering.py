"""Deltas to answers, with an engine that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from internvl import ChatModel
from internvl.api.explanation import PictureExplanation
from internvl.engine.planner import Plan
from internvl.engine.request import Delta, EngineRequest, EngineUsage
from internvl.engine.settings import EngineStats
from internvl.errors import EngineError
from internvl.generation.result import Token
from internvl.generation.sampling import Sampling
from internvl.processing.tiling import Grid
from internvl.serving.answering import Exchange, complete, stream
from internvl.serving.prepare import Prepared
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_replies import Head

SPOKEN = ["<ref>", "a dog", "</ref>", "<box>", "[[100, 200, 300, 1000]]", "</box>", " there"]
USED = EngineUsage(prompt_tokens=9, completion_tokens=7, cached_tokens=4, image_tokens=5)


class Scripted:
    """Says `pieces` and may fail after them."""

    is_alive = True
    last_step_age = 0.0
    failure = None
    num_restarts = 0

    def __init__(self, pieces: Sequence[str], error: EngineError | None = None) -> None:
        self.pieces, self.error = pieces, error
        self.is_closed = False

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        try:
            for number, piece in enumerate(self.pieces):
                is_last = self.error is None and number == len(self.pieces) - 1
                reason = "stop" if is_last else None
                token = Token(sequence=0, id=number, text=piece, finish_reason=reason)
                usage = USED if is_last else None
                yield Delta(
                    key=request.key, index=0, token=token, text=piece, finish_reason=reason, usage=usage
                )
            if self.error is not None:
                yield Delta(key=request.key, index=0, finish_reason="error", error=self.error)
        finally:
            self.is_closed = True

    def plan(self, request: EngineRequest) -> Plan:
        raise NotImplementedError

    def stats(self) -> EngineStats:
        raise NotImplementedError


@pytest.fixture
def exchange(model: ChatModel) -> Exchange:
    picture = PictureExplanation(size=(200, 100), grid=Grid(2, 1), num_tiles=3, vision_tokens=12)
    fields: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    return Exchange(
        chat=ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields}),
        prepared=Prepared(request=EngineRequest(key="k", ids=(1,), sampling=Sampling()), pictures=(picture,)),
        head=Head(id="k", model="m", created=0),
        tokenizer=model.processor.tokenizer,
        arrived=0.0,
        observe=lambda *_: None,
    )


BOX = {
    "label": "a dog",
    "x1": 20.0,
    "y1": 20.0,
    "x2": 60.0,
    "y2": 100.0,
    "raw": (100.0, 200.0, 300.0, 1000.0),
}


def test_boxes_come_in_pixels_and_tags_do_not(exchange: Exchange) -> None:
    answer = asyncio.run(complete(exchange, Scripted(SPOKEN)))
    message = answer["choices"][0]["message"]
    assert message["content"] == "a dog[[100, 200, 300, 1000]] there"
    assert message["boxes"] == [BOX]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4, "image_tokens": 5}
    assert answer["usage"]["images"][0]["grid"] == [2, 1]


def test_the_last_chunk_of_an_answer_has_its_boxes(exchange: Exchange) -> None:
    async def collect() -> list[dict[str, Any]]:
        return [chunk async for chunk in stream(exchange, Scripted(SPOKEN))]

    *chunks, last, used = asyncio.run(collect())
    assert last["choices"][0]["delta"] == {"content": " there", "boxes": [BOX]}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert not any("boxes" in chunk["choices"][0]["delta"] for chunk in chunks)
    assert used["usage"]["total_tokens"] == 16


def test_what_the_engine_could_not_do_is_raised(exchange: Exchange) -> None:
    with pytest.raises(EngineError, match="burnt"):
        asyncio.run(complete(exchange, Scripted(["a"], EngineError("burnt"))))


def test_leaving_a_stream_closes_the_request(exchange: Exchange) -> None:
    backend = Scripted(SPOKEN)

    async def leave() -> None:
        chunks = stream(exchange, backend)
        await anext(chunks)
        await anext(chunks)
        assert not backend.is_closed
        await chunks.aclose()

    asyncio.run(leave())
    assert backend.is_closed
