"""Every recipe: written down and read back, and two steps of it on a tiny model and a few records."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from internvl import zoo
from internvl.errors import UnknownNameError
from internvl.recipes import catalog
from internvl.training import recipe_file, report
from internvl.training.objective_spec import Contrastive, Preference, SelfCritical, Stage2
from internvl.training.optim import lr_scale
from internvl.training.recipe import AdamW, Recipe, Saving
from internvl.training.run import run
from tests.recipes.conftest import Small

STEPS = 2
LENGTH = 600


def shrunk(recipe: Recipe, small: Small) -> Recipe:
    """The recipe on other weights and records, in smaller batches; what it learns and how stays."""
    batching = recipe.data.batching
    few = {"examples": 2} if batching.packs is None else {"packs": 2}
    meta = small.pairs if isinstance(recipe.objective, Preference) else small.records
    checkpoint, parts, size = small.checkpoint, recipe.model.contrastive, None
    if isinstance(recipe.objective, Contrastive | Stage2):
        meta, size = small.captions, 56
        checkpoint = small.dual if parts is None else checkpoint
    if parts is not None:
        parts = replace(parts, language=str(checkpoint), num_queries=3, pool_heads=4, image_size=56)
    return replace(
        recipe,
        model=replace(
            recipe.model, checkpoint=str(checkpoint), dtype="float32", contrastive=parts, image_size=size
        ),
        data=replace(
            recipe.data,
            meta=str(meta),
            max_length=LENGTH,
            batching=replace(batching, max_tokens=LENGTH, max_tiles=min(4, batching.max_tiles), **few),
        ),
        steps=STEPS,
        epochs=None,
        log_every=1,
        saving=Saving(every=STEPS),
    )


@pytest.mark.parametrize("name", catalog.names())
def test_a_recipe_is_a_value_that_can_be_written_down(name: str) -> None:
    recipe = catalog.find(name)
    assert recipe.name == name
    assert recipe_file.load(json.loads(json.dumps(recipe_file.dump(recipe)))) == recipe
    assert zoo.find(recipe.model.checkpoint).name == recipe.model.checkpoint
    make = catalog.RECIPES[name]
    assert getattr(make, "func", make).__doc__  # what `--list` shows


@pytest.mark.parametrize("name", catalog.names())
def test_two_steps(name: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are numbers, the rates those of the schedule, and exactly what the rules name is learnt."""
    monkeypatch.setattr(report, "_picture", lambda *_: "")
    recipe = shrunk(catalog.find(name), small)
    outcome = run(recipe, tmp_path)
    assert (outcome.reason, outcome.step) == ("finished", STEPS)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "grad_norm" in row]
    peak = max(settings.lr for _, settings in recipe.params if settings is not None)
    assert [row["lr"] for row in steps] == [
        pytest.approx(peak * lr_scale(step, STEPS, recipe.schedule)) for step in range(STEPS)
    ]
    # What a random model writes mostly scores nothing, so there may be nothing to prefer.
    learns = not isinstance(recipe.objective, SelfCritical)
    assert all(math.isfinite(row["loss"]) and (row["grad_norm"] > 0 or not learns) for row in steps)
    assert ("sigmoid" in steps[0]) == isinstance(recipe.objective, Preference)
    assert not (tmp_path / "bad_samples.jsonl").exists()
    (file,) = (tmp_path / "checkpoints" / "step-00000002").glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        learnt = {key.removeprefix("model/") for key in tensors.keys() if key.startswith("model/")}  # noqa: SIM118
    assert learnt
    assert {decisive(recipe, parameter) for parameter in learnt} == set(trained(recipe))
    assert outcome.result is not None
    is_adapter = recipe.model.adapters and not isinstance(recipe.objective, Contrastive | Stage2)
    assert (outcome.result / ("adapter_config.json" if is_adapter else "config.json")).is_file()


def trained(recipe: Recipe) -> list[tuple[str, AdamW | None]]:
    return [rule for rule in recipe.params if rule[1] is not None]


def decisive(recipe: Recipe, parameter: str) -> tuple[str, AdamW | None]:
    return next(rule for rule in recipe.params if re.fullmatch(rule[0], parameter))


def test_names_are_different() -> None:
    assert len(catalog.RECIPES) == len([*catalog._OWN, *catalog._PUBLISHED])


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match=r"no recipe 'v2\.5-3b'; for example .*v2\.5-"):
        catalog.find("v2.5-3b")
    with pytest.raises(UnknownNameError, match="for example lora, full"):
        catalog.find("")
