"""What is saved in the "hf" layout is what transformers calls by those names, and the other way round.

Its own classes name and compute the tensors; nothing here repeats our tables.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from safetensors.torch import load_file
from transformers import AutoTokenizer, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.modeling_internvl import InternVLVisionModel
from transformers.utils.chat_template_utils import render_jinja_template

from internvl.chat_templates import TEMPLATES, Template
from internvl.checkpoints.chat_jinja import chat_jinja
from internvl.checkpoints.convert import convert
from internvl.checkpoints.load import build, load_model
from internvl.checkpoints.write import save_model
from internvl.config import ChatConfig, VisionConfig
from internvl.models.attention import Packed
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from internvl.processing.conversation import Message, Picture, Role
from internvl.processing.templates import find_template, render
from tests.checkpoints.tiny import LARGE_VIT, SMALL_VIT, chat_config, equal

FAMILIES = ("llama", "internlm2", "qwen2", "qwen3", "phi3")
IMAGE_TOKEN = 39


def random_model(config: Any) -> Any:
    """Weights of the size that trained ones have, so that no activation saturates."""
    model = build(config).to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return model


def our_logits(model: VLM, ids_T: torch.Tensor, tiles_N3HW: torch.Tensor) -> torch.Tensor:
    slots_S = (ids_T == IMAGE_TOKEN).nonzero().squeeze(1)
    x_TD = model.embed(ids_T, slots_S, model.encode_tiles(tiles_N3HW).flatten(0, 1))
    return model.llm.logits(model.llm(x_TD, torch.arange(len(ids_T)), Packed([len(ids_T)])))


def prompt(config: ChatConfig, num_tiles: int, length: int) -> torch.Tensor:
    words = torch.randint(0, IMAGE_TOKEN, (length,))
    words[2 : 2 + num_tiles * config.tokens_per_tile] = IMAGE_TOKEN
    return words


@pytest.mark.parametrize("tower", [SMALL_VIT, LARGE_VIT], ids=["300M", "6B"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_compute_the_same_in_transformers(
    tmp_path: Path, family: str, tower: VisionConfig
) -> None:
    config = chat_config(family, tower)
    model = random_model(config)
    save_model(model, config, tmp_path / "saved", "hf", family=family, image_token_id=IMAGE_TOKEN)
    other, report = InternVLForConditionalGeneration.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    tiles_N3HW = torch.randn(2, 3, 56, 56)
    # Below and beyond the 64 positions at which Phi-3's longrope changes its factors.
    for length in (20, 90):
        ids_T = prompt(config, 2, length)
        with torch.inference_mode():
            theirs = other(input_ids=ids_T[None], pixel_values=tiles_N3HW).logits[0]
            ours = our_logits(model, ids_T, tiles_N3HW)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_longrope_in_a_sliding_window_is_the_same(tmp_path: Path) -> None:
    """The factor, which scales the attention, comes from the whole context, not from the window."""
    config = chat_config("phi3")
    config = replace(config, text=replace(config.text, max_positions=100))
    model = random_model(config)
    save_model(model, config, tmp_path / "saved", "hf", image_token_id=IMAGE_TOKEN)
    other = InternVLForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids_T, tiles_N3HW = prompt(config, 1, 90), torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        theirs = other(input_ids=ids_T[None], pixel_values=tiles_N3HW).logits[0]
        torch.testing.assert_close(our_logits(model, ids_T, tiles_N3HW), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [-2, 1])
def test_the_hidden_layer_of_the_tower_is_the_same(tmp_path: Path, layer: int) -> None:
    config = chat_config("qwen2", select_layer=layer)
    model = random_model(config)
    save_model(model, config, tmp_path / "saved", "hf", image_token_id=IMAGE_TOKEN)
    other = InternVLForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids_T, tiles_N3HW = prompt(config, 1, 12), torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        theirs = other(input_ids=ids_T[None], pixel_values=tiles_N3HW).logits[0]
        torch.testing.assert_close(our_logits(model, ids_T, tiles_N3HW), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_loads_here(tmp_path: Path, family: str) -> None:
    config = chat_config(family)
    model = random_model(config)
    save_model(model, config, tmp_path / "ours", "hf", family=family, image_token_id=IMAGE_TOKEN)
    other = InternVLForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    other.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert equal(again.state_dict(), model.state_dict())
    assert isinstance(again, VLM)
    assert (again.config.text, again.config.vision) == (config.text, config.vision)


@pytest.mark.parametrize("config", [SMALL_VIT, LARGE_VIT], ids=["300M", "6B"])
def test_towers_compute_the_same_in_transformers(tmp_path: Path, config: VisionConfig) -> None:
    tower = random_model(config)
    save_model(tower, config, tmp_path / "saved", "hf")
    other, report = InternVLVisionModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    tiles_N3HW = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        theirs = other(pixel_values=tiles_N3HW).last_hidden_state
        torch.testing.assert_close(tower(tiles_N3HW), theirs, atol=1e-4, rtol=1e-4)
    other.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert isinstance(again, VisionTower)
    assert equal(again.state_dict(), tower.state_dict())


def test_golden_logits_through_transformers(golden_dir: Any, tmp_path: Path) -> None:
    """Official files, converted, give the reference's own logits in transformers."""
    for name in ("internvl2_5_qwen2", "internvl1_5_internlm2"):
        convert(golden_dir / name, tmp_path / name, "hf")
        other = InternVLForConditionalGeneration.from_pretrained(tmp_path / name, dtype=torch.float32)
        expected = load_file(golden_dir / name / "expected.safetensors")
        ids = json.loads((golden_dir / name / "expected.json").read_text())["single"]["input_ids"]
        with torch.inference_mode():
            logits = other(
                input_ids=torch.tensor(ids).view(1, -1), pixel_values=expected["pixel_values_1"]
            ).logits
        torch.testing.assert_close(logits, expected["single.logits"], atol=1e-4, rtol=1e-4)


