"""Which layers are packed how, and what a packed model says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from internvl.adapt.lora import LoRA, add_adapters
from internvl.adapt.quantize import PackedLinear, quantize, rules_of
from internvl.errors import InputError
from internvl.ops.packed import SCHEMES, Scheme
from tests.training.tiny import chat_model


def schemes(model: nn.Module) -> dict[str, str]:
    return {name: module.scheme for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_linear_layer_is_packed(scheme: Scheme) -> None:
    model = chat_model()
    names = quantize(model, rules_of(scheme, model))
    found = schemes(model)
    assert list(found) == names
    assert found["vit.layers.0.mlp.fc1"] == ("bfloat16" if scheme in ("int8", "int4") else scheme)
    assert found["vit.layers.1.attn.qkv"] == ("int8" if scheme == "int4" else scheme)
    assert found["llm.layers.0.attn.qkv"] == found["llm.layers.0.mlp.down"] == scheme
    assert found["llm.head"] == ("int8" if scheme == "int4" else scheme)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tower_alone_is_packed_as_inside_a_model(scheme: Scheme) -> None:
    model, tower = chat_model(), chat_model().vit
    quantize(model, rules_of(scheme, model))
    quantize(tower, rules_of(scheme, tower))
    assert schemes(tower) == schemes(model.vit)


@pytest.mark.parametrize(
    ("scheme", "least"), [("float32", 1 - 1e-6), ("bfloat16", 0.9999), ("int8", 0.999), ("int4", 0.95)]
)
def test_a_packed_model_sees_and_says_the_same(scheme: Scheme, least: float) -> None:
    torch.manual_seed(0)
    model = chat_model()
    size = model.config.tiling.tile_size
    tiles = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        before = model.encode_tiles(tiles)
        quantize(model, rules_of(scheme, model))
        after = model.encode_tiles(tiles)
    assert torch.cosine_similarity(before.flatten(), after.flatten(), dim=0) >= least


def test_rules_of_ones_own() -> None:
    model = chat_model()
    quantize(model, rules_of({r"llm\.layers\.0\..*": "int4", r"llm\..*": "int8"}, model))
    found = schemes(model)
    assert found["llm.layers.0.mlp.down"] == "int4"
    assert found["llm.layers.1.mlp.down"] == "int8"
    assert not any(name.startswith("vit") for name in found)


def test_wrong_rules() -> None:
    model = chat_model()
    with pytest.raises(
        InputError, match="no scheme 'int3': quantize is one of float32, bfloat16, int8, int4"
    ):
        rules_of("int3", model)
    with pytest.raises(InputError, match="no scheme 'fp8'"):
        rules_of({"llm.*": "fp8"}, model)
    with pytest.raises(InputError, match="matches none"):
        quantize(model, rules_of({"audio.*": "int8"}, model))
    add_adapters(model, [(r"llm\.layers\.0\.attn\..*", LoRA(rank=2))])
    with pytest.raises(InputError, match="merge adapters first"):
        quantize(model, rules_of("int8", model))


def test_no_gradients() -> None:
    model = chat_model()
    quantize(model, rules_of("int8", model))
    x = torch.randn(2, model.config.text.width, requires_grad=True)
    with pytest.raises(InputError, match="for inference"):
        model.llm.layers[0].mlp(x)
