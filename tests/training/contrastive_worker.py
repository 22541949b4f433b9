"""What the processes of test_contrastive_of_processes.py do: `python -m ... FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from internvl.training.loop import Objected
from internvl.training.objective_spec import Contrastive, ObjectiveSpec, Stage2
from internvl.training.objectives import make_objective
from internvl.training.world import Mode, World, distribute, open_world
from tests.training.dual import dual_encoder, pairs
from tests.training.world_worker import full

SPECS: Mapping[str, ObjectiveSpec] = {
    "softmax": Contrastive(label_smoothing=0.1),
    "shared": Contrastive(soft_targets=True),
    "sigmoid": Contrastive(loss="sigmoid"),
    "queries": Contrastive(mode="G"),
    "stage2": Stage2(backbone=True, matches="half"),
    "retrieval": Stage2(itg=0, backbone=True, soft_targets=True),
}
KINDS: tuple[tuple[Mode, str], ...] = (
    *(("ddp", name) for name in SPECS),
    ("fsdp", "softmax"),
    ("fsdp", "stage2"),
)


def measure(world: World, mode: Mode, name: str) -> dict[str, Tensor]:
    """Loss, weight, metrics and summed gradients of a step; the first process has four pairs of six."""
    model = dual_encoder()
    alone = make_objective(SPECS[name])
    alone(model, pairs()).total.backward()
    for parameter in model.parameters():  # what this objective leaves alone is frozen, as recipes must
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    module = distribute(Objected(model, make_objective(SPECS[name], world=world)), mode, world)
    torch.manual_seed(world.rank)
    bounds = [(0, 4), (4, 6)][world.rank] if world.size > 1 else (0, 6)
    loss = module(pairs(*bounds))
    loss.total.backward()
    kept = {
        name: full(parameter.grad) * world.size
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    sums = {"loss": float(loss.total.detach()), "weight": loss.weight, **loss.metrics}
    return kept | {name: world.sum(torch.tensor(value)) for name, value in sums.items()}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    world = open_world("cpu")
    for mode, name in KINDS:
        kept = measure(world, mode, name)
        if world.is_main:
            values = {name: value.contiguous().clone() for name, value in kept.items()}
            save_file(values, Path(folder) / f"{mode}-{name}.safetensors")
    world.close()


if __name__ == "__main__":
    main(sys.argv[1])
