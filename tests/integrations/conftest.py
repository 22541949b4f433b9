"""A tiny text side of InternVL-C with the vocabulary of the golden fixture."""

from __future__ import annotations

import pytest

from internvl.api.contrastive import TextModel
from internvl.config import ContrastiveConfig, TextConfig, VisionConfig
from internvl.models.dual_encoder import TextEncoder
from internvl.processing.texts import TextProcessor
from internvl.processing.tokenizer import load_tokenizer
from tests.conftest import GoldenFixtures


@pytest.fixture
def text_model(golden_dir: GoldenFixtures) -> TextModel:
    text = TextConfig(
        vocab_size=560, width=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=12, mlp_width=64
    )
    vision = VisionConfig(image_size=28, width=24, num_layers=1, num_heads=3, mlp_width=40)
    config = ContrastiveConfig(vision=vision, text=text, embed_dim=20, pool_heads=3, num_queries=0)
    tokenizer = load_tokenizer(golden_dir / "internvl_14b")
    return TextModel(TextEncoder(config), TextProcessor(tokenizer, vocab_size=560))
