"""Attention for many short sequences: `models.attention.Packed`, cut into blocks for `ops.attention`.

Neighbours share a block, so that fifty captions are a few products instead of fifty, and nothing is padded.
Knows no batches and no model. Shape letters: T packed tokens, Q tokens of a block, H heads, K key-value
heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from internvl.models.attention import Looks
from internvl.ops.attention import Block, block_attention
from internvl.training.shared_prefix import BLOCK


class PackedBlocks:
    """As `Packed`: sequences laid end to end, each causal, the first `prefixes[i]` tokens of sequence i all
    seeing each other. A prefix is never cut, so a long one makes a large block."""

    def __init__(
        self,
        seqlens: Sequence[int],
        device: torch.device | None = None,
        *,
        prefixes: Sequence[int] | None = None,
        looks: Looks | None = None,
    ) -> None:
        self.looks = looks
        prefixes = [0] * len(seqlens) if prefixes is None else prefixes
        counts = torch.tensor(list(seqlens))
        rows_T = torch.arange(len(seqlens)).repeat_interleave(counts)
        pos_T = torch.cat([torch.arange(count) for count in seqlens])
        free_T = pos_T < torch.tensor(list(prefixes))[rows_T]
        self.lengths_T, self.pos_T = counts[rows_T].to(device), pos_T.to(device)
        self.blocks = [
            Block(first, last, before, _bias(rows_T[first:last], free_T[first:last]).to(device))
            for first, last, before in _joined(_pieces(seqlens, prefixes))
        ]

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        return block_attention(q_THD, k_TKD, v_TKD, self.blocks)


_Piece = tuple[int, int, tuple[tuple[int, int], ...]]
"""First and last token (excluded) of a run, and the earlier ranges that all of it sees."""


def _pieces(seqlens: Sequence[int], prefixes: Sequence[int]) -> Iterator[_Piece]:
    """Each sequence whole, or its prefix with what fits beside it, and the rest cut."""
    bounds = pairwise(accumulate(seqlens, initial=0))
    for (first, last), prefix in zip(bounds, prefixes, strict=True):
        end = min(last, first + max(BLOCK, prefix))
        yield first, end, ()
        for start in range(end, last, BLOCK):
            yield start, min(start + BLOCK, last), ((first, start),)


def _joined(pieces: Iterator[_Piece]) -> list[_Piece]:
    """Neighbours that see nothing earlier become one while they fit."""
    blocks: list[_Piece] = []
    for first, last, before in pieces:
        if blocks and not before and not blocks[-1][2] and last - blocks[-1][0] <= BLOCK:
            blocks[-1] = (blocks[-1][0], last, ())
        else:
            blocks.append((first, last, before))
    return blocks


def _bias(rows_Q: Tensor, free_Q: Tensor) -> Tensor:
    """(Q, Q): 0 where a token sees another of its sequence, an earlier one or both in the prefix; else minus
    infinity."""
    count = len(rows_Q)
    sees_QQ = torch.ones(count, count, dtype=torch.bool).tril_() | (free_Q[:, None] & free_Q)
    sees_QQ &= rows_Q[:, None] == rows_Q
    return torch.zeros(count, count).masked_fill(~sees_QQ, -torch.inf)
