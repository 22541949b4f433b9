"""nano's stages: what each may change of the model that the stage before left."""

from __future__ import annotations

import re

from internvl.recipes import nano
from tests.recipes.learning import learning

FIRST, LAST = "vit.layers.0.mlp.fc1.weight", "vit.layers.11.mlp.fc1.weight"


def trains(rules: tuple[tuple[str, object], ...], name: str) -> bool:
    return next(settings for pattern, settings in rules if re.fullmatch(pattern, name)) is not None


def test_the_projector_comes_first() -> None:
    recipe = nano.align()
    assert set(learning(recipe.params)) == {"projector"}
    assert recipe.model.fresh_projector
    assert recipe.model.select_layer == -1


def test_then_the_upper_blocks_of_the_tower() -> None:
    recipe = nano.tune_tower()
    assert [trains(recipe.params, name) for name in (FIRST, LAST)] == [False, True]
    assert set(learning(recipe.params)) == {"projector"}  # of block 3 nothing
    assert not recipe.model.fresh_projector


def test_then_adapters_and_the_projector() -> None:
    recipe = nano.instruct()
    assert set(learning(recipe.params)) == {"projector", "adapters"}
    assert not any(trains(recipe.params, name) for name in (FIRST, LAST))
    assert not recipe.model.fresh_projector


def test_then_the_same_adapters_again() -> None:
    recipe = nano.agree()
    assert recipe.model.adapters == nano.instruct().model.adapters
    assert set(learning(recipe.params)) == {"projector", "adapters"}


def test_a_picture_is_one_tile() -> None:
    for recipe in (nano.align(), nano.tune_tower(), nano.instruct(), nano.agree()):
        assert recipe.data.batching.max_tiles == 1
        assert recipe.data.max_length <= recipe.data.batching.max_tokens
