"""Recomputed activations: the same values and gradients, fewer tensors kept, patterns that must match."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from internvl.errors import InputError
from internvl.models.layers import MLP, DropPath
from internvl.training.recompute import recompute

BLOCKS = r"layers\.\d+"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.drop = MLP(12, 24, "gelu"), DropPath(0.5)

    def forward(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        out: Tensor = x + self.drop(attend(self.mlp(x)))
        return out


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x, torch.tanh)
        return x


def gradients(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(torch.randn(5, 12)).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kept(model: nn.Module) -> int:
    """Entries that the forward pass keeps for the backward pass, weights aside."""
    weights, sizes = {p.data_ptr() for p in model.parameters()}, []

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.randn(5, 12))
    return sum(sizes)


def test_gradients_are_the_same_bit_for_bit_with_random_numbers_too() -> None:
    plain, again = Stack(), Stack()
    assert recompute(again, [BLOCKS]) == ["layers.0", "layers.1", "layers.2"]
    assert list(again.state_dict()) == list(plain.state_dict())
    expected, found = gradients(plain), gradients(again)
    assert len(expected) == len(list(plain.parameters()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_under_autocast() -> None:
    plain, again = Stack(), Stack()
    recompute(again, [BLOCKS])
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = gradients(plain), gradients(again)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_less_is_kept() -> None:
    plain, again = Stack(), Stack()
    recompute(again, [BLOCKS])
    assert kept(again) < kept(plain) / 3


def test_of_nested_modules_the_outermost_recomputes() -> None:
    assert recompute(Stack(), [r"layers\.0.*", r"layers\.1\.mlp"]) == ["layers.0", "layers.1.mlp"]


def test_a_copy_has_weights_of_its_own() -> None:
    model = Stack()
    recompute(model, [BLOCKS])
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    x = torch.randn(5, 12)
    assert torch.equal(model(x), x)
    assert not torch.equal(copied.eval()(x), x)


def test_nothing_happens_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stack()
    recompute(model, [BLOCKS])
    monkeypatch.setattr("internvl.training.recompute.checkpoint", lambda *_, **__: pytest.fail("recomputes"))
    with torch.no_grad():
        assert model(torch.randn(5, 12)).shape == (5, 12)


def test_no_pattern_and_a_wrong_one() -> None:
    assert recompute(Stack(), []) == []
    with pytest.raises(InputError, match=r"blocks.* matches none of"):
        recompute(Stack(), [r"blocks\.\d+"])
