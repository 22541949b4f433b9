"""Recipes that cannot be carried out are refused when they are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from internvl.adapt.lora import LoRA
from internvl.errors import TrainingError
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving

RECIPE = Recipe(name="x", params=((".*", AdamW(lr=1.0)),), steps=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "give steps or epochs, one of them"),
        ({"epochs": 1.0}, "give steps or epochs, one of them"),
        ({"steps": 0}, r"no length \(0\)"),
        ({"steps": None, "epochs": -0.5}, r"no length \(-0\.5\)"),
        ({"log_every": 0}, "log_every counts from 1, got 0"),
        ({"evaluation": Evaluation(every=0)}, r"evaluation\.every counts from 1, got 0"),
        ({"saving": Saving(every=-1)}, r"saving\.every counts from 1, got -1"),
        ({"saving": Saving(keep=0)}, r"saving\.keep counts from 1, got 0"),
        ({"execution": Execution(accumulate=0)}, r"execution\.accumulate counts from 1, got 0"),
        ({"model": ModelSpec(frozen_dtype="bfloat16")}, r"frozen_dtype needs execution\.autocast"),
        ({"model": ModelSpec(int8=(".*",))}, r"model\.int8 needs model\.adapters"),
    ],
)
def test_what_does_not_go_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=f"recipe x: .*{message}"):
        replace(RECIPE, **change)


def test_what_goes_together() -> None:
    model = ModelSpec(int8=(".*",), adapters=((".*", LoRA(rank=2)),), frozen_dtype="bfloat16")
    made = replace(RECIPE, steps=None, epochs=0.5, model=model, execution=Execution(autocast="bfloat16"))
    assert made.epochs == 0.5
