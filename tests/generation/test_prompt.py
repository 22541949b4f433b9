"""What cannot be continued is refused with its numbers, before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from internvl.config import RopeConfig
from internvl.errors import ContextOverflowError, InputError
from internvl.generation.prompt import Prompt, check_prompt, context_limit
from internvl.generation.sampling import Sampling
from tests.generation.tiny import CONFIG


def prompt_of(length: int, **settings: Any) -> Prompt:
    return Prompt(torch.zeros(length, CONFIG.width), Sampling(**settings))


def test_the_limit_fits_and_one_more_does_not() -> None:
    check_prompt(prompt_of(90, max_new_tokens=6), CONFIG)
    with pytest.raises(
        ContextOverflowError, match=r"90 tokens \+ max_new_tokens 7 = 97.* 96 positions"
    ) as caught:
        check_prompt(prompt_of(90, max_new_tokens=7), CONFIG)
    assert "lower max_new_tokens to 6" in str(caught.value)


def test_a_prompt_that_fills_the_context_leaves_nothing_to_lower() -> None:
    with pytest.raises(ContextOverflowError, match=": shorten the prompt") as caught:
        check_prompt(prompt_of(96, max_new_tokens=1), CONFIG)
    assert "lower max_new_tokens" not in str(caught.value)


@pytest.mark.parametrize(
    ("scaling", "limit"), [(None, 96), ("linear", 192), ("dynamic", 1536), ("longrope", 96)]
)
def test_scaled_positions_reach_further(scaling: Any, limit: int) -> None:
    rope = RopeConfig(scaling=scaling, factor=2.0)
    assert context_limit(replace(CONFIG, rope=rope)) == limit


@pytest.mark.parametrize("shape", [(0, 16), (3, 15), (16,), (1, 3, 16)])
def test_misshapen_prompts(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="prompt must"):
        check_prompt(Prompt(torch.zeros(shape), Sampling()), CONFIG)


@pytest.mark.parametrize(
    ("field", "prompt"),
    [
        ("stop_ids", prompt_of(1, stop_ids=(3, 26), max_new_tokens=1)),
        ("logit_bias", prompt_of(1, logit_bias={26: 1.0}, max_new_tokens=1)),
        ("seen_ids", Prompt(torch.zeros(1, 16), Sampling(max_new_tokens=1), [-26])),
    ],
)
def test_ids_outside_the_vocabulary(field: str, prompt: Prompt) -> None:
    with pytest.raises(InputError, match=f"{field} has id -?26.* 26 entries"):
        check_prompt(prompt, CONFIG)
