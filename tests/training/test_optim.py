"""Parameter groups from patterns, and the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from internvl.errors import InputError, TrainingError
from internvl.models.vlm import VLM
from internvl.training.optim import lr_scale, make_optimizer, schedule
from internvl.training.recipe import AdamW, Recipe

FROZEN = (".*", None)
RECIPE = Recipe(name="x", params=(FROZEN,), steps=110, batch_size=1, warmup=10, final_lr=0.1)


def test_groups_freeze_and_decay(model: VLM) -> None:
    rules = ((r"projector\..*", AdamW(lr=1e-3, weight_decay=0.1)), (r"llm\.norm\..*", AdamW(lr=2e-3)), FROZEN)
    optimizer = make_optimizer(model, rules)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (1e-3, 0.1),
        (1e-3, 0.0),
        (2e-3, 0.0),
    ]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"projector.{name}" for name, _ in model.projector.named_parameters()} | {
        "llm.norm.weight"
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((r"projector\..*", AdamW(lr=1.0)),), "no rule names"),
        (((r"projectr\..*", AdamW(lr=1.0)), FROZEN), "projectr"),
        ((FROZEN,), "nothing to train"),
    ],
)
def test_wrong_rules_are_named(model: VLM, rules: tuple[tuple[str, AdamW | None], ...], message: str) -> None:
    with pytest.raises((TrainingError, InputError), match=message):
        make_optimizer(model, rules)


def test_schedule() -> None:
    scales = [lr_scale(step, RECIPE) for step in (0, 9, 10, 60, 110, 500)]
    assert scales == pytest.approx([0.1, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_schedule_sets_every_group() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW(
        [{"params": [w], "lr": 1.0, "peak": p} for w, p in zip(weights, (1.0, 2.0), strict=True)]
    )
    assert schedule(optimizer, 60, RECIPE) == pytest.approx(0.55)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(1.1)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"warmup": 111}, {"save_every": 0}])
def test_impossible_recipes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(TrainingError, match="recipe x"):
        replace(RECIPE, **change)
