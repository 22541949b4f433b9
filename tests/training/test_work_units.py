"""The work of a dual encoder against what torch counts, for each of its objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters
from internvl.config import ContrastiveConfig, TextConfig, VisionConfig
from internvl.data.example import Size
from internvl.data.pairs import PairBatch
from internvl.data.spec import Batching, DataSpec
from internvl.models.dual_encoder import DualEncoder
from internvl.training.estimate import estimate, parameter_groups
from internvl.training.objective_spec import Contrastive, ObjectiveSpec, Stage2
from internvl.training.objectives import make_objective
from internvl.training.optim import freeze
from internvl.training.recipe import AdamW, Execution, Recipe, Rule
from internvl.training.work_units import units
from internvl.training.workload import activation_bytes, step_flops, step_load
from internvl.training.world import World
from tests.training.counting import Counter, saved_bytes

TRAINED = AdamW(lr=1e-3)
EVERYTHING: tuple[Rule, ...] = ((".*", TRAINED),)
STAGE_1: tuple[Rule, ...] = ((r".*\.lora_.*|image_pool\..*|text_projection", TRAINED), (".*", None))
UPPER: tuple[Rule, ...] = ((r"qllama\.layers\.3\..*lora_.*|image_pool\..*", TRAINED), (".*", None))
STAGE_2: tuple[Rule, ...] = (
    (r"qllama\.queries|.*\.cross\..*|query_pool\..*|itm_head\..*", TRAINED),
    (".*", None),
)
PAIRS, LENGTH, QUERIES = 12, 16, 8
CASES: tuple[tuple[ObjectiveSpec, tuple[Rule, ...]], ...] = (
    (Contrastive(), EVERYTHING),
    (Contrastive(), STAGE_1),
    (Contrastive(), UPPER),
    (Contrastive(mode="G"), EVERYTHING),
    (Stage2(matches="half"), STAGE_2),
    (Stage2(), EVERYTHING),
)


def make_model(rules: Sequence[Rule]) -> DualEncoder:
    """Wide enough for products to outweigh the rest; four layers of text, two of which look."""
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=300,
        width=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        mlp_width=384,
        max_positions=512,
    )
    vision = VisionConfig(image_size=112, width=96, num_layers=2, num_heads=4, mlp_width=384)
    model = DualEncoder(
        ContrastiveConfig(
            vision=vision, text=text, embed_dim=64, pool_heads=4, num_queries=QUERIES, image_size=112
        )
    )
    if rules in (STAGE_1, UPPER):
        add_adapters(model, ((r"qllama\.layers\..*(attn|mlp).*", LoRA(rank=4)),))
    freeze(model, rules)
    return model


def make_batch() -> PairBatch:
    """All texts are equally long, and different."""
    texts = tuple((1, 5, number, *(7,) * (LENGTH - 4), 2) for number in range(10, 10 + PAIRS))
    return PairBatch(
        tiles_B3HW=torch.randn(PAIRS, 3, 112, 112),
        contrastive_ids=texts,
        match_ids=texts,
        caption_ids=texts,
        prompt_lengths=(2,) * PAIRS,
        image_ids_B=torch.arange(PAIRS),
        draws_B=torch.arange(PAIRS),
        keys=tuple(map(str, range(PAIRS))),
    )


def make_recipe(objective: ObjectiveSpec, rules: tuple[Rule, ...]) -> Recipe:
    data = DataSpec(batching=Batching(examples=PAIRS))
    return Recipe(name="x", params=rules, steps=10, data=data, objective=objective)


SIZES = [Size(LENGTH, 1, LENGTH)]


@pytest.mark.parametrize(("objective", "rules"), CASES)
def test_activations_are_what_autograd_keeps(objective: ObjectiveSpec, rules: tuple[Rule, ...]) -> None:
    model, recipe = make_model(rules), make_recipe(objective, rules)
    learns, batch = make_objective(objective, world=World()), make_batch()
    found = saved_bytes(model, lambda: learns(model, batch))
    expected = activation_bytes(model, recipe, step_load(model, recipe, SIZES))
    assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("objective", "rules"), CASES)
def test_operations_are_what_torch_counts(objective: ObjectiveSpec, rules: tuple[Rule, ...]) -> None:
    """In bfloat16, whose products are those that torch's counter knows."""
    model, recipe = make_model(rules).bfloat16(), make_recipe(objective, rules)
    batch = make_batch()
    batch = replace(batch, tiles_B3HW=batch.tiles_B3HW.bfloat16())
    with Counter() as counter:
        make_objective(objective, world=World())(model, batch).total.backward()
    expected = step_flops(model, recipe, step_load(model, recipe, SIZES))
    assert counter.total == pytest.approx(expected, rel=0.15)


def test_every_weight_of_a_product_is_some_units() -> None:
    """But for the projection of one state a text, which is no module."""
    model = make_model(EVERYTHING)
    recipe = make_recipe(Stage2(), EVERYTHING)
    load = step_load(model, recipe, SIZES)
    seen = {id(p) for unit in units(model, recipe, load) for p in unit.module.parameters()}
    unseen = [name for name, p in model.named_parameters() if id(p) not in seen and p.dim() == 2]
    assert unseen == ["text_projection"]


def test_kept_features_spare_the_tower() -> None:
    model, recipe = make_model(UPPER), make_recipe(Contrastive(), UPPER)
    load = step_load(model, recipe, SIZES)
    kept = replace(recipe, execution=Execution(cache_features=True))
    tower = 2 * PAIRS * 65 * (model.vit.embed.patch.weight.numel() + 2 * (4 * 96**2 + 2 * 96 * 384))
    attention = 2 * PAIRS * 65 * 4 * 65 * 96
    assert step_flops(model, recipe, load) - step_flops(model, kept, load) == tower + attention


def test_lower_adapters_that_rest_are_not_computed_backwards() -> None:
    model, recipe = make_model(STAGE_1), make_recipe(Contrastive(), STAGE_1)
    whole = estimate(model, recipe, SIZES)
    freeze(model, UPPER)
    upper = estimate(model, replace(recipe, params=UPPER), SIZES)
    assert upper.flops < 0.8 * whole.flops
    assert upper.activations < 0.6 * whole.activations


def test_the_table_names_the_parts() -> None:
    names = [group.name for group in parameter_groups(make_model(EVERYTHING))]
    assert {"vit.layers", "qllama.queries", "qllama.layers", "text_projection", "query_pool"} <= set(names)
    assert len(names) == len(set(names))
