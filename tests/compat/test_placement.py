"""Moving models, and the map of layers to GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from internvl.compat import AutoModel, split_model
from internvl.compat.placement import FIRST_DEVICE, choose_device
from internvl.errors import ConfigError, DeviceError, InputError

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture
def folder_of(tmp_path: Path, folder: Path):
    """A directory that describes a model of so many layers."""

    def make(num_layers: int) -> Path:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["llm_config"]["num_hidden_layers"] = num_layers
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("num_layers", "gpus", "counts"),
    [(24, 1, [24]), (32, 2, [11 + 1, 20]), (48, 4, [7 + 1, 14, 14, 12]), (3, 8, [1 + 1, 1])],
)
def test_layers_are_split(folder_of, num_layers: int, gpus: int, counts: list[int]) -> None:
    found = split_model(folder_of(num_layers), world_size=gpus)
    layers = [found.pop(f"language_model.model.layers.{index}") for index in range(num_layers)]
    assert set(found) == set(FIRST_DEVICE)
    assert set(found.values()) == {0}
    assert layers[-1] == 0
    assert layers[:-1] == sorted(layers[:-1])
    assert [layers.count(gpu) for gpu in range(len(counts))] == counts


def test_what_cannot_be_split(folder: Path, golden_dir: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        split_model(folder, world_size=0)
    with pytest.raises(ConfigError, match="no language model"):
        split_model(golden_dir / "internvit_300m", world_size=2)


@WITHOUT_GPU
def test_without_a_gpu(folder: Path, model) -> None:
    with pytest.raises(DeviceError, match="no GPU"):
        split_model(folder)
    for move in (
        model.cuda,
        lambda: model.cuda(0),
        lambda: model.to("cuda"),
        lambda: model.to(device="cuda:1"),
    ):
        with pytest.raises(DeviceError, match=r"leave the move out .* to run on the CPU"):
            move()
    with pytest.raises(DeviceError):
        AutoModel.from_pretrained(folder, device_map="cuda:0")


def test_devices() -> None:
    assert choose_device(None) == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device({"": "cpu", "vision_model": "cpu"}) == torch.device("cpu")
    assert choose_device(1) == choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"a": 0, "b": 1}, "over 2 devices"),
        ({}, "over 0 devices"),
        ("nowhere", "no device"),
        ({"": "disk"}, "disk"),
    ],
)
def test_devices_that_are_refused(device_map, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        choose_device(device_map)


def test_moving(folder: Path, tiles: torch.Tensor) -> None:
    model = AutoModel.from_pretrained(folder).eval()
    full = model.extract_feature(tiles)
    model.chat(None, tiles, "what?", {"max_new_tokens": 2})
    assert model.to(torch.bfloat16) is model
    assert model.dtype == torch.bfloat16
    assert model.chat_model.vision_cache.num_bytes == 0
    assert isinstance(model.chat(None, tiles.to(torch.bfloat16), "what?", {"max_new_tokens": 2}), str)
    half = model.extract_feature(tiles.to(torch.bfloat16)).float()
    assert torch.nn.functional.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.99
    assert model.float().cpu().dtype == torch.float32
    assert model.half().dtype == torch.float16
    assert model.bfloat16().device == torch.device("cpu")
    assert sum(one.numel() for one in model.parameters()) > 1000
    with pytest.raises(DeviceError, match="dtype"):
        model.to(torch.int8)
