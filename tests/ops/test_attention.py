"""Attention in blocks against PyTorch's own with the whole mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from internvl.ops.attention import Block, block_attention

CAUSAL = torch.full((4, 4), -torch.inf).triu(1)
BLOCKS = (
    Block(0, 4, (), CAUSAL),
    Block(4, 6, ((0, 4),), CAUSAL[:2, :2]),
    Block(6, 7, ((1, 3),), CAUSAL[:1, :1]),
    Block(7, 11, ((0, 2), (4, 7)), torch.zeros(4, 4)),
)


def whole_mask(blocks: tuple[Block, ...]) -> Tensor:
    sees_TT = torch.zeros(blocks[-1].last, blocks[-1].last, dtype=torch.bool)
    for first, last, before, bias_QQ in blocks:
        sees_TT[first:last, first:last] = bias_QQ == 0
        for start, end in before:
            sees_TT[first:last, start:end] = True
    return sees_TT


def masked_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_TKD, v_TKD))
    mask_TT = whole_mask(BLOCKS)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask_TT, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize("heads", [(6, 2), (3, 1), (2, 2)])
def test_equals_one_masked_product(heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    qkv = [torch.randn(11, count, 16, requires_grad=True) for count in (*heads, heads[1])]
    before = [x.detach().clone() for x in qkv]
    ours, theirs = block_attention(qkv[0], qkv[1], qkv[2], BLOCKS), masked_attention(*qkv)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grad = torch.randn(ours.shape)
    ours_grads, their_grads = (torch.autograd.grad(out, qkv, grad) for out in (ours, theirs))
    torch.testing.assert_close(ours_grads, their_grads, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([x.detach() for x in qkv], before, rtol=0, atol=0)


def test_ranges_that_touch_are_one() -> None:
    assert [block.keys for block in BLOCKS] == [((0, 4),), ((0, 6),), ((1, 3), (6, 7)), ((0, 2), (4, 11))]
