"""Recipes that cannot be carried out are refused when they are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from internvl.adapt.lora import LoRA
from internvl.data.spec import DataSpec
from internvl.errors import TrainingError
from internvl.training.objective_spec import Contrastive, NextToken, Preference, SelfCritical, Stage2
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving, Schedule

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
        ({"evaluation": Evaluation(examples=0)}, r"evaluation\.examples counts from 1, got 0"),
        ({"evaluation": Evaluation(max_new_tokens=0)}, r"evaluation\.max_new_tokens counts from 1, got 0"),
        ({"evaluation": Evaluation(patience=0)}, r"evaluation\.patience counts from 1, got 0"),
        ({"clip_norm": 0.0}, r"clip_norm is above 0, or none, got 0\.0"),
        ({"saving": Saving(every=-1)}, r"saving\.every counts from 1, got -1"),
        ({"saving": Saving(keep=0)}, r"saving\.keep counts from 1, got 0"),
        ({"execution": Execution(accumulate=0)}, r"execution\.accumulate counts from 1, got 0"),
        ({"evaluation": Evaluation(result="best")}, r"evaluation\.result=best needs evaluation\.data"),
        ({"model": ModelSpec(frozen_dtype="bfloat16")}, r"frozen_dtype needs execution\.autocast"),
        ({"model": ModelSpec(int8=(".*",))}, r"model\.int8 needs model\.adapters"),
        ({"model": ModelSpec(image_size=448)}, r"model\.image_size is of dual encoders"),
        ({"data": DataSpec(clean_captions=True)}, r"data\.clean_captions is for pairs"),
    ],
)
def test_what_does_not_go_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=f"recipe x: .*{message}"):
        replace(RECIPE, **change)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (AdamW, {"lr": 0.0}, r"lr\) is above 0, got 0\.0"),
        (AdamW, {"lr": 1.0, "betas": (1.0, 0.9)}, r"betas lie in \[0, 1\), got 1\.0, 0\.9"),
        (AdamW, {"lr": 1.0, "betas": (0.9, 2.0)}, r"betas lie in \[0, 1\)"),
        (AdamW, {"lr": 1.0, "eps": 0.0}, "eps is above 0"),
        (AdamW, {"lr": 1.0, "weight_decay": -0.1}, "weight_decay is not negative"),
        (AdamW, {"lr": 1.0, "layer_decay": 1e308}, r"layer_decay lies in \(0, 1\]"),
        (ModelSpec, {"drop_path": 1.0}, r"drop_path lies in \[0, 1\)"),
        (ModelSpec, {"drop_path": -0.1}, r"drop_path lies in \[0, 1\)"),
        (ModelSpec, {"max_tiles": 0}, "max_tiles is from 1 to 512"),
        (ModelSpec, {"max_tiles": 513}, "max_tiles is from 1 to 512"),
        (Preference, {"beta": 0.0}, "beta is above 0"),
        (Preference, {"bco_weight": -1.0}, "not negative"),
        (Preference, {"sigmoid_weight": 0, "bco_weight": 0, "chosen_weight": 0}, "nor all 0"),
        (Contrastive, {"label_smoothing": 1.0}, r"label_smoothing lies in \[0, 1\)"),
        (Contrastive, {"label_smoothing": 0.1, "loss": "sigmoid"}, "for softmax alone, got 0.1"),
        (Stage2, {"label_smoothing": -0.1}, r"label_smoothing lies in \[0, 1\)"),
        (Stage2, {"itm": -1.0}, "not negative"),
        (Stage2, {"itc": 0.0, "itm": 0.0, "itg": 0.0}, "nor all 0"),
        (Schedule, {"warmup": -1.0}, "warmup is a share below 1, or a number of steps"),
        (Schedule, {"decay": 1.5}, "decay is a share of the run"),
        (Schedule, {"final": -0.5}, "final is a share of the peak rate"),
    ],
)
def test_settings_that_cannot_be(kind: Any, settings: dict[str, Any], message: str) -> None:
    """They would end in a traceback of the optimiser, or train in silence what nobody asked for."""
    with pytest.raises(TrainingError, match=message):
        kind(**settings)


@pytest.mark.parametrize("objective", [Contrastive(), Stage2()])
def test_pairs_are_compared_within_one_micro_batch(objective: Contrastive | Stage2) -> None:
    with pytest.raises(TrainingError, match="accumulate is 2, but contrastive pairs"):
        replace(RECIPE, objective=objective, execution=Execution(accumulate=2))


def test_captions_are_not_drawn_from_sharded_weights() -> None:
    """Captions end after different numbers of tokens, and processes would wait for each other for ever."""
    with pytest.raises(TrainingError, match=r"recipe x: SelfCritical .* set execution\.parallel=ddp"):
        replace(RECIPE, objective=SelfCritical(), execution=Execution(parallel="fsdp"))


@pytest.mark.parametrize(("metric", "objective"), [("recall", NextToken()), ("cider", Contrastive())])
def test_measurements_belong_to_objectives(metric: Any, objective: NextToken | Contrastive) -> None:
    with pytest.raises(TrainingError, match=f"evaluation.metric {metric} is not measured with"):
        replace(RECIPE, objective=objective, evaluation=Evaluation(metric=metric))


def test_what_goes_together() -> None:
    model = ModelSpec(int8=(".*",), adapters=((".*", LoRA(rank=2)),), frozen_dtype="bfloat16")
    made = replace(RECIPE, steps=None, epochs=0.5, model=model, execution=Execution(autocast="bfloat16"))
    assert made.epochs == 0.5
