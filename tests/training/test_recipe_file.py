"""Recipes survive JSON, and settings reach every field with its type."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internvl.data.spec import Batching, DataSpec
from internvl.errors import InputError, TrainingError
from internvl.training.objective_spec import Contrastive, NextToken, Preference, Stage2
from internvl.training.recipe import AdamW, Evaluation, Execution, LoRA, ModelSpec, Recipe, Schedule
from internvl.training.recipe_file import dump, load, override, read, write

PLAIN = Recipe(name="plain", params=((".*", AdamW(lr=1e-3)),), steps=10)
RICH = Recipe(
    name="rich",
    params=((r"llm\..*", None), ("a,=.*", AdamW(lr=1, betas=(0.8, 0.9), layer_decay=0.5))),
    model=ModelSpec(adapters=((r"llm\..*", LoRA(rank=4, dropout=0.1)),), int8=("a", "b"), select_layer=-4),
    data=DataSpec(meta="meta.json", batching=Batching(packs=3)),
    objective=Preference(beta=0.2),
    epochs=0.5,
    clip_norm=None,
    evaluation=Evaluation(data=DataSpec(meta="val.jsonl"), patience=3),
    execution=Execution(recompute=("llm.*",)),
)


PAIRS = replace(PLAIN, objective=Contrastive(loss="sigmoid", soft_targets=True))
MATCHED = replace(PLAIN, objective=Stage2(itg=0, backbone=True, matches="half"))


@pytest.mark.parametrize("recipe", [PLAIN, RICH, PAIRS, MATCHED])
def test_a_recipe_survives_json(recipe: Recipe, tmp_path: Path) -> None:
    assert load(json.loads(json.dumps(dump(recipe)))) == recipe
    write(tmp_path / "recipe.json", recipe)
    assert read(tmp_path / "recipe.json") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_paths_that_are_not_utf8_survive(tmp_path: Path) -> None:
    """As Python names such files of a Linux disk."""
    recipe = replace(PLAIN, data=DataSpec(meta="caf\udce9/图.jsonl"))
    write(tmp_path / "recipe.json", recipe)
    assert read(tmp_path / "recipe.json") == recipe
    assert "图" in (tmp_path / "recipe.json").read_text(encoding="utf-8")


def test_whole_numbers_become_floats_where_floats_belong() -> None:
    rate = load({"name": "x", "steps": 1, "params": [[".*", {"lr": 1}]]}).params[0][1]
    assert rate is not None
    assert isinstance(rate.lr, float)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["schedule.warmup=100"], replace(PLAIN, schedule=Schedule(warmup=100.0))),
        (["schedule.kind=wsd"], replace(PLAIN, schedule=Schedule(kind="wsd"))),
        (["steps=none", "epochs=2"], replace(PLAIN, steps=None, epochs=2.0)),
        (["name=7"], replace(PLAIN, name="7")),
        (["name=a=b"], replace(PLAIN, name="a=b")),
        (["clip_norm=null"], replace(PLAIN, clip_norm=None)),
        (["params.0.1.lr=0.5"], replace(PLAIN, params=((".*", AdamW(lr=0.5)),))),
        (["params.0.1=none"], replace(PLAIN, params=((".*", None),))),
        (["params.0.1.betas.1=0.98"], replace(PLAIN, params=((".*", AdamW(lr=1e-3, betas=(0.9, 0.98))),))),
        (['params=[["x", {"lr": 2}]]'], replace(PLAIN, params=(("x", AdamW(lr=2.0)),))),
        (["data.share_pictures=False"], replace(PLAIN, data=DataSpec(share_pictures=False))),
        (['data.batching={"packs": 2}'], replace(PLAIN, data=DataSpec(batching=Batching(packs=2)))),
        (
            ["data.batching.examples=none", "data.batching.packs=2"],
            replace(PLAIN, data=DataSpec(batching=Batching(packs=2))),
        ),
        (
            ["evaluation.data.meta=val.jsonl"],
            replace(PLAIN, evaluation=Evaluation(data=DataSpec(meta="val.jsonl"))),
        ),
        (["objective.reduction=square"], replace(PLAIN, objective=NextToken(reduction="square"))),
        (
            ["objective.type=Stage2", "objective.itm=0.5", "objective.matches=half"],
            replace(PLAIN, objective=Stage2(itm=0.5, matches="half")),
        ),
        (
            ["objective.type=Preference", "objective.beta=0.3"],
            replace(PLAIN, objective=Preference(beta=0.3)),
        ),
        (['execution.recompute=["llm.*"]'], replace(PLAIN, execution=Execution(recompute=("llm.*",)))),
    ],
)
def test_settings(settings: list[str], expected: Recipe) -> None:
    assert override(PLAIN, settings) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("warmup", "write name=value"),
        ("=3", "write name=value"),
        ("warmup=3", "no field 'warmup'; there are name, params"),
        ("schedule.wormup=3", "no field 'wormup'; there are kind, warmup"),
        ("schedule.warmup.x=3", "nothing below this field, so 'x'"),
        ("schedule.warmup=fast", "recipe.schedule.warmup is a finite number, not 'fast'"),
        ("schedule.warmup=NaN", "finite"),
        ("schedule.warmup=1e999", "finite"),
        ("schedule.warmup=1" + "0" * 400, "recipe.schedule.warmup is a finite number, not 1000"),
        ("schedule.kind=linear", "one of cosine, wsd, constant, not 'linear'"),
        ("steps=1.5", "recipe.steps is a whole number"),
        ("steps=true", "recipe.steps is a whole number"),
        ("data.share_pictures=1", "true or false, not 1"),
        ("schedule=3", "recipe.schedule is a JSON object, not 3"),
        ("schedule=none", "recipe.schedule is a JSON object"),
        ("model.int8=llm", "recipe.model.int8 is a JSON list"),
        ("params.0.1.betas=[0.9]", "recipe.params.0.1.betas has 2 values"),
        ("params.1.1.lr=3", "'1' is no place in a list of 1"),
        ("params.x=3", "'x' is no place"),
        ("objective.beta=0.1", "no field 'beta'; there are reduction"),
        (
            "objective.type=Nonsense",
            "one of NextToken, Preference, Contrastive, Stage2, SelfCritical, not 'Nonsense'",
        ),
        ('objective={"beta": 1}', "recipe.objective.type is one of"),
        ('params=[["x", {"betas": [0, 0]}]]', "recipe.params.0.1 needs lr"),
        ("model.adapters=[[" * 5000, "JSON list"),
    ],
)
def test_wrong_settings_say_what_there_is(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        override(PLAIN, [setting])


def test_the_recipes_own_rules_hold() -> None:
    with pytest.raises(TrainingError, match="steps or epochs"):
        override(PLAIN, ["epochs=1"])
    with pytest.raises(InputError, match="examples or packs"):
        override(PLAIN, ["data.batching.packs=1"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"steps": 1}, "recipe needs name, params"),
        ({**dump(PLAIN), "stepz": 1}, "recipe has no field 'stepz'"),
        ({**dump(PLAIN), "name": 3}, "recipe.name is text"),
        ([], "JSON object"),
    ],
)
def test_files_that_are_no_recipe(document: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "recipe.json")


def test_files_that_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff{")
    (tmp_path / "b").write_text("[" * 100_000)
    (tmp_path / "c").write_text(" " * 1_000_001)
    for name, message in (("a", "not JSON"), ("b", "not JSON"), ("c", "1000001 bytes"), ("d", "no recipe")):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
