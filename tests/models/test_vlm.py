"""The composed model: checked slots, tile batches, construction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.config import ChatConfig, TilingConfig
from internvl.errors import ConfigError, PromptError
from internvl.models.vlm import VLM, tiles_at_once


def test_vision_tokens_go_into_their_slots_in_order(chat_config: ChatConfig) -> None:
    model = VLM(chat_config)
    ids, slots = torch.tensor([1, 9, 9, 2, 9]), torch.tensor([1, 2, 4])
    vision = torch.randn(3, 32)
    x = model.embed(ids, slots, vision)
    assert torch.equal(x[slots], vision)
    assert torch.equal(x[[0, 3]], model.llm.embed(torch.tensor([1, 2])))


@pytest.mark.parametrize("num_vision", [0, 2, 4])
def test_refuses_another_number_of_vision_tokens(chat_config: ChatConfig, num_vision: int) -> None:
    model = VLM(chat_config)
    with pytest.raises(PromptError, match=rf"3 slots .* {num_vision}: every tile needs 4"):
        model.embed(torch.tensor([9, 9, 9]), torch.tensor([0, 1, 2]), torch.randn(num_vision, 32))


def test_text_only(chat_config: ChatConfig) -> None:
    model = VLM(chat_config)
    ids = torch.tensor([3, 4])
    assert torch.equal(
        model.embed(ids, torch.empty(0, dtype=torch.long), torch.empty(0, 32)), model.llm.embed(ids)
    )


def test_tiles_are_encoded_alike_in_any_batch(chat_config: ChatConfig) -> None:
    model = VLM(chat_config).eval()
    tiles = torch.randn(5, 3, 56, 56)
    whole = model.encode_tiles(tiles, batch=5)
    assert whole.shape == (5, chat_config.tokens_per_tile, 32)
    for batch in (1, 2, 4):
        torch.testing.assert_close(model.encode_tiles(tiles, batch=batch), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tile_size", [42, 50])
def test_refuses_tiles_that_do_not_divide(chat_config: ChatConfig, tile_size: int) -> None:
    with pytest.raises(ConfigError, match=f"{tile_size} px"):
        VLM(replace(chat_config, tiling=TilingConfig(tile_size=tile_size)))


def test_canonical_names(chat_config: ChatConfig) -> None:
    names = {name for name, _ in VLM(chat_config).named_parameters()}
    assert {
        "vit.embed.class_token",
        "vit.layers.2.attn.qkv.weight",
        "projector.fc1.weight",
        "llm.layers.1.attn.qkv.weight",
        "llm.layers.1.mlp.gate_up.weight",
        "llm.head.weight",
    } <= names


def test_passes_of_the_tower_fit_the_caches_of_a_cpu(chat_config: ChatConfig) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sizes = {size: replace(chat_config, tiling=TilingConfig(tile_size=size)) for size in (224, 448, 896)}
    assert [tiles_at_once(config, cpu) for config in sizes.values()] == [4, 1, 1]
    assert tiles_at_once(sizes[448], gpu) == 16
