"""Frozen weights in int8."""

from __future__ import annotations

import pytest
import torch

from internvl.adapt.qlora import Int8Linear, quantize_linears, quantize_rows
from internvl.errors import InputError
from internvl.models.layers import Linear
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import chat_config


def test_every_value_is_within_half_a_step() -> None:
    weight = torch.randn(5, 64)
    values, scale = quantize_rows(weight)
    assert values.dtype == torch.int8
    assert values.abs().amax(1).tolist() == [127] * 5
    assert ((values * scale - weight).abs() <= scale / 2 + 1e-7).all()


def test_a_row_of_zeros() -> None:
    values, scale = quantize_rows(torch.zeros(2, 3))
    assert not values.any()
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_its_dense_weight(bias: bool) -> None:
    base = Linear(7, 5, bias=bias)
    layer = Int8Linear(base)
    x = torch.randn(2, 3, 7, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected = torch.nn.functional.linear(y, layer.dense_weight(), base.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(x.grad, y.grad)


def test_autocast_and_bfloat16() -> None:
    layer = Int8Linear(Linear(16, 8, dtype=torch.bfloat16))
    x = torch.randn(3, 16, dtype=torch.bfloat16, requires_grad=True)
    assert layer(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        wide = torch.randn(3, 16, requires_grad=True)
        layer(wide).sum().backward()
    assert wide.grad is not None
    assert wide.grad.dtype == torch.float32


def test_nothing_of_it_is_trained() -> None:
    model = VLM(chat_config("qwen2"))
    names = quantize_linears(model, [r"llm\.layers\..*"])
    assert len(names) == 8
    owners = {name.removesuffix(".weight") for name, _ in model.named_parameters()}
    assert owners.isdisjoint(names)
    held = model.get_submodule("llm.layers.0.mlp.down")
    assert isinstance(held, Int8Linear)
    assert held.weight_int8.element_size() == 1


def test_twice_is_refused() -> None:
    model = VLM(chat_config("llama"))
    quantize_linears(model, [r"llm\..*\.down"])
    with pytest.raises(InputError, match=r"llm\.layers\.0\.mlp\.down is a Int8Linear"):
        quantize_linears(model, [r"llm\..*\.down"])
