"""Adapters are models to those who ask."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from openai import NotFoundError, OpenAI

from internvl import ChatModel
from internvl.adapt.lora import LoRA, add_adapters
from internvl.checkpoints.adapters import save_adapters
from internvl.serving.app import make_app
from internvl.serving.settings import Settings
from tests.serving.conftest import serving

ASKED = "Say something."


@pytest.fixture(scope="module")
def adapted(model: ChatModel) -> ChatModel:
    """The model as it is with its adapter."""
    trained = copy.deepcopy(model.vlm)
    add_adapters(trained, [(r"llm\..*", LoRA(rank=2))])
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_up" in name:
                parameter.normal_(std=0.5)
    return ChatModel(trained, model.processor)


@pytest.fixture(scope="module")
def tuned(model: ChatModel, adapted: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder: Path = tmp_path_factory.mktemp("adapters") / "mine"
    save_adapters(adapted.vlm, folder)
    settings = Settings(served_names=("tiny",), adapters=(("mine", folder),))
    with (
        serving(make_app(model, settings)) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def test_each_name_answers_with_its_weights(tuned: OpenAI, model: ChatModel, adapted: ChatModel) -> None:
    texts = {}
    for name, same in (("tiny", model), ("mine", adapted)):
        made = tuned.chat.completions.create(
            model=name, messages=[{"role": "user", "content": ASKED}], max_tokens=8
        )
        assert made.model == name
        texts[name] = made.choices[0].message.content or ""
        assert texts[name].strip() == same.chat(ASKED, max_new_tokens=8).text
    assert texts["tiny"] != texts["mine"]
    continued = {
        name: tuned.completions.create(model=name, prompt=ASKED, max_tokens=8).choices[0].text
        for name in texts
    }
    assert continued["tiny"] != continued["mine"]


def test_adapters_are_listed_with_their_model(tuned: OpenAI) -> None:
    assert [one.id for one in tuned.models.list()] == ["tiny", "mine"]
    assert (tuned.models.retrieve("mine").model_extra or {})["parent"] == "tiny"
    with pytest.raises(NotFoundError, match="there is tiny, mine"):
        tuned.completions.create(model="yours", prompt=ASKED)
