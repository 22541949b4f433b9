"""Rotary embedding: every library as complex numbers have it."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from internvl.ops.rotate import rotate


def angles(tokens: int, width: int) -> Tensor:
    half = torch.rand(tokens, width // 2) * 100 - 50
    return torch.cat((half, half), dim=-1)


@pytest.mark.parametrize(
    ("tokens", "heads", "width"), [(1, 1, 2), (3, 2, 6), (5, 3, 16), (7, 4, 34), (40, 14, 64), (0, 2, 8)]
)
@pytest.mark.usefixtures("three_threads")
def test_pairs_turn_by_their_angle(kernels: ctypes.CDLL | None, tokens: int, heads: int, width: int) -> None:
    x, turns = torch.randn(tokens, heads, width), angles(tokens, width)
    left, right = x.double().chunk(2, dim=-1)
    exact = torch.complex(left, right) * torch.polar(
        torch.ones(tokens, 1, width // 2, dtype=torch.float64), turns[:, None, : width // 2].double()
    )
    found = rotate(x, turns.cos(), turns.sin())
    torch.testing.assert_close(found, torch.cat((exact.real, exact.imag), dim=-1).float(), rtol=0, atol=2e-5)


def test_heads_of_one_product(kernels: ctypes.CDLL | None) -> None:
    """Queries and keys are slices of what one product gave."""
    qkv, turns = torch.randn(11, 8, 32), angles(11, 32)
    q, k, _ = qkv.split([5, 2, 1], dim=1)
    for part in (q, k, q[::2]):
        cos, sin = turns[: len(part)].cos(), turns[: len(part)].sin()
        assert torch.equal(rotate(part, cos, sin), rotate(part.contiguous(), cos, sin))


def test_heads_that_lie_otherwise(kernels: ctypes.CDLL | None) -> None:
    x, turns = torch.randn(3, 11, 32).transpose(0, 1), angles(11, 32)
    cos, sin = turns.cos(), turns.sin()
    torch.testing.assert_close(rotate(x, cos, sin), rotate(x.contiguous(), cos, sin), rtol=0, atol=1e-6)


def test_gradients_and_other_numbers(kernels: ctypes.CDLL | None) -> None:
    """A turn keeps lengths, and its gradient turns back."""
    x, turns = torch.randn(4, 2, 8, requires_grad=True), angles(4, 8)
    grad = torch.randn(4, 2, 8)
    (back,) = torch.autograd.grad(rotate(x, turns.cos(), turns.sin()), x, grad)
    torch.testing.assert_close(back, rotate(grad, turns.cos(), -turns.sin()), rtol=0, atol=1e-5)
    narrow = rotate(x.detach().bfloat16(), turns.cos().bfloat16(), turns.sin().bfloat16())
    assert narrow.dtype == torch.bfloat16
