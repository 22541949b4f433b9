"""What a recipe reads: its mixture of records, what makes examples of them, and how many steps they fill.

Knows no optimiser and no loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from internvl.config import ContrastiveConfig
from internvl.data.batch import pack
from internvl.data.chat_examples import Examples
from internvl.data.meta import open_data
from internvl.data.mixture import Mixture
from internvl.data.pair_examples import PairExamples
from internvl.data.pairs import pair
from internvl.data.places import Maker
from internvl.data.spec import DataSpec
from internvl.errors import TrainingError
from internvl.processing.texts import MAX_TOKENS, TextProcessor
from internvl.processing.tokenizer import Tokenizer
from internvl.training.build import Built
from internvl.training.build_pairs import BuiltPairs
from internvl.training.objective_spec import ObjectiveSpec, Preference
from internvl.training.recipe import Recipe

MAX_STEPS = 1 << 53
"""Beyond it floats, which schedules are computed in, no longer tell steps apart."""


def make_examples(built: Built, data: DataSpec, objective: ObjectiveSpec) -> Examples:
    """What makes examples of rows for this model; what the objective cannot learn from is a bad sample."""
    return Examples(
        built.processor,
        max_length=data.max_length,
        share_pictures=data.share_pictures,
        preferences=isinstance(objective, Preference),
        needs_references=isinstance(objective, Preference) and objective.reference == "stored",
        language=data.language,
    )


def make_reader(
    built: Built | BuiltPairs, data: DataSpec, objective: ObjectiveSpec
) -> tuple[Maker[Any], Callable[[Sequence[Any]], Any]]:
    """What makes examples of rows, and what makes a batch of those."""
    if isinstance(built, BuiltPairs):
        return make_pairs(built, data), pair
    examples = make_examples(built, data, objective)
    return examples, partial(pack, tile_size=built.model.config.tiling.tile_size)


def make_pairs(built: BuiltPairs, data: DataSpec) -> PairExamples:
    """What makes pairs of rows for this model; a text has 80 tokens at most, as the released models read."""
    return pair_examples(built.model.config, built.tokenizer, data)


def pair_examples(config: ContrastiveConfig, tokenizer: Tokenizer, data: DataSpec) -> PairExamples:
    """As `make_pairs`, where there is no model yet."""
    texts = TextProcessor(
        tokenizer, vocab_size=config.text.vocab_size, max_tokens=min(data.max_length, MAX_TOKENS)
    )
    return PairExamples(
        texts,
        image_size=config.image_size,
        normalization=config.normalization,
        language=data.language,
        clean=data.clean_captions,
    )


def open_mixture(data: DataSpec, seed: int) -> Mixture:
    if data.meta is None:
        raise TrainingError("the recipe names no data: give a meta JSON, a file or a folder (--data PATH)")
    return Mixture(open_data(data.meta), data.sampling, seed)


def count_steps(recipe: Recipe, records: int) -> int:
    """The length of a run. Raises TrainingError for epochs of packs, since how many those are shows only as
    it goes, and for epochs of more than `MAX_STEPS`."""
    if recipe.steps is not None:
        return recipe.steps
    examples = recipe.data.batching.examples
    if examples is None or recipe.epochs is None:
        raise TrainingError(f"recipe {recipe.name}: packed data needs `steps`, since packs differ in records")
    steps = recipe.epochs * records / examples
    if steps > MAX_STEPS:
        raise TrainingError(
            f"recipe {recipe.name}: {recipe.epochs} epochs of {records} records are {steps:.3g} steps, more "
            f"than {MAX_STEPS}: lower epochs"
        )
    return max(1, math.ceil(steps))


def data_facts(mixture: Mixture, steps: int) -> dict[str, Any]:
    """What tells on resuming that the data are those the run began with."""
    return {
        "rows": [[dataset.name, dataset.size] for dataset in mixture.datasets],
        "use": [
            [dataset.name, dataset.repeat, dataset.weight, dataset.augment, dataset.max_tiles]
            for dataset in mixture.datasets
        ],
        "steps": steps,
    }


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises TrainingError where the data sets, their rows in use, how these are used or the steps are not
    those of before: order and learning rate would jump."""
    known = {name: value for name, value in now.items() if name in before}  # of an older run less is known
    if known == before:
        return
    if all(known[name] == before[name] for name in ("rows", "steps")):
        changed = [old for old, new in zip(before["use"], known["use"], strict=True) if old != new]
        raise TrainingError(
            f"repeat_time, weight, data_augment or max_dynamic_patch of {changed[0][0]} has changed: a run "
            f"goes on with the data it began with. Put back {changed[0][1:]}, or train in another folder"
        )
    told = [
        f"{', '.join(f'{name} ({rows} rows)' for name, rows in facts['rows'])} and {facts['steps']} steps"
        for facts in (before, now)
    ]
    raise TrainingError(
        f"the run began with {told[0]}, now there are {told[1]}: a run goes on with the data it began with. "
        "Put them back, or train in another folder (for adapters see model.adapter, to go on from these)"
    )
