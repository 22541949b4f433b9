"""A run is the same whatever number of processes and micro-batches computes its steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.data.spec import DataSpec
from internvl.training import recipe_file
from internvl.training.recipe import AdamW, Evaluation, LoRA
from internvl.training.run import run
from tests.conftest import GoldenFixtures
from tests.invariants.training_worker import STEPS, losses, make_recipe, rows, write_records
from tests.training.processes import run as run_processes

WORKER = "tests.invariants.training_worker"


@pytest.fixture(scope="module")
def runs(golden_dir: GoldenFixtures, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Checkpoint, records, and the folder of a run of one process without accumulation."""
    folder = tmp_path_factory.mktemp("runs")
    checkpoint, data = golden_dir / "internvl2_5_qwen2", write_records(folder)
    outcome = run(make_recipe(checkpoint, data), folder / "one")
    assert (outcome.reason, outcome.step) == ("finished", STEPS)
    return checkpoint, data, folder / "one"


def assert_same(out: Path, reference: Path) -> None:
    """Losses to 1e-5; what was learnt to what AdamW makes of rounding."""
    expected, found = (torch.tensor(losses(folder), dtype=torch.float64) for folder in (reference, out))
    assert len(found) == STEPS
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[:, 2], expected[:, 2], rtol=1e-3, atol=0)
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (reference, out))
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("parallel", "accumulate"), [("ddp", 1), ("fsdp", 2)])
def test_two_processes_are_one(
    runs: tuple[Path, Path, Path], tmp_path: Path, parallel: str, accumulate: int
) -> None:
    checkpoint, data, reference = runs
    recipe = make_recipe(checkpoint, data, parallel=parallel, accumulate=accumulate)
    recipe_file.write(tmp_path / "recipe.json", recipe)
    run_processes(2, WORKER, tmp_path / "recipe.json", tmp_path / "out")
    assert_same(tmp_path / "out", reference)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_are_one_batch(runs: tuple[Path, Path, Path], tmp_path: Path, accumulate: int) -> None:
    checkpoint, data, reference = runs
    run(make_recipe(checkpoint, data, accumulate=accumulate), tmp_path)
    assert_same(tmp_path, reference)


def test_sharded_adapters_over_narrow_weights(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """LoRA over frozen int8 weights, recomputed blocks, measured on the way and written at the end."""
    checkpoint, data, _ = runs
    recipe = make_recipe(checkpoint, data, parallel="fsdp", recompute=(r"llm\.layers\.\d+",))
    layers = r"llm\.layers\..*\.(qkv|out|gate_up|down)"
    recipe = replace(
        recipe,
        steps=4,
        model=replace(recipe.model, adapters=((layers, LoRA(rank=4)),), int8=(layers,)),
        params=((r".*\.lora_.*|projector\..*", AdamW(lr=1e-3)), (".*", None)),
        evaluation=Evaluation(data=DataSpec(meta=str(data)), every=2, examples=5),
    )
    recipe_file.write(tmp_path / "recipe.json", recipe)
    run_processes(2, WORKER, tmp_path / "recipe.json", tmp_path / "two")
    run(recipe, tmp_path / "one")
    one, two = (rows(tmp_path / name) for name in ("one", "two"))
    for key, count in (("loss", 4), ("val_loss", 2)):
        found, expected = ([row[key] for row in logged if key in row] for logged in (two, one))
        assert len(found) == count
        assert found == pytest.approx(expected, rel=1e-5)
    before, after = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "two")
    )
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-4)
