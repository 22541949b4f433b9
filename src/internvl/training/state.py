"""Saving and resuming a run: trained parameters, optimiser moments and the step, in one safetensors file.

No pickle. The data position needs no saving: batches are a function of the step.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from internvl.errors import TrainingError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters a run changes, by canonical name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes `path` atomically: a run killed while saving leaves the previous state."""
    tensors = {f"model/{name}": value.contiguous() for name, value in trained(model).items()}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}/{name}"] = value.contiguous()
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restores what `save_state` wrote; returns the number of finished steps."""
    try:
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {})["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise TrainingError(f"cannot resume from {path}: {error}. Remove the file to start again") from error
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    saved = {key.removeprefix("model/") for key in tensors if key.startswith("model/")}
    if saved != set(parameters):
        differing = sorted(saved ^ set(parameters))
        raise TrainingError(
            f"{path} belongs to another recipe: {len(differing)} parameters differ, first {differing[0]}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model/{name}"])
            moments = {m: tensors[f"{m}/{name}"] for m in MOMENTS if f"{m}/{name}" in tensors}
            optimizer.state[parameter].update(moments)
    return step
