"""A tiny chat model on disk, a picture, and the command line run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import internvl
from internvl import ContrastiveModel, zoo
from internvl.checkpoints.write import save_model
from internvl.cli.bench import shrink
from internvl.cli.main import main
from internvl.cli.stand_in import write_checkpoint
from internvl.config import ChatConfig, VisionConfig
from internvl.models.vit import VisionTower


@dataclass(frozen=True)
class Finished:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        loaded = json.loads(self.out)
        assert isinstance(loaded, dict)
        return loaded


Run = Callable[..., Finished]


def tiny_config() -> ChatConfig:
    config = zoo.find("InternVL2_5-1B").config
    assert isinstance(config, ChatConfig)
    return shrink(config)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A chat checkpoint: 56 px tiles of 4 vision tokens, 512 vocabulary rows, 2048 positions."""
    path = tmp_path_factory.mktemp("chat") / "model"
    write_checkpoint(tiny_config(), path, dtype=torch.float32)
    return str(path)


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stand-alone vision tower: 16 patches, width 32, 2 layers."""
    config = zoo.find("InternViT-300M-448px").config
    assert isinstance(config, VisionConfig)
    path = tmp_path_factory.mktemp("tower") / "model"
    torch.manual_seed(0)
    small = zoo.tiny(config)
    save_model(VisionTower(small), small, path)
    return str(path)


@pytest.fixture(scope="module")
def contrastive(golden_dir: Path) -> ContrastiveModel:
    """The dual encoder that lies at `path`; with one thread, so that sums have one order."""
    torch.set_num_threads(1)
    loaded = internvl.load(golden_dir / "internvl_14b")
    assert isinstance(loaded, ContrastiveModel)
    return loaded


@pytest.fixture
def path(golden_dir: Path) -> str:
    return str(golden_dir / "internvl_14b")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """112 x 56 pixels: 2 x 1 tiles and a thumbnail."""
    return save_noise(tmp_path / "photo.png", 112, 56)


def save_noise(path: Path, width: int, height: int, seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> Finished:
        capsys.readouterr()
        status = main(words)
        captured = capsys.readouterr()
        return Finished(status, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
