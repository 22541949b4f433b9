"""The stages of InternVL-Chat 1.5 against the table of its released scripts."""

from __future__ import annotations

import pytest

from internvl.recipes import v1_5
from internvl.recipes.v1_5 import Size
from internvl.training.objective_spec import NextToken
from internvl.training.recipe import AdamW, Schedule
from tests.recipes.learning import learning


@pytest.mark.parametrize(
    ("size", "rate", "decay", "drop_path", "frozen"),
    [
        ("2b", 2e-5, 0.01, 0.1, {"llm"}),
        ("4b", 2e-4, 0.05, 0.0, {"llm", "vit"}),
        ("20b", 1e-5, 0.05, 0.2, {"llm"}),
    ],
)
def test_pretraining(size: Size, rate: float, decay: float, drop_path: float, frozen: set[str]) -> None:
    recipe = v1_5.pretrain(size)
    settings = AdamW(lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    learnt = {"vit", "projector", "llm"} - frozen
    assert learning(recipe.params) == dict.fromkeys(learnt, settings)
    assert (recipe.model.drop_path, recipe.model.max_tiles) == (drop_path, 12)
    assert recipe.model.fresh_projector
    assert (recipe.data.batching.examples, recipe.data.max_length, recipe.epochs) == (2048, 4096, 1)
    assert not recipe.data.group_by_length
    assert recipe.schedule == Schedule(kind="cosine", warmup=100)
    assert recipe.objective == NextToken()


@pytest.mark.parametrize(
    ("size", "rate", "decay", "drop_path", "length"),
    [("2b", 4e-5, 0.01, 0.1, 8192), ("4b", 4e-5, 0.05, 0.1, 8192), ("20b", 2e-5, 0.05, 0.4, 4096)],
)
def test_instruction_tuning(size: Size, rate: float, decay: float, drop_path: float, length: int) -> None:
    recipe = v1_5.sft(size)
    assert learning(recipe.params) == dict.fromkeys(
        ("vit", "projector", "llm"), AdamW(lr=rate, weight_decay=decay)
    )
    assert (recipe.model.drop_path, recipe.model.max_tiles) == (drop_path, 12)
    assert not recipe.model.fresh_projector
    assert (recipe.data.batching.examples, recipe.data.max_length, recipe.epochs) == (1024, length, 1)
    assert recipe.data.group_by_length
    assert recipe.schedule == Schedule(kind="cosine", warmup=0.03)
