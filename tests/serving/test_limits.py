"""Who gets in, how many, for how long; and that whoever leaves costs nothing more."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIConnectionError, AuthenticationError, OpenAI

from internvl import ChatModel, VisionModel, zoo
from internvl.config import VisionConfig
from internvl.engine.settings import EngineSettings
from internvl.errors import InputError
from internvl.models.vit import VisionTower
from internvl.serving.app import make_app
from internvl.serving.embedding import Embedder
from internvl.serving.media import MediaPolicy
from internvl.serving.prepare import Preparer
from internvl.serving.settings import Settings
from tests.serving.conftest import encoded, error_of, image_part, picture, serving
from tests.serving.test_routes import numbers

LONG = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1500, "ignore_eos": True}
SHORT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"
RUNNING = 'internvl:num_requests_running{model_name="internvl"}'


@contextmanager
def client_of(model: ChatModel, **settings: Any) -> Iterator[httpx.Client]:
    with (
        serving(make_app(model, Settings(**settings))) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def wait_until_idle(client: httpx.Client, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while numbers(client)[RUNNING]:
        assert time.monotonic() < until, "the request still runs"
        time.sleep(0.02)


def test_keys(model: ChatModel) -> None:
    with client_of(model, api_keys=("one", "two")) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            refused = client.get(path)
            assert error_of(refused, 401)["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/health").status_code == 200
        for key in ("three", "one two", "ONE", "öne"):
            header = {"Authorization": f"Bearer {key}".encode()}
            assert client.get("/v1/models", headers=header).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Basic one"}).status_code == 401
        url = f"{client.base_url}/v1"
        with OpenAI(base_url=url, api_key="two", max_retries=0) as official:
            assert [one.id for one in official.models.list()] == ["internvl"]
        with OpenAI(base_url=url, api_key="zwei", max_retries=0) as wrong, pytest.raises(AuthenticationError):
            wrong.models.list()


def test_other_pages_may_not_call_unless_they_are_named(model: ChatModel) -> None:
    origin = {"Origin": "https://page.example"}
    asking = {**origin, "Access-Control-Request-Method": "POST"}
    with client_of(model) as client:
        assert "access-control-allow-origin" not in client.get("/health", headers=origin).headers
        assert client.options(CHAT, headers=asking).status_code == 405
    with client_of(model, allowed_origins=("https://page.example",), api_keys=("k",)) as client:
        assert client.options(CHAT, headers=asking).status_code == 200
        answer = client.get("/health", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = client.get("/health", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_full_server_sends_away_at_once(model: ChatModel) -> None:
    with client_of(model, engine=EngineSettings(max_running=1), max_num_queued=0) as client:
        with client.stream("POST", CHAT, json={**LONG, "stream": True, "n": 16}) as running:
            lines = running.iter_lines()
            next(lines)
            refused = client.post(CHAT, json=SHORT)
            assert error_of(refused, 429)["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) > 0
            assert error_of(client.post("/tokenize", json={"prompt": "a"}), 429)["code"] == "queue_full"
            assert error_of(client.post("/detokenize", json={"tokens": [1]}), 429)["code"] == "queue_full"
            assert client.get("/health").status_code == 200
        wait_until_idle(client)
        assert client.post(CHAT, json=SHORT).status_code == 200
        assert numbers(client)['internvl:admission_rejections_total{model_name="internvl"}'] == 3


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_one_key_does_not_take_all_places(model: ChatModel) -> None:
    settings: dict[str, Any] = {"api_keys": ("secret-one", "secret-two"), "max_per_key": 1}
    with client_of(model, engine=EngineSettings(max_running=17), **settings) as client:
        long = {**LONG, "stream": True, "n": 16, "user": "somebody"}
        with client.stream("POST", CHAT, json=long, headers=headers("secret-one")) as running:
            lines = running.iter_lines()  # kept: when it goes, so does the connection
            next(lines)
            for user in ("somebody", "another"):
                refused = client.post(CHAT, json={**SHORT, "user": user}, headers=headers("secret-one"))
                error = error_of(refused, 429)
                assert error["code"] == "key_limit_reached"
                assert "its limit is 1" in error["message"]
                assert "secret" not in refused.text
                assert int(refused.headers["retry-after"]) > 0
            body = {**SHORT, "user": "somebody"}
            assert client.post(CHAT, json=body, headers=headers("secret-two")).status_code == 200
    with pytest.raises(InputError, match="needs keys"):
        Settings(max_per_key=1)


def test_the_engine_knows_clients_by_their_keys_alone(model: ChatModel) -> None:
    app, found = make_app(model, Settings(api_keys=("one", "two"))), []
    with serving(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        engine = app.state.server.chat.backend._engine
        submit = engine.submit
        engine.submit = lambda request: found.append(request.client) or submit(request)
        for path, body in (
            (CHAT, {**SHORT, "user": "x"}),
            ("/v1/completions", {"prompt": "a", "max_tokens": 1, "user": "x"}),
            ("/v1/responses", {"input": "hi", "max_output_tokens": 1, "user": "x"}),
        ):
            for key in ("one", "two"):
                assert client.post(path, json=body, headers=headers(key)).status_code == 200
    assert found == ["key 0", "key 1"] * 3


def test_what_the_engine_can_never_hold_is_refused_with_the_numbers(model: ChatModel) -> None:
    with client_of(model, engine=EngineSettings(max_running=1, num_pages=40)) as client:
        for fields in ({}, {"stream": True}):
            error = error_of(client.post(CHAT, json={**LONG, **fields}), 400)
            assert error["code"] == "capacity_exceeded"
            assert "but the engine has 40" in error["message"]
        assert client.post(CHAT, json=SHORT).status_code == 200


def test_a_full_engine_is_not_the_clients_fault(model: ChatModel) -> None:
    engine = EngineSettings(max_running=1, max_waiting=1)
    prompts = {"prompt": ["a", "b", "c", "d"], "max_tokens": 200, "ignore_eos": True}
    with client_of(model, engine=engine) as client:
        refused = client.post("/v1/completions", json=prompts)
        assert error_of(refused, 429)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) > 0
        wait_until_idle(client)
        assert client.post(CHAT, json=SHORT).status_code == 200


def test_an_engine_that_has_failed_is_not_healthy(model: ChatModel) -> None:
    app = make_app(model, Settings())
    with serving(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/health").status_code == 200

        def fail() -> None:
            raise RuntimeError("burnt")

        app.state.server.chat.backend._engine.step = fail
        assert error_of(client.post(CHAT, json=SHORT), 503)["type"] == "server_error"
        assert client.get("/health").status_code == 503
        refused = client.post(CHAT, json=SHORT)
        assert error_of(refused, 503)["message"]
        assert int(refused.headers["retry-after"]) > 0


def test_places_are_given_back_however_a_request_ends(model: ChatModel) -> None:
    bad = image_part(b"junk")
    with client_of(model, engine=EngineSettings(max_running=1), max_num_queued=0) as client:
        for _ in range(3):
            for fields in ({}, {"stream": True}):
                body = {"messages": [{"role": "user", "content": [bad]}], **fields}
                assert client.post(CHAT, json=body).status_code == 400
                assert client.post(CHAT, json={**SHORT, **fields}).status_code == 200


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_ends_its_request(model: ChatModel, is_stream: bool) -> None:
    with client_of(model, engine=EngineSettings(max_running=1), max_num_queued=0) as client:
        address = (client.base_url.host, client.base_url.port)
        body = json.dumps({**LONG, "stream": is_stream}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(address) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until = time.monotonic() + 30
            while not numbers(client)[RUNNING]:
                assert time.monotonic() < until, "the request does not run"
                time.sleep(0.01)
        wait_until_idle(client)
        assert client.post(CHAT, json=SHORT).status_code == 200


def test_a_request_that_does_not_arrive_is_not_waited_for(model: ChatModel) -> None:
    with client_of(model, body_seconds=0.3) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_reads_nothing_is_not_waited_for(model: ChatModel) -> None:
    """An answer of many megabytes; what the systems of both sides keep of it on the way is less."""
    body = json.dumps({**LONG, "stream": True, "n": 16, "logprobs": True, "top_logprobs": 20}).encode()
    with client_of(model, send_seconds=0.3, engine=EngineSettings(max_running=16)) as client:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((client.base_url.host, client.base_url.port))
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until = time.monotonic() + 60
            while not numbers(client)[RUNNING]:
                assert time.monotonic() < until, "the request does not run"
                time.sleep(0.01)
            wait_until_idle(client, 120)
            assert not [
                name for name in numbers(client) if name.startswith("internvl:request_success_total{")
            ]
        assert client.post(CHAT, json=SHORT).status_code == 200


def test_a_body_without_length_is_counted(model: ChatModel) -> None:
    with client_of(model, max_body_bytes=1000) as client:
        answer = client.post(CHAT, content=(b" " * 100 for _ in range(20)))
        assert error_of(answer, 413)["code"] == "body_too_large"


def test_bodies_share_the_memory(model: ChatModel) -> None:
    body = {**SHORT, "user": "x" * 1000}
    with client_of(model, max_bytes_inside=3000) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=30) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2900\r\n\r\n"
            connection.sendall(head.encode() + b" " * 2800)
            until = time.monotonic() + 30
            while (refused := client.post(CHAT, json=body)).status_code == 200:
                assert time.monotonic() < until, "the first body is not counted"
            assert error_of(refused, 429)["code"] == "bodies_full"
        until = time.monotonic() + 30
        while client.post(CHAT, json=body).status_code != 200:
            assert time.monotonic() < until, "the first body is still counted"


class Inside:
    """Takes a while, and counts how many are in it at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def work(self, inner: Any) -> Any:
        def worked(*args: Any) -> Any:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.05)
            with self._lock:
                self.now -= 1
            return inner(*args)

        return worked

    def wait(self, inner: Any) -> Any:
        async def waited(*args: Any) -> Any:
            await asyncio.to_thread(self.work(lambda: None))
            return await inner(*args)

        return waited