def test_tokenizer_and_image_processor_of_a_converted_model(golden_dir: Any, tmp_path: Path) -> None:
    """The parts of the processor that run without torchvision."""
    convert(golden_dir / "internvl2_5_qwen2", tmp_path / "hf", "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.context_image_token_id == 525
    assert (tokenizer.start_image_token, tokenizer.end_image_token) == ("<img>", "</img>")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hello"}]}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    message = Message(Role.USER, (Picture("a.jpg"), "\nHello"))
    ours = render(find_template("internvl2_5"), [message], open_answer=True, slots=[1], tags=("", ""))
    assert text == ours.text
    assert text.startswith("<|im_start|>system\n你是书生·万象")
    images = GotOcr2ImageProcessorPil.from_pretrained(tmp_path / "hf")
    assert (images.max_patches, images.crop_to_patches) == (12, True)
    assert list(images.image_mean) == [0.485, 0.456, 0.406]


def test_internlm2_text_becomes_the_same_ids(golden_dir: Any, tmp_path: Path) -> None:
    """Its tokenizer class exists only as remote code; transformers' generic one reads the same files."""
    directory = golden_dir / "internvl1_5_internlm2"
    convert(directory, tmp_path / "hf", "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    cases = json.loads((directory / "expected.json").read_text())["tokenizer"]["cases"]
    assert cases
    for case in cases:
        assert tokenizer(case["text"]).input_ids == case["input_ids"]
    assert tokenizer.context_image_token_id == 642


IMAGE, QUESTION = {"type": "image"}, {"type": "text", "text": "Where {{ 'is' }} \"it\"?"}
TALKS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "Hello\n"}],
    "picture": [{"role": "user", "content": [IMAGE, QUESTION]}],
    "pictures": [{"role": "user", "content": [IMAGE, IMAGE, QUESTION, QUESTION]}],
    "rounds": [
        {"role": "user", "content": [IMAGE, QUESTION]},
        {"role": "assistant", "content": "There."},
        {"role": "user", "content": [QUESTION]},
        {"role": "assistant", "content": [{"type": "text", "text": "Here."}]},
    ],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "no system": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}],
    "open": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}],
    "nothing": [],
}


def rendered_here(template: Template, talk: list[dict[str, Any]], *, open_answer: bool) -> str:
    """A picture is followed by a line break, which is the caller's to write."""
    system, messages = None, []
    for entry in talk:
        content = entry["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if entry["role"] == "system":
            system = "".join(part["text"] for part in parts)
            continue
        words: list[str | Picture] = []
        for part in parts:
            words += [part["text"]] if part["type"] == "text" else [Picture("a.jpg"), "\n"]
        messages.append(Message(Role(entry["role"]), tuple(words)))
    slots = [1 for message in messages for part in message.parts if isinstance(part, Picture)]
    rendered = render(template, messages, system=system, open_answer=open_answer, slots=slots, tags=("", ""))
    return rendered.text


@pytest.mark.parametrize("talk", TALKS.values(), ids=list(TALKS))
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_renders_what_is_rendered_here(name: str, talk: list[dict[str, Any]]) -> None:
    for system in (None, 'Say "}}" \\ {% 你好 %}\n', ""):
        template = find_template(name).with_system(system)
        for is_open in (False, True):
            theirs, _ = render_jinja_template(
                [talk], chat_template=chat_jinja(template), add_generation_prompt=is_open
            )
            assert theirs == [rendered_here(template, talk, open_answer=is_open)]


def test_roles_that_no_template_has_are_refused() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "5"}]
    with pytest.raises(TemplateError, match="roles are user and assistant"):
        render_jinja_template([talk], chat_template=chat_jinja(find_template("Hermes-2")))


@pytest.mark.parametrize("name", ["phi3-chat@2024-05", "internvl_zh", "internlm2-chat"])
def test_a_saved_tokenizer_asks_as_the_model_was_asked(golden_dir: Any, tmp_path: Path, name: str) -> None:
    convert(golden_dir / "internvl2_5_qwen2", tmp_path / "hf", "hf", template=name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for talk in (TALKS["text"], TALKS["rounds"]):
        text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert text == rendered_here(find_template(name), talk, open_answer=True)
