"""One process, and two with gloo: sums, gradients under DDP and FSDP, whole weights of a sharded model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from internvl.errors import DeviceError, TrainingError
from internvl.training.world import World, distribute, open_world, whole
from tests.training.processes import run
from tests.training.world_worker import Run

WORKER = "tests.training.world_worker"
MODES = ("ddp", "fsdp")


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = open_world("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(world.sum(values), values)
    assert world.any(True)
    assert not world.any(False)
    world.barrier()
    module = nn.Linear(2, 2)
    assert distribute(module, "fsdp", world) is module
    with whole(module):
        assert module.state_dict().keys() == {"weight", "bias"}
    world.close()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "2 processes on cpu with rank None"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "with rank 2: start them with `torchrun"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE='two' is no number"),
    ],
)
def test_an_environment_that_is_not_of_torchrun(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=message):
        open_world("cpu")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(DeviceError, match="no device cuda:0: this machine has 0 CUDA devices"):
        open_world("cuda")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed in each mode."""
    folder = tmp_path_factory.mktemp("two")
    run(2, WORKER, "gradients", folder, *MODES)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_are_one(measured: Path, mode: str) -> None:
    """Pictures on one process and text alone on the other: neither hangs, and the gradients are exact."""
    two = load_file(measured / f"{mode}.safetensors")
    assert two["sum"].tolist() == [3.0, 20.0]
    assert two["any"].tolist() == [True, False]
    one = Run(World())
    states = one.states()
    one.backward()
    for name, gradient in one.gradients().items():
        torch.testing.assert_close(two[f"gradient/{name}"], gradient, rtol=1e-4, atol=1e-6)
    assert sum(name.startswith("gradient/") for name in two) == len(one.gradients())
    for moment in ("before", "after"):
        torch.testing.assert_close(two[moment], states, rtol=1e-4, atol=2e-6)
    for name, value in one.model.state_dict().items():
        assert torch.equal(two[f"state/{name}"], value), name
