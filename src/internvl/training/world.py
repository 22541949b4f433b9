"""The processes of a run: how many there are, what they tell one another, how a model is spread over them.

One process needs no process group and no wrapping. Several are started by `torchrun`, whose environment is
read here and nowhere else. Knows no loss, no data and no files.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from internvl.errors import DeviceError, TrainingError
from internvl.models import decoder, vit

Mode = Literal["ddp", "fsdp"]

SHARDED_UNITS = (vit.Block, decoder.Block)
"""Modules gathered one at a time under FSDP; what is outside of them forms the root unit."""
NAMES_SHOWN = 4
PATIENCE = timedelta(hours=1)
"""Of a process that waits for the others: measuring or writing on one of them takes time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process's place among `size` processes, and the device it works on."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, on every process; `values` is left alone."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def place(self, count: int) -> tuple[int, int]:
        """Where this process's `count` rows begin among those of all processes in order of rank, and how
        many all have; processes may hold different numbers."""
        counts = torch.zeros(self.size, dtype=torch.long, device=self.device)
        counts[self.rank] = count
        numbers = self.sum(counts).tolist()
        return sum(numbers[: self.rank]), sum(numbers)

    def gather(self, rows: Tensor) -> Tensor:
        """`rows` of all processes in order of rank, on every process; gradients come back from all."""
        if self.size == 1:
            return rows
        first, total = self.place(len(rows))
        shape = rows.shape[1:]
        before, after = rows.new_zeros(first, *shape), rows.new_zeros(total - first - len(rows), *shape)
        out: Tensor = _Sum.apply(torch.cat((before, rows, after)))  # type: ignore[no-untyped-call]
        return out

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on some process; the same answer on every process."""
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def barrier(self) -> None:
        """Returns when every process has come here."""
        self.sum(torch.zeros(()))

    def close(self) -> None:
        """Leaves the process group; the last call of a run."""
        if self.size > 1 and dist.is_initialized():
            gc.collect()  # a wrapper left in a cycle would hold the group, and its threads, to the very end
            dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over processes, each of which has a loss of its own: gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        total = table.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(None, grad)


def open_world(device: str) -> World:
    """The world that `torchrun` describes, or one process where it does not; gloo on a CPU, nccl on GPUs.

    "cuda" becomes the GPU of the process's local rank. Raises DeviceError for a device that is not there,
    TrainingError for an environment that is not torchrun's.
    """
    rank, size, local = (_variable(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = torch.device(f"cuda:{local or 0}" if device == "cuda" else device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise DeviceError(f"no device {chosen}: this machine has {count} CUDA devices; use --device cpu")
        torch.cuda.set_device(chosen)
    if size is None or size == 1:
        return World(device=chosen)
    if rank is None or not 0 <= rank < size or chosen.type not in ("cpu", "cuda"):
        raise TrainingError(
            f"{size} processes on {device} with rank {rank}: start them with "
            f"`torchrun --nproc-per-node {size}`, on cpu or cuda"
        )
    backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE, device_id=None if chosen.type == "cpu" else chosen)
    return World(rank=rank, size=size, device=chosen)


def _variable(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise TrainingError(f"{name}={text!r} is no number: it belongs to torchrun, unset it or use torchrun")
    return int(text)


def distribute(module: nn.Module, mode: Mode, world: World) -> nn.Module:
    """`module` ready for training on all processes; one process gets it back as it is.

    "ddp" wraps it, so that each process holds the whole model. "fsdp" shards parameters, gradients and
    moments in place (FSDP2); make the optimiser afterwards. Both give each process the mean over processes
    of the gradients, and both start from the weights of process 0 or from equal ones. Only what runs inside
    the `forward` of `module` sees whole weights; elsewhere see `whole`.
    """
    if world.size == 1:
        return module
    if mode == "ddp":
        devices = [world.device] if world.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its other name is not in torch 2.6
            # No buffer changes in training, and those of int8 weights are the model.
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)
    for unit in module.modules():
        if isinstance(unit, SHARDED_UNITS):
            fully_shard(unit, reshard_after_forward=True)
    scalars = {parameter for parameter in module.parameters() if not parameter.dim()}  # cannot be sharded
    # The root too: outside of `forward`, optimiser and checkpoints must see shards only.
    fully_shard(module, reshard_after_forward=True, ignored_params=scalars)
    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)
    return module


def _average_gradient(parameter: Tensor) -> None:
    """Over processes; what was averaged before stays as it is."""
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def check_averaged(module: nn.Module, model: nn.Module) -> None:
    """After a backward pass of `module`, which `distribute` made around `model`.

    Raises TrainingError where DDP still waits for the gradient of a trained parameter: those that it sends
    together with this one are not averaged either.
    """
    if not isinstance(module, DistributedDataParallel):
        return
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in unused))
        raise TrainingError(
            f"{len(unused)} trained parameters have no part in the loss, in {parts}; the first are "
            f"{', '.join(unused[:NAMES_SHOWN])}. Processes under execution.parallel=ddp wait for the "
            "gradient of each: freeze them by a rule of params, or take execution.parallel=fsdp"
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether parts of `module` gather their weights in every call, so that all processes must call them
    equally often."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Meanwhile `module`, or a part of what `distribute` sharded, is an ordinary module with whole weights.

    To be run or written, not changed: at the end the shards are back as they were. All processes enter
    together; within, each may do something else. A module that is not sharded stays as it is.
    """
    if not any(isinstance(p, DTensor) for p in module.parameters()):
        yield
        return
    weights: dict[nn.Parameter, nn.Parameter] = {}
    held: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    for part in module.modules():
        hooks: list[dict[Any, Any]] = [part._state_dict_pre_hooks]
        if isinstance(part, FSDPModule):
            hooks += [part._forward_pre_hooks, part._forward_hooks]
        held += [(table, dict(table)) for table in (part._parameters, *hooks)]
        for table in hooks:
            table.clear()
        for name, parameter in part._parameters.items():
            if isinstance(parameter, DTensor):
                if parameter not in weights:
                    weights[parameter] = nn.Parameter(
                        parameter.detach().full_tensor(), parameter.requires_grad
                    )
                part._parameters[name] = weights[parameter]
    try:
        yield
    finally:
        for table, before in held:
            table.clear()
            table.update(before)
