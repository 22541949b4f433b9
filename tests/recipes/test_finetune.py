"""Second fine-tunes, the caption tutorial and domains against the tables of the released scripts."""

from __future__ import annotations

from typing import Literal

import pytest

from internvl.recipes import finetune
from internvl.training.objective_spec import NextToken
from internvl.training.recipe import AdamW, Schedule
from tests.recipes.learning import learning

PERCENT_3 = Schedule(kind="cosine", warmup=0.03)


@pytest.mark.parametrize(
    ("model", "rate", "decay", "drop_path", "length", "tiles"),
    [
        ("v1.5-2b", 4e-5, 0.01, 0.1, 4096, 12),
        ("v1.5-4b", 4e-5, 0.05, 0.1, 4096, 12),
        ("v1.5-20b", 2e-5, 0.05, 0.4, 4096, 12),
        ("v2-1b", 4e-5, 0.01, 0.1, 4096, 6),
        ("v2-4b", 4e-5, 0.01, 0.1, 4096, 6),
        ("v2-8b", 4e-5, 0.05, 0.1, 4096, 6),
        ("v2-26b", 2e-5, 0.05, 0.4, 4096, 6),
        ("v2-40b", 2e-5, 0.05, 0.4, 4096, 6),
        ("v2-76b", 2e-5, 0.05, 0.4, 4096, 6),
        ("v2.5-1b", 4e-5, 0.01, 0.1, 8192, 6),
        ("v2.5-4b", 4e-5, 0.01, 0.1, 8192, 6),
        ("v2.5-8b", 4e-5, 0.05, 0.1, 8192, 6),
        ("v2.5-78b", 2e-5, 0.05, 0.4, 8192, 6),
    ],
)
def test_second_fine_tunes(
    model: str, rate: float, decay: float, drop_path: float, length: int, tiles: int
) -> None:
    """With adapters of rank 16: batch 16 in place of 128, and no drop path."""
    settings = AdamW(lr=rate, weight_decay=decay)
    full, lora = finetune.second_full(model), finetune.second_lora(model)
    assert learning(full.params) == {"projector": settings, "llm": settings}
    assert learning(lora.params) == {"adapters": settings}
    assert (full.model.drop_path, lora.model.drop_path) == (drop_path, 0.0)
    assert (full.data.batching.examples, lora.data.batching.examples) == (128, 16)
    ((_, adapter),) = lora.model.adapters
    assert (adapter.rank, adapter.scale, adapter.dropout) == (16, 2.0, 0.05)
    for recipe in (full, lora):
        assert (recipe.data.max_length, recipe.model.max_tiles, recipe.epochs) == (length, tiles, 1)
        assert recipe.schedule == PERCENT_3
        assert recipe.data.group_by_length


@pytest.mark.parametrize(("generation", "length"), [("v1.5", 4096), ("v2", 4096), ("v2.5", 8192)])
def test_coco_captions(generation: Literal["v1.5", "v2", "v2.5"], length: int) -> None:
    recipe = finetune.coco_lora(generation)
    assert learning(recipe.params) == {"adapters": AdamW(lr=4e-5, weight_decay=0.01)}
    ((_, adapter),) = recipe.model.adapters
    assert (adapter.rank, adapter.scale) == (128, 2.0)
    assert (recipe.data.batching.examples, recipe.data.max_length) == (512, length)
    assert (recipe.model.drop_path, recipe.model.max_tiles, recipe.epochs) == (0.0, 6, 1)
    assert recipe.schedule == PERCENT_3


@pytest.mark.parametrize(
    ("name", "steps"), [("bdd", 240), ("drivelm", 15_100), ("medical", 2_200), ("remote", 2_500)]
)
def test_domains(name: str, steps: int) -> None:
    recipe = finetune.domain(name)
    settings = AdamW(lr=1e-5, weight_decay=0.01)
    assert learning(recipe.params) == dict.fromkeys(("vit", "projector", "llm"), settings)
    assert (recipe.steps, recipe.schedule) == (steps, PERCENT_3)
    batching = recipe.data.batching
    assert (batching.packs, batching.max_tokens, batching.max_tiles) == (8, 16_384, 48)
    assert (recipe.data.max_length, recipe.model.max_tiles, recipe.model.drop_path) == (8192, 12, 0.1)
    assert recipe.objective == NextToken(reduction="square")


def test_ones_own_data() -> None:
    lora, full = finetune.lora(), finetune.full()
    assert set(learning(lora.params)) == {"adapters"}
    assert set(learning(full.params)) == {"projector", "llm"}
