"""Training on pairs: two processes are one, a run that was killed is the run that was not, bit for bit, and
kept features are those of the tower."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from internvl.adapt.lora import LoRA, merge_adapters
from internvl.checkpoints.adapters import load_adapters
from internvl.checkpoints.deltas import apply_deltas, read_deltas
from internvl.checkpoints.load import build, load_model
from internvl.data.spec import Batching, DataSpec
from internvl.models.dual_encoder import DualEncoder
from internvl.training import recipe_file
from internvl.training.objective_spec import Contrastive, Stage2
from internvl.training.recipe import AdamW, Evaluation, Execution, ModelSpec, Recipe, Saving
from internvl.training.run import run
from tests.conftest import GoldenFixtures
from tests.invariants.training_worker import losses, rows
from tests.training.processes import finish, start
from tests.training.processes import run as run_processes

WORKER = "tests.invariants.training_worker"
STEPS = 6
TEXT = r"qllama\.layers\.\d+\.(attn|mlp)\..*"
ROUNDING = r"(image|query)_pool\.(norm_)?k\.bias"
"""Adds the same to all scores, so its gradient is rounding alone, of which AdamW makes whole steps."""
QUERIES = r"qllama\.queries|.*\.cross\..*|query_pool\..*|itm_head\..*"
POOLS = r"image_pool\..*|text_projection|logit_scale"
SETTINGS = AdamW(lr=1e-3, weight_decay=0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures with captions in two languages."""
    folder, lines = tmp_path_factory.mktemp("pairs"), []
    for index in range(16):
        Image.new("RGB", (60, 40 + index), (index * 16, 90, 255 - 15 * index)).save(folder / f"{index}.png")
        english = [f"colour {index}", f"a picture, number {index}, of nothing"]
        lines.append(json.dumps({"image": f"{index}.png", "en": english, "zh": [f"第{index}"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


@pytest.fixture
def recipe(golden_dir: GoldenFixtures, data: Path) -> Recipe:
    """Adapters on the text model, pool and projections; a checkpoint every other step."""
    return Recipe(
        name="pairs",
        model=ModelSpec(
            checkpoint=str(golden_dir / "internvl_14b"), image_size=56, adapters=((TEXT, LoRA(rank=2)),)
        ),
        params=((ROUNDING, None), (r".*\.lora_.*", SETTINGS), (POOLS, SETTINGS), (".*", None)),
        data=DataSpec(meta=str(data), batching=Batching(examples=4)),
        objective=Contrastive(soft_targets=True),
        steps=STEPS,
        log_every=1,
        evaluation=Evaluation(data=DataSpec(meta=str(data)), every=3, examples=8, metric="recall"),
        saving=Saving(every=2),
    )


def assert_close(out: Path, reference: Path) -> None:
    """Losses and measurements to rounding, and what was learnt."""
    found, expected = (torch.tensor(losses(folder), dtype=torch.float64) for folder in (out, reference))
    assert len(found) == STEPS
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=1e-5, atol=0)
    measured = [[row["val_loss"] for row in rows(folder) if "val_loss" in row] for folder in (out, reference)]
    assert len(measured[0]) == 2
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    before, after = (load_file(folder / "model/model.safetensors") for folder in (reference, out))
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=5e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(recipe: Recipe, tmp_path: Path, parallel: str) -> None:
    assert run(recipe, tmp_path / "one").reason == "finished"
    recipe_file.write(
        tmp_path / "recipe.json", recipe_file.override(recipe, [f"execution.parallel={parallel}"])
    )
    run_processes(2, WORKER, tmp_path / "recipe.json", tmp_path / "two")
    assert_close(tmp_path / "two", tmp_path / "one")


def test_processes_name_what_is_trained_and_unused(recipe: Recipe, tmp_path: Path) -> None:
    """Comparing alone needs no queries."""
    model = replace(recipe.model, adapters=())
    recipe = replace(recipe, model=model, params=((".*", SETTINGS),), steps=1)
    recipe_file.write(tmp_path / "recipe.json", recipe)
    assert finish(start(2, WORKER, tmp_path / "recipe.json", tmp_path / "two")) == [1, 1]
    report = (tmp_path / "two" / "report.md").read_text()
    assert re.search(r"failed: \d+ trained parameters .* in qllama, query_pool, itm_head; the first", report)
    assert "freeze them by a rule of params, or take execution.parallel=fsdp" in report
    sharded = recipe_file.override(recipe, ["execution.parallel=fsdp"])
    recipe_file.write(tmp_path / "recipe.json", sharded)
    run_processes(2, WORKER, tmp_path / "recipe.json", tmp_path / "two")


@pytest.mark.parametrize("matches", ["half", "both"])
def test_two_processes_draw_the_wrong_texts_of_one(recipe: Recipe, tmp_path: Path, matches: str) -> None:
    """Processes share a step by the length of its texts, so the order of its pairs is another."""
    spec = Stage2(matches="half" if matches == "half" else "both")
    rules = ((ROUNDING, None), (QUERIES, SETTINGS), (".*", None))
    recipe = replace(recipe, model=replace(recipe.model, adapters=()), params=rules, objective=spec)
    assert run(recipe, tmp_path / "one").reason == "finished"
    recipe_file.write(tmp_path / "recipe.json", recipe)
    run_processes(2, WORKER, tmp_path / "recipe.json", tmp_path / "two")
    assert_close(tmp_path / "two", tmp_path / "one")


def whole(recipe: Recipe, **changes: Any) -> Recipe:
    """All of the model learns to compare, to match and to write, with drop path."""
    model = replace(recipe.model, adapters=(), drop_path=0.2)
    return replace(recipe, model=model, params=((".*", SETTINGS),), objective=Stage2(), **changes)


def test_killed_in_mid_save_and_resumed(recipe: Recipe, tmp_path: Path) -> None:
    recipe = whole(recipe, ema=0.9)
    assert run(recipe, tmp_path / "whole").reason == "finished"
    recipe_file.write(tmp_path / "recipe.json", recipe)
    out = tmp_path / "parts"
    assert finish(start(1, WORKER, tmp_path / "recipe.json", out, "kill", "4", "0")) == [-9]
    assert run(recipe, out, resume=True).reason == "finished"
    assert losses(out) == losses(tmp_path / "whole")
    found, expected = (load_file(one / "model/model.safetensors") for one in (out, tmp_path / "whole"))
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_kept_features_are_the_towers(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "tower")
    cached = replace(recipe, execution=Execution(cache_features=True))
    run(cached, tmp_path / "kept")
    assert_close(tmp_path / "kept", tmp_path / "tower")
    assert len(list((tmp_path / "kept" / "features").rglob("*.safetensors"))) == 16


def test_the_result_is_the_model_and_what_was_learnt(
    recipe: Recipe, tmp_path: Path, golden_dir: GoldenFixtures
) -> None:
    """The checkpoint has the adapters in its weights; so has the start with the deltas added, or with the
    adapters put on and merged."""
    recipe = recipe_file.override(recipe, ["model.image_size=none", "steps=2"])
    outcome = run(recipe, tmp_path)
    assert outcome.result == tmp_path / "model"
    made, start = load_model(outcome.result), load_model(golden_dir / "internvl_14b")
    assert isinstance(made, DualEncoder)
    contents = [path.read_bytes() for path in sorted((tmp_path / "deltas").iterdir())]
    deltas = read_deltas(contents)
    assert "logit_scale" in deltas
    joined = apply_deltas(start.state_dict(), deltas, build(made.config))
    adapted = load_model(golden_dir / "internvl_14b")
    load_adapters(adapted, tmp_path / "adapter")
    merge_adapters(adapted)
    differing = []
    for name, value in made.state_dict().items():
        torch.testing.assert_close(joined[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(adapted.state_dict()[name], value, rtol=0, atol=1e-6)
        differing += [] if torch.equal(value, start.state_dict()[name]) else [name]
    assert {"qllama.layers.0.attn.qkv.weight", "text_projection", "logit_scale"} <= set(differing)
    assert not any(name.startswith(("vit.", "qllama.head", "query_pool")) for name in differing)


def test_a_run_goes_on_from_the_adapters_of_another(recipe: Recipe, tmp_path: Path) -> None:
    """Nothing is learnt at a rate near zero: the second run hands over what the first one did. Of a model
    joined from parts the new ones that nobody trained come from the seed."""
    assert run(recipe, tmp_path / "one").reason == "finished"
    on = recipe_file.override(recipe, [f"model.adapter={tmp_path / 'one' / 'adapter'}", "steps=1"])
    on = replace(on, params=((ROUNDING, None), (".*lora_up", AdamW(lr=1e-30)), (".*", None)))
    assert run(on, tmp_path / "two").reason == "finished"
    first, second = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    started = load_model(recipe.model.checkpoint).state_dict()
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(second[name], value)] == []
    assert not torch.equal(first["text_projection"], started["text_projection"])
