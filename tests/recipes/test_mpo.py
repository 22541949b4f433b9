"""Mixed preference optimisation against the table of its released scripts."""

from __future__ import annotations

import pytest

from internvl.recipes.mpo import mpo
from internvl.training.objective_spec import Preference
from internvl.training.recipe import AdamW, Schedule
from tests.recipes.learning import learning


@pytest.mark.parametrize(
    ("model", "rate", "length"),
    [("v2-8b", 5e-6, 6144), ("v2.5-1b", 1e-6, 8192), ("v2.5-8b", 1e-6, 8192), ("v3-8b", 2e-7, 12_288)],
)
def test_everything_learns_against_a_copy(model: str, rate: float, length: int) -> None:
    recipe = mpo(model)
    settings = AdamW(lr=rate, weight_decay=0.05)
    assert learning(recipe.params) == dict.fromkeys(("vit", "projector", "llm"), settings)
    assert recipe.objective == Preference(
        beta=0.1, sigmoid_weight=0.8, bco_weight=0.2, chosen_weight=1.0, reference="copy"
    )
    assert (recipe.data.batching.examples, recipe.data.max_length, recipe.epochs) == (256, length, 1)
    assert recipe.model.drop_path == 0.1
    assert recipe.schedule == Schedule(kind="cosine", warmup=0.03)
