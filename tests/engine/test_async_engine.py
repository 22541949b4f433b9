"""The asyncio front: streams, cancellation by leaving, and what happens when the thread ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from internvl.engine.async_engine import AsyncEngine
from internvl.engine.engine import Engine
from internvl.engine.request import Delta, EngineRequest
from internvl.errors import ContextOverflowError, EngineStoppedError, InputError
from internvl.models.vlm import VLM
from tests.engine.tiny import expected, ids_of, last_of, make_engine, make_image, make_request


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 300))


async def collect(stream: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in stream]


async def idle(engine: Engine) -> None:
    """Waits until the engine has nothing left to do."""
    while engine.has_work:
        await asyncio.sleep(0.01)


def test_streams_run_together_and_equal_generate(vlm: VLM) -> None:
    requests = [
        make_request("a", [1, 2, 3], [make_image(1)], max_new_tokens=6),
        make_request("b", [4, 5], max_new_tokens=9, n=2, temperature=1.0, seed=1),
        make_request("c", [6], max_new_tokens=3),
    ]

    async def main() -> None:
        async with AsyncEngine(make_engine(vlm)) as front:
            found = await asyncio.gather(*(collect(front.stream(request)) for request in requests))
            assert front.is_alive
            assert front.last_step_age < 60
            assert front.stats().requests == 3
        for request, deltas in zip(requests, found, strict=True):
            assert ids_of(deltas, request.key) == expected(vlm, request).ids
            assert all(last_of(deltas, request.key, index).finish_reason for index in range(request.n))
            assert [delta.usage is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]

    run(main())


def test_leaving_a_stream_cancels_its_request(vlm: VLM) -> None:
    async def main() -> None:
        engine = make_engine(vlm)
        async with AsyncEngine(engine) as front:
            async with aclosing(front.stream(make_request("a", [1], max_new_tokens=200))) as stream:
                async for _ in stream:
                    break
            await idle(engine)
            assert front.stats().new_tokens < 200
            assert front.stats().pages_used == 0

    run(main())


def test_cancelling_the_task_cancels_the_request(vlm: VLM) -> None:
    async def main() -> None:
        engine = make_engine(vlm)
        async with AsyncEngine(engine) as front:
            task = asyncio.create_task(collect(front.stream(make_request("a", [1], max_new_tokens=200))))
            while not engine.stats().new_tokens:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await idle(engine)
            assert front.stats().new_tokens < 200

    run(main())


def test_refusals_are_raised_by_the_stream(vlm: VLM) -> None:
    async def main() -> None:
        async with AsyncEngine(make_engine(vlm)) as front:
            with pytest.raises(ContextOverflowError):
                await collect(front.stream(make_request("a", [1], max_new_tokens=999)))
            stream = front.stream(make_request("a", [1], max_new_tokens=200))
            await anext(stream)
            with pytest.raises(InputError, match="there already"):
                await collect(front.stream(make_request("a", [1], max_new_tokens=2)))
            await stream.aclose()
            assert front.plan(make_request("b", [1], max_new_tokens=2)).pages == 1

    run(main())


def test_the_end_of_the_front_ends_its_streams(vlm: VLM) -> None:
    async def main() -> None:
        front = AsyncEngine(make_engine(vlm))
        with pytest.raises(EngineStoppedError, match="not running"):
            await collect(front.stream(make_request("a", [1], max_new_tokens=2)))
        async with front:
            stream = front.stream(make_request("a", [1], max_new_tokens=200))
            await anext(stream)
        with pytest.raises(EngineStoppedError, match="before the answer had ended"):
            await collect(stream)
        with pytest.raises(EngineStoppedError, match="not running"):
            await collect(front.stream(make_request("b", [1], max_new_tokens=2)))
        assert not front.is_alive
        with pytest.raises(EngineStoppedError, match="entered once"):
            await front.__aenter__()

    run(main())


def test_stopping_ends_streams_that_are_open(vlm: VLM) -> None:
    async def main() -> None:
        async with AsyncEngine(make_engine(vlm)) as front:
            stream = front.stream(make_request("a", [1], max_new_tokens=200))
            await anext(stream)
            front.stop()
            with pytest.raises(EngineStoppedError, match="before the answer had ended"):
                await collect(stream)

    run(main())


def test_a_thread_that_fails_says_so(vlm: VLM) -> None:
    class BrokenError(Exception):
        pass

    async def main() -> None:
        engine = make_engine(vlm)

        def fail() -> list[Delta]:
            raise BrokenError

        engine.step = fail  # type: ignore[method-assign]
        request: EngineRequest = make_request("a", [1], max_new_tokens=2)
        async with AsyncEngine(engine) as front:
            with pytest.raises(EngineStoppedError, match="before the answer had ended"):
                await collect(front.stream(request))
            while front.is_alive:
                await asyncio.sleep(0.01)
            assert isinstance(front.failure, BrokenError)

    run(main())
