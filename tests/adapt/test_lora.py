"""Names and arithmetic of low-rank adapters."""

from __future__ import annotations

import pytest
import torch

from internvl.adapt.lora import PeftName, merge, parse_name


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            "vision_model.base_model.model.encoder.layers.0.attn.qkv.base_layer.weight",
            PeftName("vision_model.encoder.layers.0.attn.qkv.weight", "weight"),
        ),
        (
            "language_model.base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight",
            PeftName("language_model.model.layers.1.self_attn.q_proj.weight", "down"),
        ),
        (
            "language_model.base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight",
            PeftName("language_model.model.layers.1.self_attn.q_proj.weight", "up"),
        ),
        ("base_model.model.lm_head.lora_A.weight", PeftName("lm_head.weight", "down")),
        (
            "vision_model.base_model.model.encoder.layers.0.attn.qkv.base_layer.bias",
            PeftName("vision_model.encoder.layers.0.attn.qkv.bias", "weight"),
        ),
        ("mlp1.0.weight", PeftName("mlp1.0.weight", "weight")),
    ],
)
def test_names(key: str, expected: PeftName) -> None:
    assert parse_name(key) == expected


def test_merging() -> None:
    weight, down, up = torch.randn(5, 4), torch.randn(2, 4), torch.randn(5, 2)
    torch.testing.assert_close(merge(weight, down, up, 2.0), weight + 2 * up @ down)


def test_a_merged_weight_answers_like_weight_and_adapter() -> None:
    weight, down, up, x = torch.randn(5, 4), torch.randn(2, 4), torch.randn(5, 2), torch.randn(3, 4)
    apart = x @ weight.T + 2 * (x @ down.T) @ up.T
    torch.testing.assert_close(x @ merge(weight, down, up, 2.0).T, apart)


def test_half_precision_is_summed_in_float32() -> None:
    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    down = torch.full((64, 1), 2.0**-9, dtype=torch.bfloat16)
    up = torch.ones(1, 64, dtype=torch.bfloat16)
    merged = merge(weight, down, up, 1.0)
    assert merged.dtype == torch.bfloat16
    assert merged.item() == 1.125
