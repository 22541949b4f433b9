"""Other sizes for a built model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from internvl.adapt.resize import resize_images, resize_position_table, resize_vocabulary
from internvl.checkpoints.load import load_model
from internvl.errors import InputError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import SMALL_VIT, chat_config
from tests.checkpoints.tiny_contrastive import PAIR


def test_the_golden_position_table(golden_dir: Any) -> None:
    directory = golden_dir / "internvit_300m"
    expected = load_file(directory / "expected.safetensors")["resize_pos_embeddings"]
    sizes = json.loads((directory / "expected.json").read_text())["inputs"]["resize_pos_embeddings"]
    tower = load_model(directory)
    assert isinstance(tower, VisionTower)
    config = resize_position_table(tower, sizes["new_size"])
    torch.testing.assert_close(tower.embed.position.detach(), expected, atol=1e-4, rtol=1e-4)
    assert tower.config is config
    assert config.image_size == sizes["new_size"]


def test_a_resized_tower_answers_as_before_at_its_new_size() -> None:
    tower = VisionTower(SMALL_VIT).eval()
    tiles = torch.randn(1, 3, 84, 84)
    before = tower(tiles)
    assert resize_position_table(tower, 84).grid == 6
    torch.testing.assert_close(tower(tiles), before)


def test_pictures_of_another_size() -> None:
    model = DualEncoder(PAIR).eval()
    pictures = torch.randn(1, 3, 84, 84)
    before = model.pool_images(model.vit(pictures), generative=True)
    config = resize_images(model, 84)
    assert model.config is config
    assert (config.image_size, config.vision, model.vit.config.image_size) == (84, model.vit.config, 84)
    torch.testing.assert_close(model.pool_images(model.vit(pictures), generative=True), before)
    with pytest.raises(InputError, match="85 is not a positive multiple"):
        resize_images(model, 85)


def test_the_class_entry_and_the_training_state_are_kept() -> None:
    tower = VisionTower(SMALL_VIT)
    tower.embed.position.requires_grad_(False)
    entry = tower.embed.position[:, :1].clone()
    resize_position_table(tower, 112)
    assert torch.equal(tower.embed.position[:, :1], entry)
    assert not tower.embed.position.requires_grad


@pytest.mark.parametrize("size", [0, -14, 60])
def test_sizes_that_do_not_divide(size: int) -> None:
    with pytest.raises(
        InputError, match=f"image size {size} is not a positive multiple of the patch size 14"
    ):
        resize_position_table(VisionTower(SMALL_VIT), size)


def test_new_words_are_unlikely_and_old_ones_unchanged() -> None:
    model = VLM(chat_config("qwen2"))
    inputs, outputs = model.llm.embed.weight.detach().clone(), model.llm.head.weight.detach().clone()
    config = resize_vocabulary(model, 49, torch.Generator().manual_seed(3))
    assert (config.text.vocab_size, model.config, model.llm.config) == (49, config, config.text)
    assert torch.equal(model.llm.embed.weight[:40], inputs)
    assert torch.equal(model.llm.head.weight[:40], outputs)
    torch.testing.assert_close(model.llm.head.weight[40:], outputs.mean(0, keepdim=True).expand(9, -1))
    assert 0.01 < float(model.llm.embed.weight[40:].detach().std()) < 0.03
    assert model.llm.logits(torch.randn(2, 24)).shape == (2, 49)


def test_new_rows_follow_the_generator() -> None:
    rows = []
    for _ in range(2):
        model = VLM(chat_config("qwen2"))
        resize_vocabulary(model, 43, torch.Generator().manual_seed(7))
        rows.append(model.llm.embed.weight[40:].detach())
    assert torch.equal(*rows)


def test_the_mean_of_half_precision_rows_is_taken_in_float32() -> None:
    model = VLM(chat_config("qwen2")).bfloat16()
    expected = model.llm.head.weight.detach().float().mean(0).bfloat16()
    resize_vocabulary(model, 41)
    assert torch.equal(model.llm.head.weight[40], expected)


def test_a_vocabulary_does_not_shrink() -> None:
    model = VLM(chat_config("qwen2"))
    with pytest.raises(InputError, match="has 40 rows and cannot shrink to 39"):
        resize_vocabulary(model, 39)
    assert resize_vocabulary(model, 40).text.vocab_size == 40
