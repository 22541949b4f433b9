"""Vectors over HTTP are those of the library."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
import torch
from openai import NotFoundError, OpenAI
from torch.nn.functional import normalize

import internvl
from internvl import ChatModel, ContrastiveModel, VisionModel, zoo
from internvl.api.contrastive import Mode
from internvl.config import VisionConfig
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vit import VisionTower
from internvl.processing.texts import TextProcessor
from internvl.serving.app import make_app
from internvl.serving.settings import Settings
from tests.serving.conftest import encoded, error_of, image_part, picture, serving

TEXTS = ["a dog", "a red car"]


@pytest.fixture(scope="module")
def pair(golden_dir: Path) -> ContrastiveModel:
    loaded = internvl.load(golden_dir / "internvl_14b")
    assert isinstance(loaded, ContrastiveModel)
    return loaded


@pytest.fixture(scope="module")
def tower() -> VisionModel:
    config = zoo.find("InternViT-300M-448px").config
    assert isinstance(config, VisionConfig)
    torch.manual_seed(0)
    return VisionModel(VisionTower(zoo.tiny(config)))


@pytest.fixture(scope="module")
def both(model: ChatModel, pair: ContrastiveModel) -> Iterator[str]:
    settings = Settings(served_names=("tiny",), embedding_names=("pair",))
    with serving(make_app(model, settings, embedding_model=pair)) as address:
        yield address


@pytest.fixture(scope="module")
def of_tower(tower: VisionModel) -> Iterator[httpx.Client]:
    with (
        serving(make_app(tower, Settings(served_names=("tower",)))) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def test_the_official_client_gets_vectors_of_texts(both: str, pair: ContrastiveModel) -> None:
    expected = pair.embed_texts(TEXTS, normalize=True)
    with OpenAI(base_url=f"{both}/v1", api_key="none", max_retries=0) as client:
        assert [one.id for one in client.models.list()] == ["tiny", "pair"]
        for encoding in ("float", "base64"):
            made = client.embeddings.create(model="pair", input=TEXTS, encoding_format=encoding)
            assert [one.index for one in made.data] == [0, 1]
            vectors = [
                np.frombuffer(base64.b64decode(one.embedding), "<f4")
                if isinstance(one.embedding, str)
                else np.array(one.embedding)
                for one in made.data
            ]
            assert np.allclose(np.stack(vectors), expected.numpy(), atol=1e-6)
        assert made.usage.prompt_tokens == sum(len(pair.processor.ids(text)) for text in TEXTS)
        plain = client.embeddings.create(model="pair", input=TEXTS[0])
        assert np.allclose(plain.data[0].embedding, expected[0].numpy(), atol=1e-6)


def test_texts_are_read_as_tokens_once(both: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    ids = TextProcessor.ids

    def watched(self: TextProcessor, text: str, **options: Any) -> list[int]:
        read.append(text)
        return ids(self, text, **options)

    monkeypatch.setattr(TextProcessor, "ids", watched)
    body = {"input": ["a dog " * 90, "a dog"], "model": "pair", "truncate": True}
    made = httpx.post(f"{both}/v1/embeddings", json=body, timeout=60).json()
    assert read == body["input"]
    assert made["usage"]["prompt_tokens"] > 80


@pytest.mark.parametrize("mode", ["C", "G"])
def test_pictures_and_texts_keep_their_order(both: str, pair: ContrastiveModel, mode: str) -> None:
    photos = [picture(60, 40), picture(40, 60, 1)]
    items = [image_part(encoded(photos[0])), "a dog", {"type": "text", "text": "a car"}]
    items.append(image_part(encoded(photos[1])))
    body = {"input": items, "mode": mode, "normalize": False}
    answer = httpx.post(f"{both}/v1/embeddings", json=body, timeout=60)
    vectors = torch.tensor([one["embedding"] for one in answer.json()["data"]])
    images = pair.embed_images(photos, mode)  # type: ignore[arg-type]
    texts = pair.embed_texts(["a dog", "a car"])
    torch.testing.assert_close(vectors, torch.stack((images[0], *texts, images[1])), atol=1e-5, rtol=1e-5)


def test_a_tower_embeds_pictures_only(of_tower: httpx.Client, tower: VisionModel) -> None:
    photo = picture(60, 40)
    answer = of_tower.post("/v1/embeddings", json={"input": [image_part(encoded(photo))]}).json()
    expected = normalize(tower.features(photo).pooled, dim=-1)[0]
    torch.testing.assert_close(torch.tensor(answer["data"][0]["embedding"]), expected, atol=1e-5, rtol=1e-5)
    assert answer["model"] == "tower"
    assert error_of(of_tower.post("/v1/embeddings", json={"input": "text"}), 400)["param"] == "input"
    refused = of_tower.post("/v1/embeddings", json={"input": [image_part(encoded(photo))], "mode": "G"})
    assert error_of(refused, 400)["param"] == "mode"


def test_a_tower_does_not_chat(of_tower: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for path in ("/v1/chat/completions", "/explain"):
        assert error_of(of_tower.post(path, json=body), 404)["code"] == "model_not_found"
    assert of_tower.get("/health").status_code == 200
    assert of_tower.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": TEXTS, "model": "tiny"}, 404, "model"),
        ({"input": []}, 400, "input"),
        ({"input": [1, 2, 3]}, 400, None),
        ({"input": "x", "dimensions": 5}, 400, "dimensions"),
        ({"input": "word " * 200}, 400, None),
        ({"input": [image_part(b"junk")]}, 400, "input[0].image_url"),
        ({"input": [image_part("http://127.0.0.1/x")]}, 400, "input[0].image_url"),
    ],
)
def test_refusals(both: str, fields: dict[str, object], status: int, param: str | None) -> None:
    error = error_of(httpx.post(f"{both}/v1/embeddings", json=fields, timeout=60), status)
    assert param is None or error["param"] == param


def test_a_chat_server_has_no_vectors_unless_asked_to(http: httpx.Client) -> None:
    assert error_of(http.post("/v1/embeddings", json={"input": "x"}), 404)["code"] == "model_not_found"


@pytest.fixture(scope="module")
def alone(pair: ContrastiveModel) -> Iterator[OpenAI]:
    """A dual encoder without a chat model, as `internvl serve nano-c` has it."""
    with (
        serving(make_app(pair, Settings(served_names=("nano-c",)))) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def test_a_dual_encoder_alone_has_vectors_and_no_chat(alone: OpenAI) -> None:
    assert [one.id for one in alone.models.list()] == ["nano-c"]
    with pytest.raises(NotFoundError, match="no chat model is served"):
        alone.chat.completions.create(model="nano-c", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("mode", ["C", "G"])
@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_official_client_gets_vectors_of_pictures(
    alone: OpenAI, pair: ContrastiveModel, mode: Mode, encoding: Literal["float", "base64"] | None
) -> None:
    photo = picture(60, 40)
    items: Any = [image_part(encoded(photo)), "a dog"]
    options: Any = {} if encoding is None else {"encoding_format": encoding}
    made = alone.embeddings.create(model="nano-c", input=items, extra_body={"mode": mode}, **options)
    vectors = [
        np.frombuffer(base64.b64decode(one.embedding), "<f4")
        if isinstance(one.embedding, str)
        else np.array(one.embedding)
        for one in made.data
    ]
    image, text = pair.embed_images(photo, mode, normalize=True), pair.embed_texts("a dog", normalize=True)
    assert np.allclose(np.stack(vectors), torch.cat((image, text)).numpy(), atol=1e-5)
    assert made.model == "nano-c"
    other: Mode = "G" if mode == "C" else "C"
    assert not np.allclose(vectors[0], pair.embed_images(photo, other, normalize=True)[0].numpy(), atol=1e-3)


def test_mode_g_without_query_tokens_is_refused(pair: ContrastiveModel) -> None:
    torch.manual_seed(0)
    config = replace(pair.encoder.config, num_queries=0)
    plain = ContrastiveModel(DualEncoder(config), pair.processor)
    body = {"input": [image_part(encoded(picture(60, 40)))]}
    with (
        serving(make_app(plain, Settings())) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        assert client.post("/v1/embeddings", json=body).status_code == 200
        error = error_of(client.post("/v1/embeddings", json={**body, "mode": "G"}), 400)
        assert error["param"] == "mode"
