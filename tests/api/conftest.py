"""The golden chat model, and small pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import internvl
from internvl import ChatModel


@pytest.fixture(scope="session")
def model(golden_dir: Path) -> ChatModel:
    loaded = internvl.load(golden_dir / "internvl2_5_qwen2")
    assert isinstance(loaded, ChatModel)
    return loaded


@pytest.fixture
def photo() -> Image.Image:
    """Noise of 200 x 100 pixels: two tiles and a thumbnail."""
    return noise(200, 100)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
