"""A run that is stopped, asked or killed, and continued is the run that was not: bit for bit on one process,
to rounding where the number of processes changes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from internvl.training import recipe_file
from internvl.training.recipe import Recipe
from internvl.training.run import run
from tests.conftest import GoldenFixtures
from tests.invariants.training_worker import STEPS, Ending, losses, make_recipe, write_records
from tests.training.processes import finish, start
from tests.training.processes import run as run_processes

WORKER = "tests.invariants.training_worker"


class Whole(NamedTuple):
    """A recipe, its file, and the folder of a run of it that nothing disturbs."""

    recipe: Recipe
    file: Path
    out: Path


@pytest.fixture(scope="module", params=[0.2], ids=["drop_path"])
def whole(
    request: pytest.FixtureRequest, golden_dir: GoldenFixtures, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    """With drop path, so that random numbers count, unless another rate is asked for."""
    folder = tmp_path_factory.mktemp("whole")
    checkpoint, data = golden_dir / "internvl2_5_qwen2", write_records(folder)
    made = Whole(
        make_recipe(checkpoint, data, drop_path=request.param), folder / "recipe.json", folder / "out"
    )
    assert run(made.recipe, made.out).reason == "finished"
    recipe_file.write(made.file, made.recipe)
    return made


def results(out: Path) -> dict[str, Tensor]:
    """The tensors of the last checkpoint and of the exported model."""
    files = [
        *(out / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"),
        out / "model/model.safetensors",
    ]
    return {f"{path.name}/{name}": value for path in files for name, value in load_file(path).items()}


def assert_identical(out: Path, reference: Path) -> None:
    assert losses(out) == losses(reference)
    found, expected = results(out), results(reference)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_interrupted_and_resumed(whole: Whole, tmp_path: Path) -> None:
    """Twice: between checkpoints, and at the step of one."""
    recipe, out = whole.recipe, tmp_path
    for step in (7, 15):
        with Ending(out, "ask", step):
            outcome = run(recipe, out, resume=True)
        assert (outcome.reason, outcome.step, outcome.result) == ("interrupted", step, None)
        assert len(losses(out)) == step
    assert run(recipe, out, resume=True).reason == "finished"
    assert_identical(out, whole.out)


@pytest.mark.parametrize("whole", [0.0], indirect=True, ids=["no_drop_path"])
def test_killed_in_mid_save_and_resumed_on_one_two_and_one_processes(whole: Whole, tmp_path: Path) -> None:
    """SIGKILL while step 10 is saved; two processes go on from step 5, one of them is asked to stop after 13
    steps; one process ends the run."""
    recipe, out = whole.recipe, tmp_path / "parts"
    assert finish(start(1, WORKER, whole.file, out, "kill", "10", "0")) == [-9]
    assert len(losses(out)) >= 10
    checkpoints = out / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000005", "step-00000010.partial"]
    sharded = recipe_file.override(recipe, ["execution.parallel=fsdp"])
    recipe_file.write(tmp_path / "sharded.json", sharded)
    run_processes(2, WORKER, tmp_path / "sharded.json", out, "ask", "13", "1")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000010", "step-00000013"]
    assert run(recipe, out, resume=True).reason == "finished"
    expected, found = (torch.tensor(losses(folder), dtype=torch.float64) for folder in (whole.out, out))
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=1e-5, atol=0)
    # What AdamW makes of rounding: a quarter of one step, of the twenty that were taken.
    torch.testing.assert_close(results(out), results(whole.out), rtol=0, atol=5e-5)


@pytest.mark.parametrize("step", [5, 10])
def test_killed_in_mid_save_and_resumed(whole: Whole, tmp_path: Path, step: int) -> None:
    """In the first checkpoint, so that the run starts again, or in the second."""
    recipe, out = whole.recipe, tmp_path
    assert finish(start(1, WORKER, whole.file, out, "kill", str(step), "0")) == [-9]
    assert (out / "checkpoints" / f"step-{step:08d}.partial").is_dir()
    assert run(recipe, out, resume=True).reason == "finished"
    assert_identical(out, whole.out)
