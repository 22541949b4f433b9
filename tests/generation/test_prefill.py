"""How prompts are cut into passes, and what the passes give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internvl.errors import InputError
from internvl.generation.prefill import decode_step, make_cache, plan_passes, prefill
from internvl.generation.prompt import Prompt
from internvl.generation.sampling import Sampling
from internvl.models.attention import Packed
from tests.generation.tiny import CONFIG, make_decoder


def test_passes_by_hand() -> None:
    passes = list(plan_passes([3, 2, 9, 1], 4))
    assert passes == [[(0, 0, 3)], [(1, 0, 2)], [(2, 0, 4)], [(2, 4, 8)], [(2, 8, 9), (3, 0, 1)]]
    assert list(plan_passes([3, 2, 9, 1], 100)) == [[(0, 0, 3), (1, 0, 2), (2, 0, 9), (3, 0, 1)]]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), chunk=st.integers(1, 40))
def test_passes_lose_nothing(lengths: list[int], chunk: int) -> None:
    passes = list(plan_passes(lengths, chunk))
    places = [(row, place) for one in passes for row, first, end in one for place in range(first, end)]
    assert places == [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert max(sum(end - first for _, first, end in one) for one in passes) <= chunk
    assert all(len({row for row, *_ in one}) == len(one) for one in passes)


def test_a_chunk_of_nothing() -> None:
    with pytest.raises(InputError, match="at least 1 token, got 0"):
        list(plan_passes([3], 0))


@torch.inference_mode()
def test_scores_follow_the_last_token_of_each_prompt() -> None:
    llm = make_decoder()
    ids = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    prompts = [Prompt(llm.embed(torch.tensor(row)), Sampling(max_new_tokens=4)) for row in ids]
    cache = make_cache(prompts, CONFIG, 3, 4)
    assert (cache.capacity, cache.keys[0].shape[0]) == (9, 3)
    found = [prefill(llm, cache, prompts), decode_step(llm, cache, [2, 0], [10, 11])]
    whole = [[*ids[2], 10], [*ids[0], 11]]
    for logits_BV, rows in zip(found, (ids, whole), strict=True):
        for logits_V, row in zip(logits_BV, rows, strict=True):
            states = llm(llm.embed(torch.tensor(row)), torch.arange(len(row)), Packed([len(row)]))
            torch.testing.assert_close(logits_V, llm.logits(states)[-1])
    assert cache.lengths == [6, 1, 4]
