"""Rows outlive engines that are replaced; a row that ends one after the other does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from internvl.errors import EngineStoppedError
from internvl.serving import answer_row as module
from internvl.serving.answer_row import MAX_LOSSES, answer_row
from internvl.serving.server import Server

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@dataclass(slots=True)
class Flaky:
    """A server with one chat model, whose engine ends below the first `losses` requests and is back when it
    was looked for a second time."""

    losses: int
    comes_back: bool = True
    looks: int = 2
    asked: int = 0
    backend: Any = field(init=False)
    chat: Any = field(init=False)

    def __post_init__(self) -> None:
        self.backend = self.chat = self

    @property
    def is_alive(self) -> bool:
        self.looks += 1
        return self.looks > 2

    def chat_service(self, name: str | None) -> tuple[Flaky, str]:
        return self, "model"

    async def complete(self, *_: Any) -> dict[str, Any]:
        assert self.looks > 2, "asked while there is no engine"
        self.asked += 1
        if self.asked <= self.losses:
            self.looks = 0
            raise EngineStoppedError("the engine has stopped before the answer had ended")
        return {"id": "answer"}


def ask(server: Flaky) -> tuple[int, dict[str, Any]]:
    return asyncio.run(asyncio.wait_for(answer_row(cast(Server, server), CHAT, BODY), 20))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)


@pytest.mark.parametrize("losses", range(MAX_LOSSES))
def test_a_row_waits_for_the_next_engine(losses: int) -> None:
    server = Flaky(losses)
    assert ask(server) == (200, {"id": "answer"})
    assert server.asked == losses + 1


def test_a_row_that_ends_every_engine_is_given_up() -> None:
    server = Flaky(MAX_LOSSES)
    status, body = ask(server)
    assert status == 503
    assert "before the answer had ended" in body["error"]["message"]
    assert server.asked == MAX_LOSSES


def test_a_row_has_no_answer_where_no_engine_comes_back() -> None:
    server = Flaky(1, comes_back=False)
    with pytest.raises(EngineStoppedError):
        ask(server)
    assert server.asked == 1
