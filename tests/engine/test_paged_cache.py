"""Pages hold what a cache in one piece holds, wherever they lie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.config import RopeConfig
from internvl.engine.paged_cache import PagedCache, Part, find_runs
from internvl.models.attention import Packed
from internvl.models.decoder import Decoder
from internvl.models.fused_step import step_in_places
from internvl.ops.native import library
from tests.engine.tiny import make_vlm
from tests.generation.tiny import CONFIG


@pytest.mark.parametrize(
    ("pages", "length", "runs"),
    [
        ([0], 3, [(0, 3)]),
        ([2, 3, 4], 12, [(8, 20)]),
        ([2, 3, 7], 9, [(8, 16), (28, 29)]),
        ([5, 4], 8, [(20, 24), (16, 20)]),
        ([5, 4, 9], 4, [(20, 24)]),
    ],
)
def test_pages_that_follow_each_other_are_one_run(
    pages: list[int], length: int, runs: list[tuple[int, int]]
) -> None:
    assert find_runs(pages, 4, length) == runs


@torch.inference_mode()
def test_mixed_steps_over_scattered_pages_equal_whole_sequences() -> None:
    llm = make_vlm(CONFIG).llm
    ids = torch.randint(0, 26, (2, 30), generator=torch.Generator().manual_seed(1))
    whole = [llm(llm.embed(row), torch.arange(30), Packed([30])) for row in ids]
    cache = PagedCache(CONFIG, 20, 4, dtype=torch.float32, device=torch.device("cpu"))
    tables = [[7, 1, 2, 3, 19, 0, 11, 12], [9, 8, 6, 5, 4, 13, 14, 15]]
    done, parts = [0, 0], [(11, 1), (1, 7), (5, 1), (1, 20), (12, 1)]
    for counts in parts:
        step = cache.step(
            [Part(table, start, count, 30) for table, start, count in zip(tables, done, counts, strict=True)]
        )
        x_TD = torch.cat([llm.embed(row[s : s + c]) for row, s, c in zip(ids, done, counts, strict=True)])
        states = llm(x_TD, step.pos_T, step).split(counts)
        for row, start, count, found in zip(whole, done, counts, states, strict=True):
            torch.testing.assert_close(found, row[start : start + count], atol=1e-4, rtol=1e-4)
        done = [start + count for start, count in zip(done, counts, strict=True)]
    assert done == [30, 30]


def test_lengths_are_those_of_token_by_token() -> None:
    config = replace(CONFIG, rope=RopeConfig(scaling="dynamic"))
    cache = PagedCache(config, 8, 4, dtype=torch.float32, device=torch.device("cpu"))
    step = cache.step([Part([0, 1], 2, 5, 4), Part([3], 0, 2, 4)])
    assert step.pos_T.tolist() == [2, 3, 4, 5, 6, 0, 1]
    assert step.lengths_T.tolist() == [4, 4, 5, 6, 7, 4, 4]


@pytest.mark.skipif(library() is None, reason="no kernels were built: there is no step in one call")
@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
@torch.inference_mode()
def test_a_step_in_one_call_reads_and_writes_the_same_pages(is_int8: bool) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, width=40, num_heads=6, num_kv_heads=2, head_dim=16)
    llm, tables, starts = Decoder(config), [[7, 1, 2, 3], [9, 8, 6, 5]], [11, 2]
    caches = [
        PagedCache(config, 10, 4, dtype=torch.float32, device=torch.device("cpu"), is_int8=is_int8)
        for _ in range(2)
    ]
    prompt_TD = torch.randn(sum(starts), config.width)
    for cache in caches:
        step = cache.step([Part(table, 0, count, 4) for table, count in zip(tables, starts, strict=True)])
        llm(prompt_TD, step.pos_T, step)
    for done in range(3):
        parts = [Part(table, start + done, 1, 4) for table, start in zip(tables, starts, strict=True)]
        x_BD = torch.randn(2, config.width)
        found_BD = step_in_places(llm, x_BD, caches[0], *caches[0].places(parts))
        step = caches[1].step(parts)
        torch.testing.assert_close(found_BD, llm(x_BD, step.pos_T, step), rtol=1e-3, atol=1e-3)
    runs = [find_runs(table, 4, start + 3) for table, start in zip(tables, starts, strict=True)]
    for layer in range(config.num_layers):
        for one, other in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
            for run in runs:
                kept_KSD, expected_KSD = one.read(layer, run), other.read(layer, run)
                step_size = float(expected_KSD.abs().max()) / 127 if is_int8 else 1e-4
                torch.testing.assert_close(kept_KSD, expected_KSD, rtol=0, atol=1.01 * step_size)
