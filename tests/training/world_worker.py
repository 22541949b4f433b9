"""What the processes of test_world.py and test_saves_of_processes.py do: `python -m ... SCENARIO ...`."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from internvl.training.ema import EMA
from internvl.training.forward import trained_states
from internvl.training.loop import Objected
from internvl.training.objectives import next_token
from internvl.training.saves import Saves
from internvl.training.world import Mode, World, distribute, open_world, whole
from tests.training.tiny import batch, chat_model, examples


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Run:
    """The tiny model with its embeddings frozen, spread over the processes, after `steps` of AdamW."""

    def __init__(self, world: World, mode: Mode = "fsdp", steps: int = 0) -> None:
        torch.manual_seed(0)
        self.world, self.model = world, chat_model()
        self.model.llm.embed.requires_grad_(False)
        self.module: nn.Module = distribute(Objected(self.model, next_token), mode, world)
        params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(params, lr=1e-2)
        self.ema = EMA(self.model, 0.9)
        for _ in range(steps):
            self.backward()
            self.optimizer.step()
            self.ema.update()

    def backward(self) -> None:
        """Gradients of this process's examples: the last process has text only."""
        self.optimizer.zero_grad()
        size = self.world.size
        chosen = [examples()[:2], examples()[2:]][self.world.rank] if size > 1 else examples()
        self.module(batch(*chosen)).total.backward()

    def gradients(self) -> dict[str, Tensor]:
        """Of the sum over processes, which each hold the mean."""
        named = self.model.named_parameters()
        return {name: full(p.grad) * self.world.size for name, p in named if p.grad is not None}

    def states(self) -> Tensor:
        with torch.no_grad(), whole(self.model):
            return trained_states(self.model, batch())

    def state(self) -> dict[str, Tensor]:
        with whole(self.model):
            return {name: value.clone() for name, value in self.model.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint must bring back, whole."""
        values: dict[str, Any] = {f"ema/{name}": value for name, value in self.ema.tensors().items()}
        for name, parameter in self.model.named_parameters():
            values[f"model/{name}"] = parameter.detach()
            moments = self.optimizer.state.get(parameter, {})
            values.update({f"{key}/{name}": value for key, value in moments.items()})
        return {name: full(value).clone() for name, value in values.items()}


def gradients(world: World, folder: str, *modes: Mode) -> None:
    """What a run of each mode sees and makes, in `folder`/mode.safetensors."""
    for mode in modes:
        kept = measured(Run(world, mode))
        kept["sum"] = world.sum(torch.tensor([world.rank + 1.0, 10.0]))
        kept["any"] = torch.tensor([world.any(world.rank == 1), world.any(False)])
        if world.is_main:
            values = {name: value.contiguous().clone() for name, value in kept.items()}
            save_file(values, Path(folder) / f"{mode}.safetensors")


def measured(run: Run) -> dict[str, Tensor]:
    before = run.states()
    run.backward()
    kept = {f"gradient/{name}": value for name, value in run.gradients().items()}
    kept |= {"before": before, "after": run.states()}
    return kept | {f"state/{name}": value for name, value in run.state().items()}


def save(world: World, folder: str, mode: Mode, steps: str) -> None:
    """A fresh run of `steps`, its checkpoint, and its tensors beside it."""
    run = Run(world, mode, int(steps))
    Saves(Path(folder), world, keep=3).save(
        int(steps), run.model, run.optimizer, {"steps": int(steps)}, ema=run.ema, wait=True
    )
    tensors = run.tensors()
    if world.is_main:
        save_file(tensors, Path(folder) / f"whole-{steps}.safetensors")


def reshard(world: World, source: str, target: str, *modes: Mode) -> None:
    """The latest checkpoint of `source`, saved again in `target`/mode by these processes."""
    for mode in modes:
        run = Run(world, mode, 1)
        saves = Saves(Path(source), world, keep=3)
        path = saves.latest()
        assert path is not None
        facts = saves.load(path, run.model, run.optimizer, run.ema)
        again = Saves(Path(target) / mode, world, keep=3)
        again.save(facts["steps"], run.model, run.optimizer, facts, ema=run.ema, wait=True)


def stall(world: World, folder: str, mode: Mode, rank: str) -> None:
    """Saves step 1, then step 2, in which process `rank` never gets its file to disk."""
    save(world, folder, mode, "1")
    if world.rank == int(rank):
        os.fsync = lambda descriptor: threading.Event().wait()
    save(world, folder, mode, "2")


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = open_world("cpu")
    {"gradients": gradients, "save": save, "reshard": reshard, "stall": stall}[sys.argv[1]](
        here, *sys.argv[2:]
    )
    here.close()
