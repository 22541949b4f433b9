"""A sequence gets in a batch, in chunks and over a cache what it gets alone, whole and without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.config import RopeConfig, TextConfig
from internvl.generation.generate import generate
from internvl.generation.prompt import Prompt
from internvl.models.attention import Packed
from internvl.models.decoder import Decoder
from tests.generation.tiny import CONFIG, letters, make_decoder, make_prompt

VARIANTS: dict[str, TextConfig] = {
    "plain": CONFIG,
    "qwen3": replace(CONFIG, qk_norm=True),
    "dynamic": replace(CONFIG, max_positions=48, rope=RopeConfig(scaling="dynamic", factor=2.0)),
    "longrope": replace(
        CONFIG,
        rope=RopeConfig(
            scaling="longrope", original_max_positions=80, short_factors=(1.0, 1.5), long_factors=(2.0, 4.0)
        ),
    ),
}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "seed": 3, "top_p": 0.9},
    {"repetition_penalty": 1.5},
    {"presence_penalty": 0.5, "frequency_penalty": 1.0, "min_new_tokens": 6},
    {"temperature": 2.0, "seed": 5, "min_p": 0.05, "logprobs": 2},
    {"num_beams": 3},
)
PROMPTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 25), min_size=1, max_size=20),
        st.integers(0, len(WAYS) - 1),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=5,
)


def near(first: object, second: object) -> bool:
    """Answers with equal ids, reasons and text; scores may differ by rounding."""
    return [first.ids, first.finish_reason, first.text] == [second.ids, second.finish_reason, second.text]  # type: ignore[attr-defined]


@pytest.mark.parametrize("variant", VARIANTS)
@given(drawn=PROMPTS)
@settings(max_examples=10)
def test_batch_equals_single(variant: str, drawn: list[tuple[list[int], int, int]]) -> None:
    llm = make_decoder(VARIANTS[variant])
    prompts = [
        make_prompt(llm, ids, stop_ids=(3, 9), max_new_tokens=n, **WAYS[way])
        for ids, way, n in drawn
        if n >= 6
    ]
    together = generate(llm, prompts, decode=letters)
    for prompt, answer in zip(prompts, together, strict=True):
        assert near(generate(llm, [prompt], decode=letters)[0], answer)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 30])
def test_chunked_prefill_equals_whole(variant: str, chunk: int) -> None:
    llm = make_decoder(VARIANTS[variant])
    rows = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15] * 15)
    prompts = [make_prompt(llm, row, max_new_tokens=8, logprobs=1) for row in rows]
    whole = generate(llm, prompts)
    for expected, answer in zip(whole, generate(llm, prompts, prefill_chunk=chunk), strict=True):
        assert answer.ids == expected.ids
        found = [report.logprob for report in answer.logprobs]
        assert found == pytest.approx([report.logprob for report in expected.logprobs], abs=1e-4)
    beam = replace(prompts[0], sampling=replace(prompts[0].sampling, num_beams=3, logprobs=0))
    assert near(generate(llm, [beam])[0], generate(llm, [beam], prefill_chunk=chunk)[0])


@torch.inference_mode()
def without_cache(llm: Decoder, ids: Sequence[int], count: int) -> list[int]:
    whole = list(ids)
    for _ in range(count):
        states = llm(llm.embed(torch.tensor(whole)), torch.arange(len(whole)), Packed([len(whole)]))
        whole.append(int(llm.logits(states[-1:]).argmax()))
    return whole[len(ids) :]


@pytest.mark.parametrize("variant", ["plain", "qwen3"])
@given(ids=st.lists(st.integers(0, 25), min_size=1, max_size=30))
@settings(max_examples=10)
def test_cache_equals_recomputing(variant: str, ids: list[int]) -> None:
    llm = make_decoder(VARIANTS[variant])
    [answer] = generate(llm, [make_prompt(llm, ids, max_new_tokens=10)])
    assert list(answer.ids) == without_cache(llm, ids, 10)


def test_the_same_prompt_twice_does_not_see_itself() -> None:
    llm = make_decoder()
    prompt: Prompt = make_prompt(llm, [1, 2, 3], max_new_tokens=9, temperature=1.0, seed=11)
    alone = generate(llm, [prompt])[0]
    assert generate(llm, [prompt, prompt, prompt]) == [alone] * 3
