"""The three stages of InternVL 2.5 against the table of its released scripts."""

from __future__ import annotations

from typing import Literal

import pytest

from internvl.recipes import v2_5
from internvl.recipes.v2_5 import Size
from internvl.training.objective_spec import NextToken
from internvl.training.recipe import AdamW, Recipe, Schedule
from tests.recipes.learning import learning


def check_packs(recipe: Recipe) -> None:
    """512 packs of 16,384 tokens and 48 tiles, tokens weighted by the square root."""
    batching = recipe.data.batching
    assert (batching.packs, batching.max_tokens, batching.max_tiles) == (512, 16_384, 48)
    assert (recipe.data.max_length, recipe.model.max_tiles) == (16_384, 12)
    assert recipe.objective == NextToken(reduction="square")


@pytest.mark.parametrize(
    ("size", "decay"),
    [("1b", 0.01), ("2b", 0.01), ("4b", 0.01), ("8b", 0.05), ("26b", 0.05), ("38b", 0.05), ("78b", 0.05)],
)
def test_stage_1_warms_the_projector_up(size: Size, decay: float) -> None:
    recipe = v2_5.stage1(size)
    check_packs(recipe)
    assert learning(recipe.params) == {"projector": AdamW(lr=2e-4, weight_decay=decay)}
    assert recipe.model.fresh_projector
    assert (recipe.model.drop_path, recipe.steps) == (0.0, 100_000)
    assert recipe.schedule == Schedule(kind="cosine", warmup=100)


@pytest.mark.parametrize(("size", "drop_path"), [("8b", 0.1), ("26b", 0.4)])
def test_stage_1_5_teaches_the_tower(size: Literal["8b", "26b"], drop_path: float) -> None:
    recipe = v2_5.stage1_5(size)
    check_packs(recipe)
    settings = AdamW(lr=1e-5, weight_decay=0.05)
    assert learning(recipe.params) == {"vit": settings, "projector": settings}
    assert not recipe.model.fresh_projector
    assert (recipe.model.drop_path, recipe.steps) == (drop_path, 100_000)
    assert recipe.schedule == Schedule(kind="cosine", warmup=100)


@pytest.mark.parametrize(
    ("size", "rate", "decay", "drop_path", "steps"),
    [
        ("1b", 4e-5, 0.01, 0.1, 22_000),
        ("2b", 4e-5, 0.01, 0.1, 22_000),
        ("4b", 4e-5, 0.01, 0.1, 11_000),
        ("8b", 4e-5, 0.05, 0.1, 5_500),
        ("26b", 2e-5, 0.05, 0.4, 5_500),
        ("38b", 2e-5, 0.05, 0.4, 5_500),
        ("78b", 2e-5, 0.05, 0.4, 5_500),
    ],
)
def test_stage_2_tunes_everything(
    size: Size, rate: float, decay: float, drop_path: float, steps: int
) -> None:
    recipe = v2_5.stage2(size)
    check_packs(recipe)
    settings = AdamW(lr=rate, weight_decay=decay)
    assert learning(recipe.params) == dict.fromkeys(("vit", "projector", "llm"), settings)
    assert (recipe.model.drop_path, recipe.steps) == (drop_path, steps)
    assert recipe.schedule == Schedule(kind="cosine", warmup=0.03)
