"""A recipe looked at without training: what its model and records will need.

Builds the model and measures some records; writes nothing.
"""

from __future__ import annotations

import os
from typing import Any

from internvl.checkpoints.load import resolve_device
from internvl.data.bad_samples import BROKEN
from internvl.data.example import Size
from internvl.data.mixture import Mixture
from internvl.data.places import Maker
from internvl.training.build import build, narrow_frozen
from internvl.training.build_pairs import build_pairs
from internvl.training.estimate import Estimate, estimate, measure_rate
from internvl.training.optim import freeze
from internvl.training.precision import for_device
from internvl.training.recipe import Recipe
from internvl.training.recipe_data import count_steps, make_reader, open_mixture

MEASURED = 200
"""Records that an estimate looks at."""


def dry_run(recipe: Recipe, *, device: str = "cpu") -> Estimate:
    """What the run would need, going by its first records; without data, by the longest it allows."""
    on = resolve_device(device)
    recipe = for_device(recipe, on)
    built = (build_pairs if recipe.has_pairs else build)(recipe.model, recipe.seed)
    freeze(built.model, recipe.params)
    narrow_frozen(built.model, recipe.model.frozen_dtype)
    sizes: list[Size] = []
    steps = recipe.steps
    if recipe.data.meta is not None:
        mixture = open_mixture(recipe.data, recipe.seed)
        sizes = _measure(mixture, make_reader(built, recipe.data, recipe.objective)[0])
        steps = count_steps(recipe, len(mixture))
    rate = measure_rate(recipe, on)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return estimate(built.model, recipe, sizes or None, processes=processes, steps=steps, rate=rate)


def _measure(mixture: Mixture, examples: Maker[Any]) -> list[Size]:
    """Sizes of the first records that can be used."""
    sizes = []
    for position in range(min(MEASURED, len(mixture))):
        pick = mixture.pick(position)
        dataset = mixture.datasets[pick.dataset]
        try:
            sizes.append(examples.measure(dataset.source.row(pick.row), dataset, seed=position))
        except BROKEN:  # `internvl data check` tells which and why
            continue
    return sizes
