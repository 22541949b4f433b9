"""A recipe looked at without training: what its model and records will need.

Builds the model and measures some records; writes nothing.
"""

from __future__ import annotations

import os

from internvl.checkpoints.load import resolve_device
from internvl.data.bad_samples import BROKEN
from internvl.data.example import Size
from internvl.data.examples import Examples
from internvl.data.mixture import Mixture
from internvl.errors import TrainingError
from internvl.training.build import build
from internvl.training.estimate import Estimate, estimate, measure_rate
from internvl.training.objective_spec import Contrastive, Stage2
from internvl.training.optim import freeze
from internvl.training.recipe import Recipe
from internvl.training.records import count_steps, make_examples, open_mixture

MEASURED = 200
"""Records that an estimate looks at."""


def dry_run(recipe: Recipe, *, device: str = "cpu") -> Estimate:
    """What the run would need, going by its first records; without data, by the longest it allows.

    Raises TrainingError for a recipe that learns from pairs, of which nothing is estimated.
    """
    if isinstance(recipe.objective, Contrastive | Stage2):
        raise TrainingError(
            f"recipe {recipe.name} learns from pairs, of which nothing can be told without running them: try "
            "two steps (--set steps=2 --set epochs=none); its log tells their time"
        )
    built = build(recipe.model, recipe.seed)
    freeze(built.model, recipe.params)
    sizes: list[Size] = []
    steps = recipe.steps
    if recipe.data.meta is not None:
        mixture = open_mixture(recipe.data, recipe.seed)
        sizes = _measure(mixture, make_examples(built, recipe.data))
        steps = count_steps(recipe, len(mixture))
    rate = measure_rate(recipe, resolve_device(device))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return estimate(built.model, recipe, sizes or None, processes=processes, steps=steps, rate=rate)


def _measure(mixture: Mixture, examples: Examples) -> list[Size]:
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
