"""The attention of groups against `Packed` on the same sequences taken apart: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from internvl.models.attention import Packed
from internvl.training import shared_prefix
from internvl.training.shared_prefix import SharedPrefix

GROUPS = ((3, (2, 0, 4)), (5, (1,)), (2, ()))
LONG = ((290, (20, 0, 140, 131)), (5, ()), (40, (3,)), (400, ()), (64, (80, 7, 300)), (1, (129,)))
Groups = tuple[tuple[int, tuple[int, ...]], ...]


def sequences(groups: Groups) -> list[list[int]]:
    """Packed positions of every branch with its prefix, and of prefixes without branches."""
    rows, start = [], 0
    for common, branches in groups:
        prefix, first = list(range(start, start + common)), start + common
        for branch in branches or (0,):
            rows.append([*prefix, *range(first, first + branch)])
            first += branch
        start = first
    return rows


def apart(groups: Groups, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
    """Every sequence by itself; a prefix token comes out the same in all of them."""
    out_THD = torch.empty_like(q_THD)
    for rows in sequences(groups):
        alone_THD = Packed([len(rows)])(0, q_THD[rows], k_TKD[rows], v_TKD[rows])
        out_THD = out_THD.index_copy(0, torch.tensor(rows), alone_THD)
    return out_THD


def inputs(
    groups: Groups, heads: int, kv_heads: int, width: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    torch.manual_seed(0)
    size = sum(common + sum(branches) for common, branches in groups)
    shapes = [(size, heads, width), (size, kv_heads, width), (size, kv_heads, width)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def assert_equals_apart(groups: Groups, heads: int, kv_heads: int, width: int) -> None:
    qkv = inputs(groups, heads, kv_heads, width)
    ours, theirs = SharedPrefix(groups)(0, *qkv), apart(groups, *qkv)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    grad = torch.randn(ours.shape)
    for one, other in zip(
        torch.autograd.grad(ours, qkv, grad), torch.autograd.grad(theirs, qkv, grad), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(4, 2, 8), (14, 2, 64), (4, 4, 128), (3, 1, 64), (1, 1, 16)]
)
@pytest.mark.parametrize("groups", [GROUPS, LONG])
def test_equals_every_sequence_alone(groups: Groups, heads: int, kv_heads: int, width: int) -> None:
    assert_equals_apart(groups, heads, kv_heads, width)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=4).map(tuple)), min_size=1),
    st.sampled_from([1, 2, 5, 16]),
)
def test_equals_every_sequence_alone_at_any_size_of_block(
    groups: list[tuple[int, tuple[int, ...]]], block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefix, "BLOCK", block)
        assert_equals_apart(tuple(groups), 4, 2, 8)


def test_every_token_stands_in_one_block_of_bounded_size() -> None:
    blocks = SharedPrefix(LONG).blocks
    assert [block.first for block in blocks] == [0, *(block.last for block in blocks[:-1])]
    assert blocks[-1].last == sum(common + sum(branches) for common, branches in LONG)
    assert max(block.last - block.first for block in blocks) <= shared_prefix.BLOCK
    assert len(SharedPrefix([(20, (4, 5))] * 12).blocks) == 2  # six groups of 29 share a block


def test_bfloat16_errs_little_more_than_attention_with_float32_scores() -> None:
    dtype = torch.bfloat16
    half = inputs(LONG, 14, 2, 64, dtype)
    exact = [x.detach().double().requires_grad_() for x in half]
    truth_THD = apart(LONG, *exact)
    grad = torch.randn(truth_THD.shape).to(dtype)
    truth = [truth_THD, *torch.autograd.grad(truth_THD, exact, grad.double())]
    ours_THD = SharedPrefix(LONG)(0, *half)
    ours = [ours_THD, *torch.autograd.grad(ours_THD, half, grad)]
    plain_THD = apart(LONG, *half)
    plain = [plain_THD, *torch.autograd.grad(plain_THD, half, grad)]
    for one, other, true in zip(ours, plain, truth, strict=True):
        assert one.dtype == dtype
        assert (one - true).norm() < 3 * (other - true).norm()


def test_autocast_decides_the_dtype() -> None:
    qkv = inputs(GROUPS, 4, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = SharedPrefix(GROUPS)(0, *qkv)
    assert out.dtype == torch.bfloat16
    expected = SharedPrefix(GROUPS)(0, *(x.bfloat16() for x in qkv))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    out.float().sum().backward()
    assert qkv[0].grad is not None
    assert qkv[0].grad.dtype == torch.float32


def test_views_of_one_product_recompute_and_no_grad() -> None:
    qkv_THD = torch.randn(17, 8, 8, requires_grad=True)
    attend = SharedPrefix(GROUPS)

    def attention(qkv_THD: Tensor) -> Tensor:
        return attend(0, *qkv_THD.split([4, 2, 2], dim=1))

    plain, again = attention(qkv_THD), checkpoint(attention, qkv_THD, use_reentrant=False)
    first = torch.autograd.grad(plain.square().sum(), qkv_THD)
    second = torch.autograd.grad(again.square().sum(), qkv_THD)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(attention(qkv_THD), plain, rtol=0, atol=0)


def test_lengths_are_those_of_the_longest_sequence_of_a_group_with_its_last_token() -> None:
    expected = [8] * 9 + [7] * 6 + [3] * 2
    assert SharedPrefix(GROUPS).lengths_T.tolist() == expected
