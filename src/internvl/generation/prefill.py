"""From prompts to a filled cache and the scores of each first new token.

Knows decoder inputs (embeddings), positions and query tokens; no sampling and no text.
Shape letters: T tokens, D width, B sequences, V vocabulary, R rows of queries, Q queries of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from internvl.config import TextConfig
from internvl.errors import InputError
from internvl.generation.prompt import Prompt
from internvl.models.attention import KVCache, Looks
from internvl.models.decoder import Decoder
from internvl.models.fused_step import fused_step

PREFILL_CHUNK = 4096
"""Tokens of one forward pass over prompts: bounds the memory of activations, costs nothing below it."""

Piece = tuple[int, int, int]
"""Sequence, first position, end."""


def make_cache(prompts: Sequence[Prompt], config: TextConfig, batch: int, max_new_tokens: int) -> KVCache:
    """An empty cache with room for `batch` sequences of the longest prompt and answer."""
    capacity = max(len(prompt.x_TD) for prompt in prompts) + max_new_tokens
    x_TD = prompts[0].x_TD
    return KVCache(config, batch, capacity, dtype=x_TD.dtype, device=x_TD.device)


def prefill(llm: Decoder, cache: KVCache, prompts: Sequence[Prompt], chunk: int = PREFILL_CHUNK) -> Tensor:
    """Runs prompts into the cache's first rows; returns the scores (B, V) after each one's last token.

    Prompts are packed into passes of at most `chunk` tokens; only a prompt longer than that is cut. Raises
    InputError for one that would be cut within its query tokens.
    """
    lasts: dict[int, Tensor] = {}
    for _ in run_passes(llm, cache, prompts, chunk, lasts):
        pass
    return llm.logits(torch.stack([lasts[row] for row in range(len(prompts))]))


def run_passes(
    llm: Decoder, cache: KVCache, prompts: Sequence[Prompt], chunk: int, lasts: dict[int, Tensor]
) -> Iterator[None]:
    """The passes of `prefill`, one for each item; the state of each prompt's last token goes to `lasts`."""
    for pieces in plan_passes([len(prompt.x_TD) for prompt in prompts], chunk):
        x_TD = torch.cat([prompts[row].x_TD[first:end] for row, first, end in pieces])
        counts = [end - first for _, first, end in pieces]
        prefixes = [prompts[row].num_queries if first == 0 else 0 for row, first, _ in pieces]
        attend = cache.extend(counts, [row for row, _, _ in pieces], prefixes=prefixes)
        attend.looks = _looks(prompts, pieces, counts, prefixes)
        full = torch.tensor([len(prompts[row].x_TD) for row, _, _ in pieces], device=x_TD.device)
        attend.lengths_T = full.repeat_interleave(
            torch.tensor(counts, device=x_TD.device)
        )  # rope of the whole prompt
        ends = torch.tensor(counts).cumsum(0).tolist()
        x_TD = llm(x_TD, attend.pos_T, attend)
        lasts.update({row: x_TD[end - 1] for (row, _, _), end in zip(pieces, ends, strict=True)})
        yield


def _looks(
    prompts: Sequence[Prompt], pieces: Sequence[Piece], counts: Sequence[int], prefixes: Sequence[int]
) -> Looks | None:
    """The query tokens of one pass; all its prompts with queries have equally many."""
    starts = accumulate(counts, initial=0)
    rows, features = [], []
    for (row, _, _), start, count, prefix in zip(pieces, starts, counts, prefixes, strict=False):
        if count < prefix:
            raise InputError(f"a prefill chunk cuts {prefix} query tokens after {count}: make it larger")
        if prefix:
            rows.append(torch.arange(start, start + prefix))
            features.append(prompts[row].features_PC)
    if not rows:
        return None
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"prompts of one batch have {sorted(map(len, rows))} query tokens: give all the same"
        )
    features_BPC = torch.stack([one for one in features if one is not None])
    device = features_BPC.device
    return Looks(torch.stack(rows).to(device), torch.arange(len(rows), device=device), features_BPC)


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
    x_BD: Tensor = llm.embed(torch.tensor(ids, device=cache.keys[0].device))
    state_BD = fused_step(llm, cache, rows, x_BD)
    if state_BD is None:
        attend = cache.extend([1] * len(rows), rows)
        state_BD = llm(x_BD, attend.pos_T, attend)
    return llm.logits(state_BD)