def test_pictures_share_the_memory_until_they_are_used(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Inside()
    monkeypatch.setattr(Preparer, "_prepare", inside.work(Preparer._prepare))
    monkeypatch.setattr(Preparer, "_explain", inside.work(Preparer._explain))
    monkeypatch.setattr(Embedder, "embed", inside.wait(Embedder.embed))
    config = zoo.find("InternViT-300M-448px").config
    assert isinstance(config, VisionConfig)
    tower = VisionModel(VisionTower(zoo.tiny(config)))
    media = MediaPolicy(max_pixels=400, max_total_pixels=400)
    settings = Settings(media=media, max_pixels_inside=800)
    photo = image_part(encoded(picture(20, 20)))
    chat = {**SHORT, "messages": [{"role": "user", "content": [photo]}]}
    asked = [(CHAT, chat), ("/explain", chat), ("/v1/embeddings", {"model": "embeddings", "input": [photo]})]
    with (
        serving(make_app(model, settings, embedding_model=tower)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        answers = list(pool.map(lambda one: client.post(one[0], json=one[1]), asked * 4))
    assert [answer.status_code for answer in answers] == [200] * 12
    assert inside.most <= 2


def test_room_for_less_than_one_request_is_refused() -> None:
    with pytest.raises(InputError, match=r"max_pixels_inside=399 is less .*\(400\): raise it"):
        Settings(media=MediaPolicy(max_total_pixels=400), max_pixels_inside=399)


@contextmanager
def process(checkpoint: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`internvl serve` as a process of its own, and its address."""
    command = [sys.executable, "-m", "internvl", "serve", str(checkpoint), "--port", "0", "--json", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "INTERNVL_API_KEY": "key"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        lines = iter(running.stdout.readline, "")
        document = ""
        while not document.endswith("}\n"):
            document += next(lines)
        try:
            yield running, json.loads(document)["url"]
        finally:
            running.kill()


@pytest.mark.slow
def test_a_stream_survives_sigterm_and_the_port_does_not(checkpoint: Path) -> None:
    words = (
        "--served-model-name",
        "a",
        "--model-name",
        "b",
        "--session-len",
        "1000",
        "--log-level",
        "warning",
    )
    with process(checkpoint, *words) as (running, url), OpenAI(base_url=url, api_key="key") as client:
        assert [one.id for one in client.models.list()] == ["a", "b"]
        content = [image_part(encoded(picture(20, 20)))]
        stream = client.chat.completions.create(
            model="b",
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            max_tokens=300,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with OpenAI(base_url=url, api_key="key", max_retries=0) as late, pytest.raises(APIConnectionError):
            late.models.list()
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert running.wait(60) == 0
