"""Which linear modules may be changed, and what they fuse."""

from __future__ import annotations

import pytest
import torch

from internvl.adapt.targets import choose, linear_modules
from internvl.errors import InputError
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import SMALL_VIT, chat_config


def test_the_linear_modules_of_a_chat_model() -> None:
    with torch.device("meta"):
        parts = linear_modules(VLM(chat_config("qwen2")))
    layers = {name: rows for name, rows in parts.items() if ".0." in name}
    assert layers == {
        "vit.layers.0.attn.qkv": (48,),
        "vit.layers.0.attn.out": (16,),
        "vit.layers.0.mlp.fc1": (24,),
        "vit.layers.0.mlp.fc2": (16,),
        "llm.layers.0.attn.qkv": (24, 8, 8),
        "llm.layers.0.attn.out": (24,),
        "llm.layers.0.mlp.gate_up": (20, 20),
        "llm.layers.0.mlp.down": (24,),
    }
    assert {"projector.fc1", "projector.fc2"} <= set(parts)


def test_what_is_no_linear_module() -> None:
    with torch.device("meta"):
        model = VLM(chat_config("llama"))
    assert linear_modules(model)["llm.head"] == (40,)
    for pattern in (r"llm\.embed", r"vit\.embed\.patch", r"llm\.norm"):
        with pytest.raises(InputError, match="matches none"):
            choose(model, [(pattern, 1)])


def test_a_tower_alone() -> None:
    with torch.device("meta"):
        assert linear_modules(VisionTower(SMALL_VIT))["layers.1.attn.qkv"] == (48,)
