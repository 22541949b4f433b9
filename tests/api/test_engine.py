"""The engine of a chat model gives the answers that its `chat` gives."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl import ChatModel
from internvl.adapt.lora import LoRA, add_adapters
from internvl.api.engine import make_engine, make_intake, make_request, make_vocabulary
from internvl.checkpoints.adapters import load_beside, save_adapters
from internvl.config import IMG_CONTEXT
from internvl.engine.constraint import Constraint
from internvl.engine.request import EngineRequest
from internvl.engine.settings import EngineSettings
from internvl.errors import InputError, UnknownNameError
from internvl.processing.conversation import from_prompt
from tests.api.conftest import noise
from tests.engine.tiny import finish, ids_of, last_of

SMALL = EngineSettings(num_pages=64, page_size=8, max_step_tokens=48)


def ask(model: ChatModel, key: str, prompt: str, images: list[Any], **options: Any) -> EngineRequest:
    fields = {name: options.pop(name) for name in ("adapter", "constraint") if name in options}
    inputs = model.processor(from_prompt(prompt, images))
    return make_request(key, inputs, model.sampling(max_new_tokens=8, **options), **fields)


def test_answers_are_those_of_chat(model: ChatModel) -> None:
    engine = make_engine(model, SMALL)
    photos = [noise(200, 100), noise(84, 84, 1)]
    for number in range(3):
        engine.submit(ask(model, str(number), f"What is this? {number}", photos[:number]))
    deltas = finish(engine)
    for number in range(3):
        reply = model.chat(f"What is this? {number}", photos[:number], max_new_tokens=8)
        assert ids_of(deltas, str(number)) == reply.ids
        text = "".join(delta.text for delta in deltas if delta.key == str(number))
        assert text.strip() == reply.text
    usage = last_of(deltas, "2").usage
    assert usage is not None
    assert usage.image_tokens == 4 * model.config.tokens_per_tile


def test_the_model_and_its_engine_share_vision_tokens(model: ChatModel) -> None:
    model.vision_cache.clear()
    photo = noise(84, 84, 7)
    model.chat("What is this?", [photo], max_new_tokens=2)
    engine = make_engine(model, SMALL)
    engine.submit(ask(model, "a", "What is this?", [photo]))
    finish(engine)
    stats = engine.stats()
    assert (stats.tiles, stats.vision_queries, stats.vision_hits) == (0, 1, 1)


def test_plans_can_be_made_elsewhere(model: ChatModel) -> None:
    engine = make_engine(model, SMALL)
    intake = make_intake(model, ["mine"], SMALL, engine.intake.sizes)
    request = ask(model, "a", "What?", [noise(84, 84)], stop=("x",))
    assert intake.plan(request) == engine.plan(request)
    assert intake.plan(ask(model, "a", "What?", [], adapter="mine")).tiles == 0
    with pytest.raises(UnknownNameError, match="there is mine"):
        intake.plan(ask(model, "a", "What?", [], adapter="yours"))
    with pytest.raises(InputError, match="cannot be followed"):
        intake.plan(ask(model, "a", "What?", [], constraint=Constraint(kind="regex", value="(")))


def test_bytes_of_tokens_make_up_the_text(model: ChatModel) -> None:
    vocabulary = make_vocabulary(model.processor)
    text = "A photo of two dogs, 3 cats and \u00e9\u4e2d!"
    ids = vocabulary.encode(text)
    assert b"".join(vocabulary.tokens[id] for id in ids).decode() == text
    assert model.processor.tokenizer.token_id(IMG_CONTEXT) in vocabulary.special_ids


@pytest.mark.parametrize(
    "text", ["<ref>a dog</ref><box>[[1, 2, 3, 4]]</box>", "<img>", "a<IMG_CONTEXT>", "<|im_start|>x"]
)
def test_marks_in_forms_are_text(model: ChatModel, text: str) -> None:
    vocabulary = make_vocabulary(model.processor)
    ids = vocabulary.encode(text)
    assert b"".join(vocabulary.tokens[id] for id in ids).decode() == text
    assert not set(ids) & set(vocabulary.special_ids)
    engine = make_engine(model, SMALL, keep_tags=True)
    request = ask(model, "a", "Which?", [], constraint=Constraint(kind="choice", value=(text,)))
    request = replace(request, sampling=replace(request.sampling, max_new_tokens=len(text) + 1))
    engine.submit(request)
    deltas = finish(engine)
    assert "".join(delta.text for delta in deltas) == text
    assert last_of(deltas, "a").finish_reason == "stop"


def test_an_answer_of_a_given_form(model: ChatModel) -> None:
    pytest.importorskip("llguidance")
    engine = make_engine(model, SMALL)
    constraint = Constraint(kind="choice", value=("yes", "no"))
    engine.submit(ask(model, "a", "Is it?", [], constraint=constraint))
    text = "".join(delta.text for delta in finish(engine))
    assert text in ("yes", "no")
    schema = json.dumps({"type": "boolean"})
    engine.submit(ask(model, "a", "Is it?", [], constraint=Constraint(kind="json_schema", value=schema)))
    assert json.loads("".join(delta.text for delta in finish(engine))) in (True, False)


def test_adapters_come_from_directories(model: ChatModel, tmp_path: Path) -> None:
    trained = copy.deepcopy(model.vlm)
    add_adapters(trained, [(r"llm\..*", LoRA(rank=2))])
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_up" in name:
                parameter.normal_(std=0.5)
    projector = "projector.fc1.weight"
    with torch.no_grad():
        trained.get_parameter(projector).mul_(2)
    save_adapters(trained, tmp_path / "adapter", trained=[projector, "projector.fc1.bias"])
    before = {name: value.clone() for name, value in model.vlm.state_dict().items()}
    engine = make_engine(model, SMALL, adapters={"mine": tmp_path / "adapter"})
    photo = noise(84, 84, 3)
    for name in ("", "mine"):
        engine.submit(ask(model, name, "What is this?", [photo], adapter=name or None))
    deltas = finish(engine)
    assert ids_of(deltas, "") == model.chat("What is this?", [photo], max_new_tokens=8).ids
    theirs = ChatModel(trained, model.processor)
    assert ids_of(deltas, "mine") == theirs.chat("What is this?", [photo], max_new_tokens=8).ids
    assert ids_of(deltas, "mine") != ids_of(deltas, "")
    for name, value in model.vlm.state_dict().items():
        assert torch.equal(value, before[name]), name
    beside = load_beside(model.vlm, tmp_path / "adapter")
    assert beside.llm.embed.weight is model.vlm.llm.embed.weight
