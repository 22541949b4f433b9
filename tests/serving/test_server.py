"""A server whose engine is another process: what those who ask see of its end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from internvl import ChatModel
from internvl.api.engine import make_intake
from internvl.api.load import load_outline
from internvl.cli.engine_source import EngineSource
from internvl.engine.settings import EngineSettings
from internvl.serving.app import make_app
from internvl.serving.engine_process import EngineProcess
from internvl.serving.settings import Settings
from tests.serving.conftest import encoded, error_of, image_part, picture, serving
from tests.serving.test_adapters import ASKED, adapted, save_adapters
from tests.serving.test_limits import CHAT, LONG
from tests.serving.test_routes import numbers

__all__ = ["adapted"]

RESTARTS = 'internvl:engine_restarts_total{model_name="tiny"}'
CONTENT = [image_part(encoded(picture(112, 56))), {"type": "text", "text": ASKED}]
BODY = {"messages": [{"role": "user", "content": CONTENT}], "max_tokens": 8}


@pytest.fixture(scope="module")
def settings(adapted: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    save_adapters(adapted.vlm, folder)
    engine = EngineSettings(max_running=4, vision_directory=str(tmp_path_factory.mktemp("vision")))
    return Settings(served_names=("tiny",), adapters=(("mine", folder),), engine=engine)


@pytest.fixture(scope="module")
def outline(checkpoint: Path) -> ChatModel:
    found = load_outline(checkpoint)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def backend(checkpoint: Path, outline: ChatModel, settings: Settings) -> Iterator[EngineProcess]:
    source = EngineSource(
        path=checkpoint,
        device="cpu",
        dtype="float32",
        quantize=None,
        threads=1,
        template=None,
        settings=settings.engine,
        cache_part=None,
        adapters=settings.adapters,
    )
    with EngineProcess(source, partial(make_intake, outline, settings.adapter_names)) as started:
        yield started


@pytest.fixture(scope="module")
def client(backend: EngineProcess, outline: ChatModel, settings: Settings) -> Iterator[httpx.Client]:
    with (
        serving(make_app(outline, settings, backend=backend)) as address,
        httpx.Client(base_url=address, timeout=300) as opened,
    ):
        yield opened


def answer(client: httpx.Client, **fields: Any) -> Any:
    response = client.post(CHAT, json={**BODY, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_the_model_here_has_no_weights(outline: ChatModel, model: ChatModel) -> None:
    assert outline.device.type == "meta"
    assert outline.config == model.config
    explained = outline.explain(ASKED, [picture(112, 56)])
    assert explained == model.explain(ASKED, [picture(112, 56)])


def test_answers_are_those_of_an_engine_here(
    client: httpx.Client, model: ChatModel, settings: Settings
) -> None:
    with (
        serving(make_app(model, settings)) as address,
        httpx.Client(base_url=address, timeout=300) as here,
    ):
        for fields in ({}, {"model": "mine"}, {"seed": 3, "temperature": 1.0}):
            assert answer(client, **fields) == answer(here, **fields)
    assert answer(client) != answer(client, model="mine")
    assert client.get("/health").json() == {"status": "ok"}
    assert numbers(client)[RESTARTS] == 0


def test_a_form_that_is_not_valid_is_refused_before_a_stream_begins(client: httpx.Client) -> None:
    fields = {"structured_outputs": {"regex": "("}, "stream": True}
    error_of(client.post(CHAT, json={**BODY, **fields}), 400)


def test_an_engine_that_is_killed_costs_those_inside_and_nobody_after(
    client: httpx.Client, backend: EngineProcess
) -> None:
    before = answer(client)
    with client.stream("POST", CHAT, json={**LONG, "stream": True}) as stream:
        lines = stream.iter_lines()
        while "content" not in next(lines):
            continue
        assert backend.pid is not None
        os.kill(backend.pid, signal.SIGKILL)
        last = [line for line in lines if line][-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "SIGKILL" in error["message"]
    check_absence(client)
    until = time.monotonic() + 300
    while client.get("/health").status_code != 200:
        assert time.monotonic() < until, "it does not come back"
        time.sleep(0.05)
    assert answer(client) == before
    assert numbers(client)[RESTARTS] == 1
    disk_hits = 'internvl:mm_cache_disk_hits_total{model_name="tiny"}'
    assert numbers(client)[disk_hits] == 1, "the picture was known before"


def check_absence(client: httpx.Client) -> None:
    """Requests are sent away with the time to wait, health has the reason, numbers are there."""
    for fields in ({}, {"stream": True}):
        refused = client.post(CHAT, json={**BODY, **fields})
        assert "is started again" in error_of(refused, 503)["message"]
        assert int(refused.headers["retry-after"]) > 0
    health = client.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "stopped"
    assert "SIGKILL" in health.json()["reason"]
    assert numbers(client)['internvl:num_requests_running{model_name="tiny"}'] == 0
