"""Causal attention of the last tokens of one sequence, compiled where it can be.

Of several tokens in float32 without gradients, heads a multiple of 16 wide, the kernel of
`csrc/attention.cpp` runs: it repeats no heads and computes no masked score. PyTorch's serves everything else.
Knows no sequences but one. Shape letters: T tokens, H heads, K key-value heads, S cache positions, D head
width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from internvl.ops.native import address, count, library, origin, serves
from internvl.ops.tile_attention import COLUMNS


def causal_attention(q_THD: Tensor, k_KSD: Tensor, v_KSD: Tensor) -> Tensor:
    """Attention of the last T of S positions, scaled by D ** -0.5; returns (T, H, D)."""
    num_queries, num_heads, width = q_THD.shape
    num_kv_heads, length, _ = k_KSD.shape
    group = num_heads // num_kv_heads
    if num_queries == 1:  # one token sees everything: its query heads of a group act as a sequence of queries
        q_KGD = q_THD.view(num_kv_heads, group, width)
        return scaled_dot_product_attention(q_KGD[None], k_KSD[None], v_KSD[None]).view(1, num_heads, width)
    if _is_for_kernel(q_THD, k_KSD, v_KSD):
        return _compiled(q_THD.contiguous(), k_KSD, v_KSD)
    mask = None
    if length > num_queries:
        mask = torch.ones(num_queries, length, dtype=torch.bool, device=q_THD.device)
        mask = mask.tril_(length - num_queries)
    k_HSD, v_HSD = (x.repeat_interleave(group, dim=0) if group > 1 else x for x in (k_KSD, v_KSD))
    out_1HTD = scaled_dot_product_attention(
        q_THD.transpose(0, 1)[None], k_HSD[None], v_HSD[None], attn_mask=mask, is_causal=mask is None
    )
    return out_1HTD[0].transpose(0, 1)


def _compiled(q_THD: Tensor, k_KSD: Tensor, v_KSD: Tensor) -> Tensor:
    native, out_THD = library(), torch.empty_like(q_THD)
    assert native is not None
    num_queries, num_heads, width = q_THD.shape
    sizes = (num_queries, k_KSD.shape[1], k_KSD.stride(0), k_KSD.stride(1), num_heads, len(k_KSD), width)
    native.causal_attention(
        address(q_THD), origin(k_KSD), origin(v_KSD), *map(count, sizes), address(out_THD)
    )
    return out_THD


def _is_for_kernel(q_THD: Tensor, k_KSD: Tensor, v_KSD: Tensor) -> bool:
    tensors = (q_THD, k_KSD, v_KSD)
    return (
        serves(*tensors)
        and all(x.stride(-1) == 1 for x in tensors)
        and k_KSD.stride() == v_KSD.stride()
        and q_THD.shape[-1] % COLUMNS == 0
        and library() is not None
    )
