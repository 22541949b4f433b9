"""What a recipe reads: its mixture of records, what makes examples of them, and how many steps they fill.

Knows no optimiser and no loop.
"""

from __future__ import annotations

import math

from internvl.data.examples import Examples
from internvl.data.meta import open_data
from internvl.data.mixture import Mixture
from internvl.data.spec import DataSpec
from internvl.errors import TrainingError
from internvl.training.build import Built
from internvl.training.recipe import Recipe


def make_examples(built: Built, data: DataSpec) -> Examples:
    """What makes examples of rows for this model."""
    return Examples(
        built.processor,
        max_length=data.max_length,
        share_pictures=data.share_pictures,
        language=data.language,
    )


def open_mixture(data: DataSpec, seed: int) -> Mixture:
    if data.meta is None:
        raise TrainingError("the recipe names no data: give a meta JSON, a file or a folder (--data PATH)")
    return Mixture(open_data(data.meta), data.sampling, seed)


def count_steps(recipe: Recipe, records: int) -> int:
    """The length of a run. Raises TrainingError for epochs of packs: how many those are shows only as it
    goes."""
    if recipe.steps is not None:
        return recipe.steps
    examples = recipe.data.batching.examples
    if examples is None or recipe.epochs is None:
        raise TrainingError(f"recipe {recipe.name}: packed data needs `steps`, since packs differ in records")
    return max(1, math.ceil(recipe.epochs * records / examples))
