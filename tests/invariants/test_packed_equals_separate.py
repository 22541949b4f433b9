"""One decoder, three ways to attend: packed, alone, and over a cache in any chunks, all equal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from internvl.config import RopeConfig, TextConfig
from internvl.models.attention import KVCache, Packed
from internvl.models.decoder import Decoder

PLAIN = TextConfig(
    vocab_size=40,
    width=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=32,
    max_positions=8,
)
VARIANTS = {
    "plain": PLAIN,
    "dynamic": replace(PLAIN, rope=RopeConfig(scaling="dynamic", factor=2.0)),
    "qwen3": replace(PLAIN, qk_norm=True),
    "bias": replace(PLAIN, qkv_bias=True, out_bias=True),
}


def build(config: TextConfig) -> Decoder:
    torch.manual_seed(0)
    return Decoder(config).eval()


def alone(decoder: Decoder, x_TD: Tensor) -> Tensor:
    return decoder(x_TD, torch.arange(len(x_TD)), Packed([len(x_TD)]))


@pytest.mark.parametrize("variant", VARIANTS)
@given(seqlens=st.lists(st.integers(1, 14), min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
def test_packed_equals_separate(variant: str, seqlens: list[int]) -> None:
    decoder = build(VARIANTS[variant])
    with torch.inference_mode():
        parts = [torch.randn(length, 24) for length in seqlens]
        positions = torch.cat([torch.arange(length) for length in seqlens])
        packed = decoder(torch.cat(parts), positions, Packed(seqlens))
        separate = torch.cat([alone(decoder, part) for part in parts])
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "qwen3", "bias"])
@given(
    chunks=st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=6),
)
@settings(max_examples=15, deadline=None)
def test_cached_in_any_chunks_equals_whole(variant: str, chunks: list[list[int]]) -> None:
    """Two sequences grow by their own chunks in the same passes; only the new tokens are computed."""
    decoder = build(VARIANTS[variant])
    totals = [sum(chunk[row] for chunk in chunks) for row in (0, 1)]
    with torch.inference_mode():
        parts = [torch.randn(total, 24) for total in totals]
        cache = KVCache(decoder.config, 2, 30, dtype=torch.float32, device=torch.device("cpu"))
        outs: list[list[Tensor]] = [[], []]
        done = [0, 0]
        for chunk in chunks:
            rows = [row for row in (0, 1) if chunk[row]]
            if not rows:
                continue
            counts = [chunk[row] for row in rows]
            x = torch.cat([parts[row][done[row] : done[row] + chunk[row]] for row in rows])
            attend = cache.extend(counts, rows)
            for row, out in zip(rows, decoder(x, attend.pos_T, attend).split(counts), strict=True):
                outs[row].append(out)
                done[row] += chunk[row]
        for row in (0, 1):
            if totals[row]:
                whole = alone(decoder, parts[row])
                torch.testing.assert_close(torch.cat(outs[row]), whole, atol=1e-5, rtol=1e-5)


def test_reordered_rows_continue_what_they_copied() -> None:
    decoder = build(PLAIN)
    with torch.inference_mode():
        parts = [torch.randn(4, 24) for _ in range(3)]
        cache = KVCache(PLAIN, 3, 8, dtype=torch.float32, device=torch.device("cpu"))
        attend = cache.extend([4, 4, 4])
        decoder(torch.cat(parts), attend.pos_T, attend)
        cache.reorder([2, 0, 0])
        step = torch.randn(3, 24)
        attend = cache.extend([1, 1, 1])
        out = decoder(step, attend.pos_T, attend)
        for row, source in enumerate((2, 0, 0)):
            whole = alone(decoder, torch.cat((parts[source], step[row : row + 1])))
            torch.testing.assert_close(out[row], whole[-1], atol=1e-5, rtol=1e-5)
