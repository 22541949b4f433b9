"""A tiny chat model with random weights, and live servers around it."""

from __future__ import annotations

import base64
import io
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from openai import OpenAI
from PIL import Image

import internvl
from internvl import ChatModel, zoo
from internvl.cli.bench import shrink
from internvl.cli.stand_in import write_checkpoint
from internvl.config import ChatConfig
from internvl.serving.app import make_app
from internvl.serving.listen import Punctual
from internvl.serving.settings import Settings


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 px tiles of 4 vision tokens, a token a byte, 2048 positions."""
    path = tmp_path_factory.mktemp("served") / "model"
    config = zoo.find("InternVL2_5-1B").config
    assert isinstance(config, ChatConfig)
    write_checkpoint(shrink(config), path, dtype=torch.float32)
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> ChatModel:
    loaded = internvl.load(checkpoint)
    assert isinstance(loaded, ChatModel)
    return loaded


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application behind a real port of this machine; gives its address."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="warning",
        timeout_graceful_shutdown=5,
        lifespan="on",
        http=Punctual,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def server(model: ChatModel) -> Iterator[str]:
    with serving(make_app(model, Settings(served_names=("tiny", "tiny-too")))) as address:
        yield address


@pytest.fixture(scope="session")
def http(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond that: writing more is an error, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


JSON = {"Content-Type": "application/json"}
"""For bodies that are written here: httpx writes no half surrogate pairs."""
Post = Callable[..., httpx.Response]


@pytest.fixture
def post(http: httpx.Client) -> Post:
    """One chat completion of few tokens."""

    def send(content: Any = "hi", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 4, **fields})

    return send


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_part(content: bytes | str, **fields: Any) -> dict[str, Any]:
    url = content if isinstance(content, str) else data_url(content)
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of an answer that must have this status."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error
