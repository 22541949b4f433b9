"""Attention for groups: branches that continue one common prefix without seeing each other.

An `Attend` (see `models.attention`), made anew for every batch. Groups are padded to one length for a
single product; padding lives in this file only. Written out, because the backward pass of the fused
kernel with a mask was up to 30 times slower on the CPU this was measured on (bfloat16, 175 tokens).
Shape letters: T packed tokens, B groups, S padded positions of a group, H heads, K key-value heads,
D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SharedPrefix:
    """`groups`: (prefix length, branch lengths) in packed order; a branch may have no packed tokens."""

    def __init__(self, groups: Sequence[tuple[int, Sequence[int]]]) -> None:
        sizes = [common + sum(branches) for common, branches in groups]
        width, starts = max(sizes), torch.tensor([0, *sizes[:-1]]).cumsum(0)
        offsets_S = torch.arange(width)
        self.valid_BS = offsets_S < torch.tensor(sizes)[:, None]
        self.gather_BS = (starts[:, None] + offsets_S).where(self.valid_BS, starts[:, None])
        sees_B1SS = torch.stack([_mask(common, branches, width) for common, branches in groups])[:, None]
        self.bias_B1SS = torch.zeros(sees_B1SS.shape).masked_fill(~sees_B1SS, -torch.inf)
        self.lengths_T = torch.cat([_lengths(common, branches) for common, branches in groups])

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        repeats = q_THD.shape[1] // k_TKD.shape[1]
        if repeats > 1:
            k_TKD, v_TKD = k_TKD.repeat_interleave(repeats, dim=1), v_TKD.repeat_interleave(repeats, dim=1)
        scaled_THD = q_THD * q_THD.shape[-1] ** -0.5
        q, k, v = (x[self.gather_BS].transpose(1, 2) for x in (scaled_THD, k_TKD, v_TKD))  # (B, H, S, D)
        weights_BHSS = (q @ k.transpose(-1, -2) + self.bias_B1SS.to(q.dtype)).softmax(-1)
        out_BHSD = weights_BHSS @ v
        return out_BHSD.transpose(1, 2)[self.valid_BS]


def _branch_of(common: int, branches: Sequence[int]) -> Tensor:
    """0 for prefix tokens, then 1, 2, ... for the tokens of each branch."""
    counts = torch.tensor([common, *branches])
    return torch.arange(len(counts)).repeat_interleave(counts)


def _mask(common: int, branches: Sequence[int], width: int) -> Tensor:
    """(S, S) of who sees whom; padding sees itself, so that no row is empty."""
    branch_T = _branch_of(common, branches)
    size = len(branch_T)
    mask_SS = torch.eye(width, dtype=torch.bool)
    sees = (branch_T[None] == 0) | (branch_T[None] == branch_T[:, None])
    mask_SS[:size, :size] = sees & torch.ones(size, size, dtype=torch.bool).tril()
    return mask_SS


def _lengths(common: int, branches: Sequence[int]) -> Tensor:
    """Full length of each token's own sequence; a prefix token belongs to the longest one."""
    totals = torch.tensor([common + max(branches, default=0), *(common + branch for branch in branches)])
    return totals[_branch_of(common, branches)]
