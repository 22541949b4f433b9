"""How long a run is, and what it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from internvl.data.spec import Batching, DataSpec
from internvl.errors import TrainingError
from internvl.training.recipe import AdamW, Recipe
from internvl.training.recipe_data import count_steps, open_mixture

RECIPE = Recipe(
    name="x", params=((".*", AdamW(lr=1.0)),), epochs=2, data=DataSpec(batching=Batching(examples=8))
)


@pytest.mark.parametrize(
    ("epochs", "records", "steps"), [(2, 16, 4), (2, 17, 5), (1, 3, 1), (0.5, 160, 10), (0.001, 8, 1)]
)
def test_epochs_in_steps(epochs: float, records: int, steps: int) -> None:
    assert count_steps(replace(RECIPE, epochs=epochs), records) == steps


def test_steps_are_what_they_are() -> None:
    packs = DataSpec(batching=Batching(packs=2))
    assert count_steps(replace(RECIPE, steps=7, epochs=None, data=packs), 1000) == 7


def test_epochs_of_packs_have_no_length() -> None:
    with pytest.raises(TrainingError, match="packed data needs `steps`"):
        count_steps(replace(RECIPE, data=DataSpec(batching=Batching(packs=2))), 1000)


def test_the_mixture_is_that_of_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x"}\n' * 50)
    orders = [
        [open_mixture(DataSpec(meta=str(path)), seed).pick(position).row for position in range(50)]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(50))
    with pytest.raises(TrainingError, match="names no data"):
        open_mixture(DataSpec(), 0)
