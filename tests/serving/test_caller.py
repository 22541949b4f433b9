"""Time that is over: what is written stays, and what had not begun is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from internvl import ChatModel
from internvl.engine.engine import Engine
from internvl.engine.settings import EngineSettings
from internvl.errors import DeadlineError
from internvl.serving.app import make_app
from internvl.serving.caller import Caller, deadline_of
from internvl.serving.settings import Settings
from tests.serving.conftest import error_of, serving
from tests.serving.test_chat_completions import events

NUM_WRITTEN = 3
LONG: dict[str, Any] = {"max_tokens": 50, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "hi"}], **LONG}


class Served:
    """A server whose engine finds its requests late once so many more tokens are written."""

    def __init__(self, client: httpx.Client, engine: Engine) -> None:
        self.client, self.engine = client, engine

    def late_after(self, num_tokens: int) -> None:
        last = self.engine.totals["new"] + num_tokens
        hour = 3600.0
        self.engine.clock = lambda: time.monotonic() + (hour if self.engine.totals["new"] >= last else 0.0)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.client.post(path, json=body)


@pytest.fixture(scope="module")
def served(model: ChatModel) -> Iterator[Served]:
    app = make_app(model, Settings(request_seconds=1000.0))
    with serving(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield Served(client, app.state.server.chat.backend._engine)


@pytest.mark.parametrize("fields", [{}, {"timeout": 30}])
def test_what_is_written_stays(served: Served, fields: dict[str, Any]) -> None:
    served.late_after(NUM_WRITTEN)
    answer = served.post("/v1/chat/completions", {**CHAT, **fields}).json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    assert answer["usage"]["completion_tokens"] == NUM_WRITTEN
    served.late_after(1000)
    whole = served.post("/v1/chat/completions", {**CHAT, "max_tokens": NUM_WRITTEN}).json()["choices"][0]
    assert choice["message"] == whole["message"]
    assert "stop_reason" not in whole


def test_streams_completions_and_responses_say_so_too(served: Served) -> None:
    served.late_after(NUM_WRITTEN)
    last = events(served.post("/v1/chat/completions", {**CHAT, "stream": True}))[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("length", "deadline")
    served.late_after(NUM_WRITTEN)
    (choice,) = served.post("/v1/completions", {"prompt": "ab", "timeout": 2.5, **LONG}).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    served.late_after(NUM_WRITTEN)
    body = {"input": "hi", "max_output_tokens": 50, "timeout": 9}
    response = served.post("/v1/responses", body).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "deadline"})


def test_what_had_not_begun_is_refused(served: Served) -> None:
    served.late_after(0)
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "ab"}),
        ("/v1/responses", {"input": "hi"}),
    ):
        refused = served.post(path, body)
        assert error_of(refused, 503)["code"] == "deadline_exceeded"
        assert int(refused.headers["retry-after"]) > 0
    last = served.post("/v1/chat/completions", {**CHAT, "stream": True}).text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


def test_answers_to_other_prompts_are_not_lost(model: ChatModel) -> None:
    app = make_app(model, Settings(engine=EngineSettings(max_running=1)))
    with serving(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        served = Served(client, app.state.server.chat.backend._engine)
        served.late_after(NUM_WRITTEN)
        body = {"prompt": ["ab", "cd"], "max_tokens": 50, "ignore_eos": True, "timeout": 60}
        answer = served.post("/v1/completions", body).json()
        assert [choice["stop_reason"] for choice in answer["choices"]] == ["deadline"] * 2
        assert answer["usage"]["completion_tokens"] == NUM_WRITTEN
        served.late_after(0)
        assert error_of(served.post("/v1/completions", body), 503)["code"] == "deadline_exceeded"


def test_times_that_are_none(served: Served) -> None:
    for seconds in (0, -1, "5", 1e9):
        error = error_of(served.post("/v1/chat/completions", {**CHAT, "timeout": seconds}), 400)
        assert error["param"] == "timeout"
    assert error_of(served.post("/v1/embeddings", {"input": "a", "timeout": 5}), 400)["param"] == "timeout"


def test_reading_may_take_no_longer() -> None:
    async def read(deadline: float | None) -> bool:
        async with Caller(deadline=deadline).in_time():
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return True

    async def hang() -> None:
        async with Caller(deadline=time.monotonic() + 0.01).in_time():
            await asyncio.Event().wait()

    assert asyncio.run(read(None))
    assert asyncio.run(read(time.monotonic() + 1000))
    with pytest.raises(DeadlineError, match="pictures were read"):
        asyncio.run(hang())


def test_the_first_of_both_times_counts() -> None:
    assert deadline_of(None, None) is None
    now = time.monotonic()
    for wanted, cap in ((50.0, 900.0), (900.0, 50.0), (50.0, None), (None, 50.0)):
        found = deadline_of(wanted, cap)
        assert found is not None
        assert 50 <= found - now < 800
