"""Threads go on when their requests are gone, and what those held is not free before."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import torch

from internvl import ChatModel, VisionModel, zoo
from internvl.config import VisionConfig
from internvl.models.vit import VisionTower
from internvl.serving.admission import Admission
from internvl.serving.caller import Caller
from internvl.serving.decoders import Decoders
from internvl.serving.embedding import Embedded, Embedder
from internvl.serving.media import MediaPolicy
from internvl.serving.prepare import Preparer
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_embeddings import EmbeddingRequest
from internvl.serving.threads import in_thread


class Work:
    """Takes a while and counts how much of it runs."""

    def __init__(self) -> None:
        self.num_running = self.most = self.num_done = 0
        self._lock = threading.Lock()

    def __call__(self, *_: Any) -> Embedded:
        with self._lock:
            self.num_running += 1
            self.most = max(self.most, self.num_running)
        time.sleep(0.05)
        with self._lock:
            self.num_running -= 1
            self.num_done += 1
        return Embedded([], 0)


def test_requests_that_are_gone_are_not_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = zoo.find("InternViT-300M-448px").config
    assert isinstance(config, VisionConfig)
    torch.manual_seed(0)
    embedder, work = Embedder(VisionModel(VisionTower(zoo.tiny(config)))), Work()
    monkeypatch.setattr(embedder, "_embed", work)

    async def main() -> None:
        for _ in range(8):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(embedder.embed(EmbeddingRequest(input="a"), ["a"]), 0.01)

    asyncio.run(main())
    assert (work.most, work.num_done) == (1, 8)


@pytest.mark.parametrize("name", ["_prepare", "_explain"])
def test_a_request_that_is_gone_has_its_place_until_its_thread_ends(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work, admission = Work(), Admission(1)
    chat = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}]})

    async def request(preparer: Preparer) -> None:
        with admission.enter():
            if name == "_explain":
                await preparer.explain(chat)
            else:
                await preparer.chat(chat, "key", Caller(client="", deadline=None))

    async def main() -> None:
        async with Decoders(MediaPolicy(), num_workers=1, max_pixels_inside=10**9) as decoders:
            preparer = Preparer(model, decoders, lambda _: None)
            monkeypatch.setattr(preparer, name, work)
            for _ in range(3):  # each is let in since none is inside
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(request(preparer), 0.01)
                assert work.num_running == 0

    asyncio.run(main())
    assert (work.most, work.num_done) == (1, 3)


def test_who_is_not_cancelled_gets_what_the_work_gives_or_raises() -> None:
    assert asyncio.run(in_thread(divmod, 7, 2)) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_thread(divmod, 7, 0))


def test_being_cancelled_again_ends_no_sooner() -> None:
    work = Work()

    async def main() -> None:
        task = asyncio.ensure_future(in_thread(work))
        while not work.num_running:
            await asyncio.sleep(0.001)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.num_done == 1

    asyncio.run(main())
