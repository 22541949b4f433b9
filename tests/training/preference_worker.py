"""What the processes of test_preference_of_processes.py do: `python -m ... FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from internvl.adapt.lora import LoRA, add_adapters
from internvl.data.example import Example
from internvl.models.vlm import VLM
from internvl.training.loop import Objected
from internvl.training.objective_spec import Preference
from internvl.training.objectives import MixedPreference
from internvl.training.reference import Reference
from internvl.training.world import Mode, World, distribute, open_world
from tests.training.tiny import batch, chat_model, preference_pairs
from tests.training.world_worker import full

Kind = Literal["copy", "adapters_off"]
KINDS: Mapping[Mode, Kind] = {"ddp": "adapters_off", "fsdp": "copy"}
"""The reference that is tried with each way to spread a model."""


def models(kind: Kind) -> tuple[VLM, VLM]:
    """A start and what training made of it."""
    torch.manual_seed(0)
    start, model = chat_model(), chat_model()
    model.load_state_dict(start.state_dict())
    if kind == "adapters_off":
        model.requires_grad_(False)
        add_adapters(model, [(r"llm\..*", LoRA(rank=2))])
    for name, parameter in model.named_parameters():
        if kind == "copy" or "lora_" in name:
            nn.init.normal_(parameter.requires_grad_(), std=0.2)
    return start, model


def measure(world: World, mode: Mode, kind: Kind) -> dict[str, Tensor]:
    """Summed gradients of two steps and the mean of rewards; the last process has pairs without pictures."""
    start, model = models(kind)
    reference = distribute(Reference(start), "fsdp", world) if kind == "copy" else None
    objective = MixedPreference(Preference(beta=0.5, reference=kind), world.sum, reference)
    module = distribute(Objected(model, objective), mode, world)
    pictures, text = preference_pairs()[:2], preference_pairs()[2:]
    chosen: tuple[Example, ...] = [pictures, text][world.rank] if world.size > 1 else (*pictures, *text)
    for _ in range(2):
        module(batch(*chosen)).total.backward()
    kept = {
        name: full(parameter.grad) * world.size
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return kept | {"mean": torch.tensor(objective.mean.value), "count": torch.tensor(objective.mean.count)}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    world = open_world("cpu")
    for mode, kind in KINDS.items():
        kept = measure(world, mode, kind)
        if world.is_main:
            values = {name: value.contiguous().clone() for name, value in kept.items()}
            save_file(values, Path(folder) / f"{mode}.safetensors")
    world.close()


if __name__ == "__main__":
    main(sys.argv[1])
