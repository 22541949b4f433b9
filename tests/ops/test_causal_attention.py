"""Causal attention of one sequence, on every library of kernels against a mask in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from internvl.ops.causal_attention import causal_attention


def expected(q_THD: Tensor, k_KSD: Tensor, v_KSD: Tensor) -> Tensor:
    group, old = q_THD.shape[1] // len(k_KSD), k_KSD.shape[1] - len(q_THD)
    mask_TS = torch.ones(len(q_THD), k_KSD.shape[1], dtype=torch.bool).tril(old)
    k_HSD, v_HSD = (x.double().repeat_interleave(group, 0) for x in (k_KSD, v_KSD))
    out_HTD = scaled_dot_product_attention(q_THD.double().transpose(0, 1), k_HSD, v_HSD, attn_mask=mask_TS)
    return out_HTD.transpose(0, 1)


@pytest.mark.parametrize("tokens", [1, 2, 7, 48, 101])
@pytest.mark.parametrize("old", [0, 1, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 16), (3, 3, 64), (4, 1, 8)])
@pytest.mark.usefixtures("kernels")
def test_equals_a_mask(tokens: int, old: int, heads: int, kv_heads: int, width: int) -> None:
    torch.manual_seed(0)
    q_THD = torch.randn(tokens, heads, width)
    stores = torch.randn(2, kv_heads, old + tokens + 9, width)  # a cache with room for more
    k_KSD, v_KSD = stores[:, :, : old + tokens]
    found = causal_attention(q_THD, k_KSD, v_KSD)
    torch.testing.assert_close(found.double(), expected(q_THD, k_KSD, v_KSD), rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("kernels")
def test_keys_by_token() -> None:
    """As they come from a projection: (S, K, D), seen from the heads."""
    torch.manual_seed(0)
    q_THD, keys, values = torch.randn(20, 4, 16), torch.randn(20, 2, 16), torch.randn(20, 2, 16)
    k_KSD, v_KSD = keys.transpose(0, 1), values.transpose(0, 1)
    found = causal_attention(q_THD, k_KSD, v_KSD)
    torch.testing.assert_close(found.double(), expected(q_THD, k_KSD, v_KSD), rtol=2e-5, atol=2e-5)


def test_gradients_go_through() -> None:
    q_THD, k_KSD = torch.randn(5, 2, 16, requires_grad=True), torch.randn(2, 5, 16)
    causal_attention(q_THD, k_KSD, k_KSD).sum().backward()
    assert q_THD.grad is not None
