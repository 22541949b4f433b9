"""Root-mean-square norms: every library as PyTorch's operators."""

from __future__ import annotations

import ctypes

import pytest
import torch

from internvl.ops import rms_norm as module
from internvl.ops.rms_norm import rms_norm

SHAPES = [(1, 8), (3, 15), (5, 16), (2, 7, 17), (4, 3, 64), (0, 8), (33, 896)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("three_threads")
def test_is_the_formula(kernels: ctypes.CDLL | None, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape) * 3, torch.randn(shape[-1])
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    out = rms_norm(x, weight, 1e-5)
    assert out.shape == x.shape
    torch.testing.assert_close(out, exact.float(), rtol=1e-6, atol=1e-6)


def test_rows_may_lie_apart(kernels: ctypes.CDLL | None) -> None:
    x, weight = torch.randn(9, 5, 64)[:, 1:3], torch.ones(64)
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-6), rms_norm(x.contiguous(), weight, 1e-6), rtol=0, atol=0
    )


def test_rows_do_not_see_each_other(kernels: ctypes.CDLL | None) -> None:
    x, weight = torch.randn(6, 48), torch.randn(48)
    x[2, 5], x[4, 0] = float("nan"), float("inf")
    out = rms_norm(x, weight, 1e-6)
    assert out[[0, 1, 3, 5]].isfinite().all()
    assert out[2].isnan().all()
    assert torch.equal(out[3:4], rms_norm(x[3:4], weight, 1e-6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_numbers_go_through_float32(kernels: ctypes.CDLL | None, dtype: torch.dtype) -> None:
    x = torch.randn(4, 32).to(dtype)
    weight = torch.randn(32).to(dtype)
    exact = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(rms_norm(x, weight, 1e-6), exact.to(dtype) * weight)


def test_gradients_are_those_of_operators(
    kernels: ctypes.CDLL | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(4, 32, requires_grad=True), torch.randn(32, requires_grad=True)
    found = torch.autograd.grad(rms_norm(x, weight, 1e-6).square().sum(), (x, weight))
    monkeypatch.setattr(module, "library", lambda: None)
    expected = torch.autograd.grad(rms_norm(x, weight, 1e-6).square().sum(), (x, weight))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
