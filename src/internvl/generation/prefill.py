"""From prompts to a filled cache and the scores of each first new token.

Knows decoder inputs (embeddings) and positions; no sampling and no text.
Shape letters: T tokens, D width, B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from internvl.config import TextConfig
from internvl.errors import InputError
from internvl.models.attention import KVCache
from internvl.models.decoder import Decoder

PREFILL_CHUNK = 4096
"""Tokens of one forward pass over prompts: bounds the memory of activations, costs nothing below it."""

Piece = tuple[int, int, int]
"""Sequence, first position, end."""


def make_cache(prompts: Sequence[Tensor], config: TextConfig, batch: int, max_new_tokens: int) -> KVCache:
    """An empty cache with room for `batch` sequences of the longest prompt and answer."""
    capacity = max(map(len, prompts)) + max_new_tokens
    return KVCache(config, batch, capacity, dtype=prompts[0].dtype, device=prompts[0].device)


def prefill(llm: Decoder, cache: KVCache, prompts: Sequence[Tensor], chunk: int = PREFILL_CHUNK) -> Tensor:
    """Runs prompts x_TD into the cache's first rows; returns the scores (B, V) after each one's last token.

    Prompts are packed into passes of at most `chunk` tokens; only a prompt longer than that is cut.
    """
    lasts: dict[int, Tensor] = {}
    for pieces in plan_passes([len(x_TD) for x_TD in prompts], chunk):
        x_TD = torch.cat([prompts[row][first:end] for row, first, end in pieces])
        counts = [end - first for _, first, end in pieces]
        attend = cache.extend(counts, [row for row, _, _ in pieces])
        full = torch.tensor([len(prompts[row]) for row, _, _ in pieces], device=x_TD.device)
        attend.lengths_T = full.repeat_interleave(
            torch.tensor(counts, device=x_TD.device)
        )  # rope of the whole prompt
        ends = torch.tensor(counts).cumsum(0).tolist()
        x_TD = llm(x_TD, attend.pos_T, attend)
        lasts.update({row: x_TD[end - 1] for (row, _, _), end in zip(pieces, ends, strict=True)})
    return llm.logits(torch.stack([lasts[row] for row in range(len(prompts))]))


def plan_passes(lengths: Sequence[int], chunk: int) -> Iterator[list[Piece]]:
    """Which piece of which sequence each pass takes: in order, at most `chunk` tokens together."""
    if chunk < 1:
        raise InputError(f"a prefill chunk must have at least 1 token, got {chunk}")
    pieces: list[Piece] = []
    used = 0
    for row, length in enumerate(lengths):
        for first in range(0, length, chunk):
            size = min(chunk, length - first)
            if used + size > chunk:
                yield pieces
                pieces, used = [], 0
            pieces.append((row, first, first + size))
            used += size
    yield pieces


def decode_step(llm: Decoder, cache: KVCache, rows: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Feeds one id to each of `rows`; returns the scores (B, V) of what follows."""
    attend = cache.extend([1] * len(rows), rows)
    x_BD: Tensor = llm.embed(torch.tensor(ids, device=cache.keys[0].device))
    return llm.logits(llm(x_BD, attend.pos_T, attend))
