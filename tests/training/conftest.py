"""A tiny chat model."""

from __future__ import annotations

import pytest

from internvl.config import ChatConfig, ProjectorConfig, RopeConfig, TextConfig, TilingConfig, VisionConfig
from internvl.models.vlm import VLM


@pytest.fixture
def model() -> VLM:
    text = TextConfig(
        vocab_size=50,
        width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_width=48,
        rope=RopeConfig(theta=1e4),
        max_positions=64,
    )
    vision = VisionConfig(image_size=56, width=24, num_layers=2, num_heads=3, mlp_width=40)
    return VLM(
        ChatConfig(
            vision=vision,
            projector=ProjectorConfig(),
            text=text,
            tiling=TilingConfig(tile_size=56, dynamic=False),
            template="internvl2_5",
        )
    )
