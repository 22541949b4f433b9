"""What an embedder says it is: its weights are all those that decide a picture's vector, packed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from internvl import zoo
from internvl.adapt.lora import LoRA, add_adapters
from internvl.adapt.quantize import quantize
from internvl.api.contrastive import Mode
from internvl.api.vision import VisionModel
from internvl.config import VisionConfig
from internvl.errors import InputError
from internvl.models.vit import VisionTower
from internvl.search.embedders import VisionEmbedder, open_embedder, picture_weights
from tests.checkpoints.tiny import chat_config, write_official
from tests.checkpoints.tiny_contrastive import official_state, write_pair


def tower(*changed: str, packed: bool = False) -> VisionEmbedder:
    config = zoo.find("InternViT-300M-448px").config
    assert isinstance(config, VisionConfig)
    torch.manual_seed(0)
    model = VisionTower(zoo.tiny(config))
    state = model.state_dict()
    for name in changed:
        state[name] += 1
    if packed:
        quantize(model, [(r".*", "int8")])
    return VisionEmbedder(VisionModel(model), "tower")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["layers.1.mlp.fc2.weight", "embed.position"])
def test_a_tower_is_known_by_its_weights(packed: bool, name: str) -> None:
    identity, other = tower(packed=packed).identity, tower(name, packed=packed).identity
    assert identity == tower(packed=packed).identity
    assert identity["weights"] != other["weights"]
    assert {**identity, "weights": ""} == {**other, "weights": ""}
    assert identity["dtype"] == "float32"


def test_a_tower_is_known_by_the_scale_of_its_adapters() -> None:
    def weights(alpha: float) -> object:
        embedder = tower()
        lora = LoRA(rank=2, alpha=alpha)
        add_adapters(embedder.model.tower, [(r"layers\..*", lora)], torch.Generator().manual_seed(1))
        return VisionEmbedder(embedder.model, "tower").identity["weights"]

    assert len({tower().identity["weights"], weights(1), weights(1), weights(2)}) == 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vision_model.embeddings.class_embedding", "CG"),
        ("clip_projector.cross_attn.proj.weight", "CG"),
        ("clip_projector2.cross_attn.proj.weight", "G"),
        ("query_tokens", "G"),
        ("text_projection", ""),
    ],
)
def test_a_dual_encoder_is_known_by_what_makes_vectors_of_pictures(
    tmp_path: Path, name: str, changes: str
) -> None:
    state = official_state()
    write_pair(tmp_path / "a", state=state)
    write_pair(tmp_path / "b", state={**state, name: state[name] + 1})
    modes: tuple[Mode, ...] = ("C", "G")
    for mode in modes:
        a, b = (open_embedder(str(tmp_path / one), mode=mode).identity["weights"] for one in "ab")
        assert (a != b) == (mode in changes)


@pytest.mark.parametrize("mode", ["C", "G"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_known_without_the_encoder(tmp_path: Path, mode: Mode, dtype: str) -> None:
    write_pair(tmp_path)
    found = picture_weights(str(tmp_path), mode=mode, dtype=dtype)
    assert found == open_embedder(str(tmp_path), mode=mode, dtype=dtype).identity["weights"]


def test_a_model_without_a_text_side_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path, chat_config("qwen2"), "qwen2")
    with pytest.raises(InputError, match="is a chat model: name one of InternVL-C or -G"):
        picture_weights(str(tmp_path), mode="C", dtype="float32")
