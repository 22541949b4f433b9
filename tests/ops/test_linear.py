"""Both products of `ops.linear` agree, and the fast one is taken only where it may be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from internvl.ops import linear as module
from internvl.ops.linear import linear, onednn_is_faster


@pytest.mark.parametrize("shape", [(1, 7), (3, 64), (2, 5, 33), (296, 130)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_the_plain_product(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(19, shape[-1])
    bias = torch.randn(19) if has_bias else None
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


def test_views_that_are_not_contiguous() -> None:
    x = torch.randn(6, 40)[:, ::2]
    weight = torch.randn(20, 9).t()
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_gradients_flow() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(4, 8))


def test_no_rows() -> None:
    assert linear(torch.empty(0, 8), torch.randn(5, 8)).shape == (0, 5)


def test_other_dtypes_keep_their_dtype() -> None:
    out = linear(torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(5, 8, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


def test_choice_depends_on_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    x, weight = torch.randn(2, 8), torch.randn(5, 8, requires_grad=True)
    assert not module._prefers_onednn(x, weight)
    with torch.no_grad():
        assert module._prefers_onednn(x, weight)
    assert isinstance(onednn_is_faster(), bool)
