"""Names in PEFT's files."""

from __future__ import annotations

import pytest

from internvl.checkpoints.peft_names import PeftName, parse_name


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
        (
            "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector",
            PeftName("model.layers.0.mlp.down_proj.weight", "magnitude"),
        ),
        (
            "base_model.model.q.lora_magnitude_vector.default.weight",
            PeftName("q.weight", "magnitude"),
        ),
        ("mlp1.0.weight", PeftName("mlp1.0.weight", "weight")),
    ],
)
def test_names(key: str, expected: PeftName) -> None:
    assert parse_name(key) == expected
