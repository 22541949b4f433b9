"""Scaling changes no output, and lessens what four bits cost where inputs differ in size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from internvl.adapt.activation_aware import Inputs, balance, observe
from internvl.adapt.quantize import quantize
from internvl.adapt.targets import linear_modules
from internvl.models.attention import Packed
from internvl.models.decoder import Decoder
from tests.training.tiny import chat_model

ROWS = 48
INT4 = [(r"layers\..*", "int4")]


def decoder(**changes: object) -> Decoder:
    """Two layers whose inputs have a few channels that are much larger than the others."""
    torch.manual_seed(0)
    config = replace(
        chat_model().config.text, width=128, mlp_width=192, num_heads=4, num_kv_heads=2, head_dim=32
    )
    model = Decoder(replace(config, **changes)).eval().requires_grad_(False)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
            if module.bias is not None:
                module.bias.normal_()
    for block in model.layers:
        for norm in (block.norm1, block.norm2):
            norm.weight[::17] = 40.0
    return model


def hidden(model: Decoder) -> Tensor:
    x_TD = torch.randn(ROWS, model.config.width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(x_TD, torch.arange(ROWS), Packed([ROWS]))


def layers(model: nn.Module) -> list[str]:
    return [name for name in linear_modules(model) if name.startswith("layers.")]


@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": True}, {"qk_norm": True}, {"num_kv_heads": 4}, {"num_kv_heads": 1, "out_bias": True}],
    ids=str,
)
def test_the_model_computes_what_it_did(changes: dict[str, object]) -> None:
    model = decoder(**changes)
    with observe(model) as inputs:
        before = hidden(model)
    weights = {name: model.get_submodule(name).weight.clone() for name in layers(model)}
    changed = balance(model, inputs, layers(model))
    assert {"layers.0.attn.qkv", "layers.0.mlp.gate_up"} <= set(changed)
    assert all(not torch.equal(model.get_submodule(name).weight, weights[name]) for name in changed)
    torch.testing.assert_close(hidden(model), before, rtol=2e-4, atol=2e-4)


def test_four_bits_cost_less() -> None:
    plain, rounded, balanced = decoder(), decoder(), decoder()
    expected = hidden(plain)
    quantize(rounded, INT4)
    with observe(balanced) as inputs:
        hidden(balanced)
    balance(balanced, inputs, layers(balanced))
    quantize(balanced, INT4)
    errors = [float((hidden(model) - expected).square().mean()) for model in (balanced, rounded)]
    assert errors[0] < 0.8 * errors[1]


def test_sums_are_of_all_rows() -> None:
    model = decoder()
    with observe(model) as inputs:
        hidden(model)
        hidden(model)
    assert inputs.keys() == set(layers(model))
    seen: list[Tensor] = []
    handle = model.layers[0].mlp.down.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    hidden(model)
    handle.remove()
    found = inputs["layers.0.mlp.down"]
    assert found.rows == 2 * ROWS
    torch.testing.assert_close(found.size_I, 2 * seen[0].abs().sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.square_I, 2 * seen[0].square().sum(0), rtol=1e-5, atol=1e-5)


def test_only_what_is_named_and_was_seen_changes() -> None:
    model = decoder()
    with observe(model) as inputs:
        hidden(model)
    named = balance(model, inputs, ["layers.1.mlp.gate_up"])
    assert named == ["layers.1.mlp.gate_up"]
    zeros_I = torch.zeros(128)
    unseen = {name: Inputs(zeros_I, zeros_I) for name in layers(model)}
    assert balance(model, unseen, layers(model)) == []
    never = {name: Inputs(zeros_I, zeros_I, rows=3) for name in layers(model)}
    assert balance(model, {"layers.0.attn.qkv": never["layers.0.attn.qkv"]}, layers(model)) == []


def test_a_tower_has_nothing_to_scale() -> None:
    with observe(chat_model().vit) as inputs:
        assert inputs == {}
