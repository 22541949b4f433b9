"""Averaged weights against the sum written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from internvl.errors import TrainingError
from internvl.training.ema import EMA


@pytest.fixture
def layer() -> nn.Linear:
    layer = nn.Linear(3, 2).bfloat16()
    layer.bias.requires_grad_(False)
    return layer


def train(layer: nn.Linear, ema: EMA, steps: int) -> list[torch.Tensor]:
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
        ema.update()
        seen.append(layer.weight.detach().float().clone())
    return seen


def test_the_average_is_the_weighted_sum(layer: nn.Linear) -> None:
    start = layer.weight.detach().float().clone()
    ema = EMA(layer, 0.9)
    seen = train(layer, ema, 5)
    expected = 0.9**5 * start + sum(0.1 * 0.9 ** (4 - step) * weight for step, weight in enumerate(seen))
    assert ema.tensors().keys() == {"weight"}
    assert ema.tensors()["weight"].dtype == torch.float32
    torch.testing.assert_close(ema.tensors()["weight"], expected)


def test_averages_stand_in_and_the_weights_come_back(layer: nn.Linear) -> None:
    ema = EMA(layer, 0.5)
    train(layer, ema, 3)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with ema.swapped():
        assert torch.equal(layer.weight, ema.tensors()["weight"].bfloat16())
        assert not torch.equal(layer.weight, before)
        assert torch.equal(layer.bias, bias)
    assert torch.equal(layer.weight, before)


def test_the_weights_come_back_after_an_error(layer: nn.Linear) -> None:
    ema = EMA(layer, 0.5)
    train(layer, ema, 3)
    before = layer.weight.detach().clone()
    with pytest.raises(KeyError), ema.swapped():
        ema.tensors()["no such weight"]
    assert torch.equal(layer.weight, before)


def test_a_restored_average_continues_exactly(layer: nn.Linear) -> None:
    ema = EMA(layer, 0.9)
    train(layer, ema, 2)
    saved = copy.deepcopy(ema.tensors())
    again = EMA(layer, 0.9)
    again.restore(saved)
    train(layer, ema, 1)
    again.update()
    assert torch.equal(ema.tensors()["weight"], again.tensors()["weight"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "1 parameters differ, first weight"),
        ({"weight": torch.zeros(2, 3), "other": torch.zeros(1)}, "first other"),
        ({"weight": torch.zeros(3, 2)}, r"\(3, 2\), the weight is \(2, 3\)"),
    ],
)
def test_averages_of_another_model_are_refused(
    layer: nn.Linear, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        EMA(layer, 0.9).restore(tensors)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(layer: nn.Linear, decay: float) -> None:
    with pytest.raises(TrainingError, match="between 0 and 1"):
        EMA(layer, decay)
