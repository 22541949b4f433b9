"""Small configurations shared by the tests of the models."""

from __future__ import annotations

import pytest

from internvl.config import ChatConfig, ProjectorConfig, RopeConfig, TextConfig, TilingConfig, VisionConfig


@pytest.fixture
def vision_config() -> VisionConfig:
    return VisionConfig(image_size=56, width=24, num_layers=3, num_heads=3, mlp_width=40)


@pytest.fixture
def text_config() -> TextConfig:
    return TextConfig(
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


@pytest.fixture
def chat_config(vision_config: VisionConfig, text_config: TextConfig) -> ChatConfig:
    return ChatConfig(
        vision=vision_config,
        projector=ProjectorConfig(),
        text=text_config,
        tiling=TilingConfig(tile_size=56),
        template="internvl2_5",
    )
