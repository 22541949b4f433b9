"""A golden chat model as a published script loads it, and small pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from internvl.compat import AutoModel, AutoTokenizer, InternVLChatModel, Tokenizer


@pytest.fixture(scope="session")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "internvl2_5_qwen2"


@pytest.fixture(scope="session")
def model(folder: Path) -> InternVLChatModel:
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert isinstance(loaded, InternVLChatModel)
    return loaded


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True, use_fast=False)


@pytest.fixture
def tiles() -> Tensor:
    """Five tiles of noise of the model's size."""
    return torch.randn(5, 3, 84, 84, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def photo() -> Image.Image:
    return noise(200, 100)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
