"""The backend over `generate`: the same answers, in turn, cancelled and failing alone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from internvl import ChatModel
from internvl.errors import EngineError, InputError
from internvl.generation.sampling import Sampling
from internvl.serving.backend import Delta, EngineImage, EngineRequest
from internvl.serving.round_robin import RoundRobin


def request(model: ChatModel, text: str, key: str = "k", n: int = 1, **settings: Any) -> EngineRequest:
    ids = tuple(model.processor.tokenizer.encode(text).ids)
    return EngineRequest(key=key, ids=ids, n=n, sampling=Sampling(**{"max_new_tokens": 8, **settings}))


async def collect(backend: RoundRobin, asked: EngineRequest) -> list[Delta]:
    return [delta async for delta in backend.stream(asked)]


def ids_of(deltas: list[Delta]) -> list[int]:
    return [delta.token.id for delta in deltas if delta.token is not None]


def test_answers_are_those_of_generate(model: ChatModel) -> None:
    asked = [
        request(model, text, key=text, max_new_tokens=n) for text, n in (("ab", 8), ("xyz", 3), ("q", 5))
    ]

    async def together() -> list[list[Delta]]:
        async with RoundRobin(model, max_num_seqs=2) as backend:
            return await asyncio.gather(*(collect(backend, one) for one in asked))

    for one, deltas in zip(asked, asyncio.run(together()), strict=True):
        expected = model.generate(one.ids, max_new_tokens=one.sampling.max_new_tokens, stop_ids=())
        assert ids_of(deltas) == expected
        assert [delta.finish_reason for delta in deltas] == [None] * (len(expected) - 1) + ["length"]
        used = deltas[-1].usage
        assert used is not None
        assert (used.prompt_tokens, used.completion_tokens) == (len(one.ids), len(expected))


def test_pictures_fill_their_slots(model: ChatModel) -> None:
    tiles = torch.rand(1, 3, 56, 56)
    slot = model.processor.tokenizer.token_id("<IMG_CONTEXT>")
    assert slot is not None
    asked = replace(
        request(model, "a"), ids=(1, *[slot] * 4, 2), images=(EngineImage(key=b"key", tiles_N3HW=tiles),)
    )

    async def once() -> list[Delta]:
        async with RoundRobin(model) as backend:
            found = await collect(backend, asked)
            assert backend.stats().num_tiles == 1
            return found

    deltas = asyncio.run(once())
    assert ids_of(deltas) == model.generate(asked.ids, tiles, max_new_tokens=8, stop_ids=())
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.image_tokens == 4


def test_live_requests_take_turns(model: ChatModel) -> None:
    order: list[str] = []

    async def follow(backend: RoundRobin, key: str) -> None:
        async for delta in backend.stream(request(model, "abc", key=key)):
            order.append(delta.key)

    async def together() -> None:
        async with RoundRobin(model) as backend:
            await asyncio.gather(follow(backend, "a"), follow(backend, "b"))

    asyncio.run(together())
    assert order.index("b") < len(order) - 1 - order[::-1].index("a")


def test_a_request_that_is_left_ends(model: ChatModel) -> None:
    async def leave() -> None:
        async with RoundRobin(model) as backend:
            steps = backend.stream(request(model, "abc", max_new_tokens=1500))
            await anext(steps)
            assert backend.stats().num_running == 1
            await steps.aclose()
            until = time.monotonic() + 5
            while backend.stats().num_running and time.monotonic() < until:
                await asyncio.sleep(0.01)
            assert backend.stats().num_running == 0
            assert len(ids_of(await collect(backend, request(model, "x")))) == 8

    asyncio.run(leave())


def test_the_lowest_priority_number_runs_first(model: ChatModel) -> None:
    ended: list[str] = []

    async def follow(backend: RoundRobin, key: str, priority: int) -> None:
        await collect(backend, replace(request(model, "ab", key=key), priority=priority))
        ended.append(key)

    async def together() -> None:
        async with RoundRobin(model, max_num_seqs=1) as backend:
            first = asyncio.ensure_future(collect(backend, request(model, "ab", max_new_tokens=60)))
            await asyncio.sleep(0.02)
            await asyncio.gather(follow(backend, "later", 5), follow(backend, "sooner", -5), first)

    asyncio.run(together())
    assert ended == ["sooner", "later"]


@pytest.mark.parametrize("ids", [(), (10**6,)])
def test_a_bad_request_fails_alone(model: ChatModel, ids: tuple[int, ...]) -> None:
    bad = replace(request(model, "a"), ids=ids)

    async def together() -> tuple[list[Delta], list[Delta]]:
        async with RoundRobin(model) as backend:
            good, failed = await asyncio.gather(
                collect(backend, request(model, "abc")), collect(backend, bad), return_exceptions=True
            )
            assert isinstance(good, list)
            assert isinstance(failed, list)
            assert backend.is_alive
            return good, failed

    good, failed = asyncio.run(together())
    assert len(ids_of(good)) == 8
    assert isinstance(failed[-1].error, InputError | EngineError)


def test_the_end_is_told_to_those_who_wait(model: ChatModel) -> None:
    async def close() -> list[Delta]:
        backend = RoundRobin(model)
        async with backend:
            waiting = asyncio.ensure_future(collect(backend, request(model, "a", max_new_tokens=1500)))
            await asyncio.sleep(0.05)
        assert not backend.is_alive
        with pytest.raises(EngineError, match="stopped"):
            await collect(backend, request(model, "b"))
        return await waiting

    assert isinstance(asyncio.run(close())[-1].error, EngineError)
