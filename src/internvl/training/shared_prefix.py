"""Attention for groups: branches that continue one common prefix without seeing each other.

An `Attend` (see `models.attention`), made anew for every batch: it cuts the packed tokens into blocks for
`ops.attention`, which pads nothing. A group with one branch or none is a plain causal sequence. Knows no
batches and no model. Shape letters: T packed tokens, Q tokens of a block, H heads, K key-value heads, D head
width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.models.attention import Looks
from internvl.ops.attention import Block, block_attention

BLOCK = 192
"""Queries of a block: larger ones compute more scores only to hide them, smaller ones cost more calls."""

Groups = Sequence[tuple[int, Sequence[int]]]


class SharedPrefix:
    """`groups`: (prefix length, branch lengths) in packed order; a branch may have no packed tokens."""

    looks: Looks | None = None

    def __init__(self, groups: Groups, device: torch.device | None = None) -> None:
        groups = [_plain(common, branches) for common, branches in groups]
        prefixes: list[int] = []
        lengths: list[int] = []
        counts: list[int] = []
        for common, branches in groups:
            prefixes += [len(counts)] * (1 + len(branches))
            # With the last token, which predicts nothing and is not packed. Rotations that depend on the
            # length (dynamic NTK, longrope) must agree within a group: all have that of its longest sequence.
            lengths += [common + max(branches, default=0) + 1] * (1 + len(branches))
            counts += [common, *branches]
        part_T = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        prefix_T = torch.tensor(prefixes)[part_T]
        self.lengths_T = torch.tensor(lengths)[part_T].to(device)
        self.blocks = [
            Block(run.first, run.last, run.before, _bias(part_T, prefix_T, run).to(device))
            for run in _joined(_runs(groups))
        ]

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        return block_attention(q_THD, k_TKD, v_TKD, self.blocks)


def _plain(common: int, branches: Sequence[int]) -> tuple[int, Sequence[int]]:
    """A branch that is alone belongs to its prefix."""
    return (common + branches[0], ()) if len(branches) == 1 else (common, branches)


class _Run(NamedTuple):
    """Tokens `first` to `last` (excluded) that all see the ranges `before` them."""

    first: int
    last: int
    before: tuple[tuple[int, int], ...]


def _runs(groups: Groups) -> Iterator[_Run]:
    """At most `BLOCK` tokens each: a whole group, or pieces of its prefix and of its branches."""
    start = 0
    for common, branches in groups:
        *inner, end = accumulate(branches, initial=start + common)
        if end - start <= BLOCK:
            yield _Run(start, end, ())
        else:
            yield from _cut(start, start + common, ())
            for first, last in pairwise((*inner, end)):
                yield from _cut(first, last, ((start, start + common),))
        start = end


def _cut(first: int, last: int, before: tuple[tuple[int, int], ...]) -> Iterator[_Run]:
    for start in range(first, last, BLOCK):
        yield _Run(start, min(start + BLOCK, last), (*before, (first, start)) if start > first else before)


def _joined(runs: Iterable[_Run]) -> list[_Run]:
    """Neighbours that see the same become one while they fit; what they see of each other is masked."""
    blocks: list[_Run] = []
    for run in runs:
        if blocks and blocks[-1].before == run.before and run.last - blocks[-1].first <= BLOCK:
            blocks[-1] = blocks[-1]._replace(last=run.last)
        else:
            blocks.append(run)
    return blocks


def _bias(part_T: Tensor, prefix_T: Tensor, run: _Run) -> Tensor:
    """(Q, Q): 0 where a token sees another, an earlier one of its part or its prefix; else minus infinity."""
    part_Q, prefix_Q = part_T[run.first : run.last], prefix_T[run.first : run.last]
    sees_QQ = (part_Q[:, None] == part_Q) | (prefix_Q[:, None] == part_Q)
    return torch.zeros(sees_QQ.shape).masked_fill(~sees_QQ.tril(), -torch.inf)
