"""Sequences in blocks against `Packed`: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.models.attention import Packed
from internvl.training import packed_blocks
from internvl.training.packed_blocks import PackedBlocks

Sequences = list[tuple[int, int]]
"""(length, prefix) of each."""

MIXED = [(7, 0), (5, 3), (1, 1), (12, 12), (400, 0), (300, 20), (250, 230), (193, 193), (30, 4), (3, 0)]


def assert_equals_packed(sequences: Sequences, heads: int = 4, kv_heads: int = 2, width: int = 8) -> None:
    torch.manual_seed(0)
    seqlens, prefixes = [one for one, _ in sequences], [prefix for _, prefix in sequences]
    qkv = [torch.randn(sum(seqlens), count, width).requires_grad_() for count in (heads, kv_heads, kv_heads)]
    ours, theirs = PackedBlocks(seqlens, prefixes=prefixes), Packed(seqlens, prefixes=prefixes)
    assert torch.equal(ours.pos_T, theirs.pos_T)
    assert torch.equal(ours.lengths_T, theirs.lengths_T)
    one, other = ours(0, *qkv), theirs(0, *qkv)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    grad = torch.randn(one.shape)
    for ours_grad, theirs_grad in zip(
        torch.autograd.grad(one, qkv, grad), torch.autograd.grad(other, qkv, grad), strict=True
    ):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 8), (9, 3, 64), (2, 2, 16)])
def test_equals_packed(heads: int, kv_heads: int, width: int) -> None:
    assert_equals_packed(MIXED, heads, kv_heads, width)


@settings(max_examples=20)
@given(
    st.lists(
        st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 3, 8, 50]),
)
def test_equals_packed_at_any_size_of_block(sequences: Sequences, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_blocks, "BLOCK", block)
        assert_equals_packed(sequences)


def test_short_sequences_share_blocks_and_each_token_stands_in_one() -> None:
    assert [block.last for block in PackedBlocks([30] * 20).blocks] == [180, 360, 540, 600]
    blocks = PackedBlocks([n for n, _ in MIXED], prefixes=[prefix for _, prefix in MIXED]).blocks
    assert [block.first for block in blocks] == [0, *(block.last for block in blocks[:-1])]
    assert blocks[-1].last == sum(n for n, _ in MIXED)
