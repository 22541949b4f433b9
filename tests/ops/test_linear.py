"""Both products of `ops.linear` agree in value and gradient, and the fast one is taken only where it may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from internvl.ops import linear as module
from internvl.ops.linear import linear, onednn_is_faster, product
from internvl.ops.native import library

fast = pytest.mark.skipif(not onednn_is_faster(), reason="this processor takes PyTorch's own product")
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@pytest.mark.parametrize("shape", [(1, 7), (3, 64), (2, 5, 33), (296, 130)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_the_plain_product(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(19, shape[-1])
    bias = torch.randn(19) if has_bias else None
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(library() is None, reason="no kernels were built: PyTorch's product is taken")
@pytest.mark.parametrize("shape", [(520,), (1, 520), (4, 520), (2, 2, 520), (5, 520)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_few_rows_of_a_large_weight(
    shape: tuple[int, ...], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel reads it, for up to four rows and without gradients."""
    torch.manual_seed(0)
    taken: list[torch.Size] = []

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        taken.append(x.shape)
        return read(x, weight, bias)

    read = module._read
    monkeypatch.setattr(module, "_prefers_onednn", lambda *_: False)
    monkeypatch.setattr(module, "_read", spy)
    x, weight, bias = torch.randn(shape), torch.randn(8101, 520), torch.randn(8101) if has_bias else None
    expected = F.linear(x, weight, bias)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias), expected, atol=2e-4, rtol=1e-5)
    assert taken == ([] if shape == (5, 520) else [x.shape])
    weight.requires_grad_()
    torch.testing.assert_close(linear(x, weight, bias), expected, atol=2e-4, rtol=1e-5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert len(taken) <= 1


def test_views_that_are_not_contiguous() -> None:
    x = torch.randn(6, 40)[:, ::2]
    for weight in (torch.randn(20, 9).t(), torch.randn(9, 50)[:, :20], torch.randn(18, 20)[::2]):
        with torch.inference_mode():
            torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(product(x, weight.t()), x @ weight.t(), atol=1e-5, rtol=1e-5)


def gradients(function: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor | None]:
    """Gradients of x, weight, bias for a loss that weighs outputs unequally; frozen tensors give None."""
    leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in (x, weight, bias)]
    out = function(leaves[0], leaves[1], leaves[2])  # type: ignore[arg-type]
    (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    return [None if t is None else t.grad for t in leaves]


@pytest.mark.parametrize("shape", [(1, 80), (2, 5, 33), (1, 1, 2), (40, 130)])
@pytest.mark.parametrize("trained", [(1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 1), (1, 1, None), (0, 1, None)])
def test_gradients_equal_those_of_the_plain_product(
    shape: tuple[int, ...], trained: tuple[int | None, ...]
) -> None:
    torch.manual_seed(0)
    sizes = (shape, (19, shape[-1]), (19,))
    x, weight, bias = (
        None if flag is None else torch.randn(size).requires_grad_(bool(flag))
        for size, flag in zip(sizes, trained, strict=True)
    )
    assert x is not None
    assert weight is not None
    ours, theirs = gradients(linear, x, weight, bias), gradients(F.linear, x, weight, bias)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@fast
def test_frozen_weights_keep_no_input_and_cost_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8)
    out = linear(x, weight)
    assert out.grad_fn is not None
    kept = [t for t in out.grad_fn.saved_tensors if t is not None]  # type: ignore[attr-defined]
    assert [tuple(t.shape) for t in kept] == [(5, 8)]
    monkeypatch.setattr(module, "_grad_weight", lambda *_: pytest.fail("a frozen weight has no gradient"))
    out.sum().backward()


def test_one_weight_used_twice() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 16), torch.randn(16, 16, requires_grad=True)
    results = []
    for function in (linear, F.linear):
        (grad,) = torch.autograd.grad(function(function(x, weight), weight).square().sum(), weight)
        results.append(grad)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    results = []
    for function in (linear, F.linear):
        (first,) = torch.autograd.grad(function(x, weight).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)


def test_recomputed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, 12, requires_grad=True), torch.randn(12, 12, requires_grad=True)

    def layer(value: Tensor) -> Tensor:
        return linear(torch.tanh(linear(value, weight)), weight)

    plain = torch.autograd.grad(layer(x).square().sum(), (x, weight))
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), (x, weight))
    torch.testing.assert_close(plain, again, rtol=0, atol=0)


def test_no_rows() -> None:
    weight = torch.randn(5, 8, requires_grad=True)
    out = linear(torch.empty(0, 8), weight)
    assert out.shape == (0, 5)
    out.sum().backward()
    assert weight.grad is not None


def test_other_dtypes_keep_their_dtype() -> None:
    out = linear(torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(5, 8, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


def test_autocast_decides_the_dtype() -> None:
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x, weight)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@fast
def test_a_backward_pass_inside_autocast_stays_exact() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 80, requires_grad=True), torch.randn(5, 80)
    out = linear(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        out.backward(torch.ones_like(out))
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 80), rtol=1e-5, atol=1e-5)


def test_choice_depends_on_device_dtype_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(2, 8), torch.randn(5, 8)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    assert module._prefers_onednn(x, weight)
    assert not module._prefers_onednn(x.double(), weight.double())
    assert not module._prefers_onednn(x[:0], weight)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: False)
    assert not module._prefers_onednn(x, weight)
