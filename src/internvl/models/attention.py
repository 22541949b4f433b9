"""Who may look at whom, and where keys and values live.

The decoder works on packed tokens and calls `attend(layer, q, k, v)`; everything about sequences,
masks and caches is the caller's object. `Packed` serves whole sequences (training, evaluation,
logits), `KVCache` serves generation. Batch is not a dimension of the decoder, so padding does not exist.
Shape letters: T packed tokens, B sequences, H heads, K key-value heads, S cache positions, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from internvl.config import TextConfig
from internvl.ops.causal_attention import causal_attention
from internvl.ops.decoder_step import Cells


class Looks(NamedTuple):
    """Query tokens that look at pictures: those at packed rows `rows_RQ[i]` see picture `pictures_R[i]` of
    `features_BPC`, the tower's output."""

    rows_RQ: Tensor
    pictures_R: Tensor
    features_BPC: Tensor


class Attend(Protocol):
    """Attention over packed tokens. `lengths_T`: full length of each token's sequence. `looks`: which of the
    tokens look at pictures, in decoders with cross attention (`models.qllama`)."""

    lengths_T: Tensor
    looks: Looks | None

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Returns (T, H, D)."""
        ...


def prefix_attention(q_THD: Tensor, k_KSD: Tensor, v_KSD: Tensor, prefix: int) -> Tensor:
    """As `causal_attention` of a whole sequence, but its first `prefix` tokens all see each other."""
    if not prefix:
        return causal_attention(q_THD, k_KSD, v_KSD)
    group = q_THD.shape[1] // len(k_KSD)
    k_HPD, v_HPD = (x[:, :prefix].repeat_interleave(group, dim=0) for x in (k_KSD, v_KSD))
    first_1HPD = scaled_dot_product_attention(q_THD[:prefix].transpose(0, 1)[None], k_HPD[None], v_HPD[None])
    first_PHD = first_1HPD[0].transpose(0, 1)
    if len(q_THD) == prefix:
        return first_PHD
    return torch.cat((first_PHD, causal_attention(q_THD[prefix:], k_KSD, v_KSD)))


class Packed:
    """Whole sequences laid end to end; each token sees its own sequence up to itself, and the first
    `prefixes[i]` tokens of sequence i all see each other."""

    def __init__(
        self,
        seqlens: Sequence[int],
        device: torch.device | None = None,
        *,
        prefixes: Sequence[int] | None = None,
        looks: Looks | None = None,
    ) -> None:
        self.bounds = list(pairwise(accumulate(seqlens, initial=0)))
        self.prefixes = [0] * len(seqlens) if prefixes is None else list(prefixes)
        self.looks = looks
        counts = torch.tensor(list(seqlens), device=device)
        self.lengths_T = counts.repeat_interleave(counts)
        self.pos_T = torch.cat([torch.arange(count, device=device) for count in seqlens])

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        outs = [
            prefix_attention(q_THD[a:b], k_TKD[a:b].transpose(0, 1), v_TKD[a:b].transpose(0, 1), prefix)
            for (a, b), prefix in zip(self.bounds, self.prefixes, strict=True)
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


class KVCache:
    """Keys and values of B growing sequences, allocated once for `capacity` positions each."""

    def __init__(
        self, config: TextConfig, batch: int, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.lengths = [0] * batch
        self.capacity = capacity
        self.view: object = None  # of models.fused_step

    def cells(self) -> tuple[list[Cells], list[Cells]]:
        """Keys and values of all layers."""
        return [Cells(one) for one in self.keys], [Cells(one) for one in self.values]

    def extend(
        self,
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        *,
        prefixes: Sequence[int] | None = None,
    ) -> Extension:
        """Makes room for `counts[i]` new tokens of sequence `rows[i]` (default: every sequence in order), the
        first `prefixes[i]` of which all see each other; those begin the sequence."""
        rows = range(len(self.lengths)) if rows is None else rows
        starts = [self.lengths[row] for row in rows]
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        return Extension(self, list(rows), starts, list(counts), prefixes or [0] * len(starts))

    def reorder(self, rows: Sequence[int], since: int = 0) -> None:
        """Row i continues what row `rows[i]` held; used by beam search, and where several answers to one
        prompt are drawn.

        Positions before `since` are the same in all rows and stay where they are.
        """
        index = torch.tensor(rows, device=self.keys[0].device)
        length = max(self.lengths)
        for store in (*self.keys, *self.values):
            store[: len(rows), :, since:length] = store[index, :, since:length]
        self.lengths = [self.lengths[row] for row in rows]


class Extension:
    """The `attend` of one forward pass over a cache: writes the new keys, then looks at old and new.

    `pos_T` are the positions of the new tokens in their sequences.
    """

    def __init__(
        self, cache: KVCache, rows: list[int], starts: list[int], counts: list[int], prefixes: Sequence[int]
    ) -> None:
        self.cache, self.rows, self.starts, self.counts = cache, rows, starts, counts
        self.prefixes = prefixes
        self.looks: Looks | None = None
        device, repeats = cache.keys[0].device, torch.tensor(counts)
        ends = torch.tensor(starts) + repeats
        self.lengths_T = ends.repeat_interleave(repeats).to(device)
        spans = [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        self.pos_T = torch.cat(spans).to(device)

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        outs, first = [], 0
        spans = zip(self.rows, self.starts, self.counts, self.prefixes, strict=True)
        for row, start, count, prefix in spans:
            last, end = first + count, start + count
            keys[row, :, start:end] = k_TKD[first:last].transpose(0, 1)
            values[row, :, start:end] = v_TKD[first:last].transpose(0, 1)
            seen = keys[row, :, :end], values[row, :, :end]
            outs.append(prefix_attention(q_THD[first:last], *seen, prefix))
            first = last
        return outs[0] if len(outs) == 1 else torch.cat(outs)
