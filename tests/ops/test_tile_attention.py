"""Attention within tiles, on every library of kernels against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from internvl.ops.tile_attention import tile_attention


def expected(qkv_NPC: Tensor, num_heads: int) -> Tensor:
    parts = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in qkv_NPC.double().chunk(3, dim=-1))
    return scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("tiles", "patches", "heads", "width"),
    [
        (0, 9, 2, 16),
        (1, 1, 1, 16),
        (2, 17, 3, 32),
        (1, 49, 2, 64),
        (3, 96, 1, 128),
        (1, 257, 6, 64),
        (2, 50, 4, 8),
    ],
)
@pytest.mark.usefixtures("kernels")
def test_equals_pytorch(tiles: int, patches: int, heads: int, width: int) -> None:
    torch.manual_seed(0)
    qkv_NPC = torch.randn(tiles, patches, 3 * heads * width) * 2
    torch.testing.assert_close(
        tile_attention(qkv_NPC, heads).double(), expected(qkv_NPC, heads), rtol=5e-5, atol=5e-5
    )


@pytest.mark.usefixtures("kernels")
def test_rows_may_lie_apart() -> None:
    qkv_NPC = torch.randn(2, 600, 2 * 96)[..., ::2]
    torch.testing.assert_close(
        tile_attention(qkv_NPC, 2).double(), expected(qkv_NPC, 2), rtol=5e-5, atol=5e-5
    )


@pytest.mark.parametrize(
    ("tiles", "patches", "heads", "width"),
    [(1, 1, 1, 16), (2, 17, 3, 32), (1, 49, 2, 64), (3, 96, 1, 128), (1, 1030, 2, 64)],
)
@pytest.mark.parametrize("size", [0.1, 2.0, 10.0], ids=["flat", "mixed", "peaked"])
@pytest.mark.usefixtures("kernels")
def test_16_bits_are_off_by_little(tiles: int, patches: int, heads: int, width: int, size: float) -> None:
    """By half a step of values and what queries, keys and probabilities add, far below eight bits."""
    torch.manual_seed(0)
    qkv_NPC = torch.randn(tiles, patches, 3 * heads * width)
    qkv_NPC[..., : 2 * heads * width] *= size**0.5
    wanted_NPC = expected(qkv_NPC, heads)
    apart_NPC = (tile_attention(qkv_NPC, heads, in_16_bits=True) - wanted_NPC).abs()
    largest = qkv_NPC[..., 2 * heads * width :].abs().max()
    assert apart_NPC.max() < largest / 2**8
    assert apart_NPC.square().mean().sqrt() < largest / 2**12


@pytest.mark.usefixtures("kernels")
def test_16_bits_with_a_channel_that_outweighs_the_rest() -> None:
    torch.manual_seed(0)
    qkv_NPC = torch.randn(1, 200, 192)
    qkv_NPC[..., 0] *= 30
    qkv_NPC[..., 65] *= 30
    apart_NPC = (tile_attention(qkv_NPC, 1, in_16_bits=True) - expected(qkv_NPC, 1)).abs()
    assert apart_NPC.max() < qkv_NPC[..., 128:].abs().max() / 2**8


@pytest.mark.parametrize("width", [16, 48, 64, 128])
@pytest.mark.parametrize("patches", [1, 15, 17, 530])
@pytest.mark.parametrize("value", [1.0, -1.0])
@pytest.mark.usefixtures("kernels")
def test_sums_of_16_bits_reach_their_bounds(width: int, patches: int, value: float) -> None:
    """Everything equal makes the largest sums there can be."""
    qkv_NPC = torch.full((1, patches, 3 * width), value)
    found_NPC = tile_attention(qkv_NPC, 1, in_16_bits=True)
    torch.testing.assert_close(found_NPC, torch.full((1, patches, width), value), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-27, 1e-20, 1e30])
@pytest.mark.usefixtures("kernels")
def test_16_bits_take_values_of_any_size(value: float) -> None:
    qkv_NPC = torch.zeros(1, 20, 48)
    qkv_NPC[..., 32:] = value
    found_NPC = tile_attention(qkv_NPC, 1, in_16_bits=True)
    torch.testing.assert_close(found_NPC, torch.full((1, 20, 16), value), rtol=1e-3, atol=1e-30)


@pytest.mark.usefixtures("kernels")
def test_large_scores_do_not_overflow() -> None:
    torch.manual_seed(0)
    qkv_NPC = torch.randn(1, 33, 48) * 60
    torch.testing.assert_close(
        tile_attention(qkv_NPC, 1).double(), expected(qkv_NPC, 1), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("in_16_bits", [False, True])
@pytest.mark.usefixtures("kernels")
def test_what_is_no_number_is_not_hidden(in_16_bits: bool) -> None:
    """A query spoils its own row, a key every row, a value its column."""
    for column, spoilt in ((0, (3, slice(None))), (16, (slice(None), slice(None))), (32, (slice(None), 0))):
        qkv_NPC = torch.ones(1, 70, 48)
        qkv_NPC[0, 3, column] = torch.nan
        is_finite_PC = tile_attention(qkv_NPC, 1, in_16_bits=in_16_bits)[0].isfinite()
        assert not is_finite_PC[spoilt].any()
        is_finite_PC[spoilt] = True
        assert is_finite_PC.all()


def test_gradients_go_through() -> None:
    qkv_NPC = torch.randn(1, 20, 48, requires_grad=True)
    tile_attention(qkv_NPC, 1).sum().backward()
    assert qkv_NPC.grad is not None
    assert qkv_NPC.grad.abs().sum() > 0
