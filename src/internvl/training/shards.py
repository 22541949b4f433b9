"""The tensors of a run in safetensors files, through `torch.distributed.checkpoint`.

Trained parameters, moments of the optimiser and averaged weights, by canonical name. Sharded tensors are
written by the processes that hold them and read as another number of processes needs them; nothing is code
(no pickle). Knows no folders of a run and no steps.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from internvl.errors import TrainingError

_WRAPPING = re.compile(r"(^(module\.)?(model\.)?)|(_checkpoint_wrapped_module\.|_orig_mod\.)")


class Averages(Protocol):
    """Averaged weights: the tensors themselves by parameter name, which are read and written in place."""

    def tensors(self) -> Mapping[str, Tensor]: ...


class Stored(NamedTuple):
    """What a checkpoint says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def start_writing(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Averages | None,
    group: dist.ProcessGroup | None,
) -> Future[Any]:
    """Copies the tensors and returns; the future ends when every process has written its files in `path`.

    `group`: a gloo group that nothing else uses meanwhile, None for one process.
    """
    params = trained(model)
    tensors = _tensors(params, _moments(params, optimizer), ema)
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    _expect_one_process(group)
    return cast("Future[Any]", async_save(tensors, storage_writer=writer, process_group=group))


def written(future: Future[Any]) -> None:
    """Waits for what `start_writing` started. Raises TrainingError when some process failed."""
    try:
        future.result()
    except CheckpointException as error:
        raise TrainingError(_reasons(error)) from error


def read(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Averages | None,
    group: dist.ProcessGroup | None,
) -> None:
    """Restores in place what was written. Raises TrainingError for damaged files or those of another
    recipe."""
    params, stored = trained(model), inventory(path)
    moments = _empty_moments(params, optimizer, stored)
    places = _tensors(params, moments, ema)
    _check_same(places, stored, path)
    reader = HuggingFaceStorageReader(str(path))
    _expect_one_process(group)
    try:
        load(dict(places), storage_reader=reader, process_group=group)
    except CheckpointException as error:
        raise TrainingError(f"cannot read the checkpoint {path}: {_reasons(error)}") from error
    for name, parameter in params.items():
        optimizer.state[parameter] = moments[name]


def _expect_one_process(group: dist.ProcessGroup | None) -> None:
    if group is None:
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters a run changes, by canonical name: without what wrapping for training put before it."""
    named = [(canonical(name), p) for name, p in model.named_parameters() if p.requires_grad]
    params = dict(named)
    if len(params) != len(named):
        raise TrainingError(f"{len(named) - len(params)} trained parameters have the name of another one")
    return params


def canonical(name: str) -> str:
    """`name` as the bare model has it."""
    return _WRAPPING.sub("", name)


def _moments(
    params: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """The optimiser's tensors by parameter name; parameters that had no gradient yet have none."""
    strangers = len(set(optimizer.state) - set(params.values()))
    if strangers:
        raise TrainingError(f"the optimiser trains {strangers} parameters that are not the model's")
    moments = {name: dict(optimizer.state.get(parameter, {})) for name, parameter in params.items()}
    for name, values in moments.items():
        for key, value in values.items():
            if not isinstance(value, Tensor):
                raise TrainingError(
                    f"the optimiser keeps {key} of {name} as {type(value).__name__}, no tensor"
                )
    return moments


def _empty_moments(
    params: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, stored: Mapping[str, Stored]
) -> dict[str, dict[str, Tensor]]:
    """Places for the moments that `stored` has of `params`, sharded as these are."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in params}
    for key, tensor in stored.items():
        kind, _, rest = key.partition("/")
        moment, _, name = rest.partition("/")
        if kind != "optimizer" or name not in params:
            continue
        parameter = params[name]
        if moment != "step":
            moments[name][moment] = torch.zeros_like(parameter, dtype=tensor.dtype, requires_grad=False)
            continue
        group = groups.get(parameter, {})
        on_device = group.get("fused") or group.get("capturable")
        device = parameter.device if on_device else torch.device("cpu")
        moments[name][moment] = torch.zeros((), dtype=tensor.dtype, device=device)
    return moments


def _tensors(
    params: Mapping[str, nn.Parameter], moments: Mapping[str, Mapping[str, Tensor]], ema: Averages | None
) -> dict[str, Tensor]:
    """All tensors of a checkpoint by their names in it; they are the run's own, not copies."""
    tensors = {f"model/{name}": p.detach() for name, p in params.items()}
    for name, values in moments.items():
        tensors.update({f"optimizer/{key}/{name}": value for key, value in values.items()})
    if ema is not None:
        tensors.update({f"ema/{canonical(name)}": value for name, value in ema.tensors().items()})
    return tensors


def _check_same(places: Mapping[str, Tensor], stored: Mapping[str, Stored], path: Path) -> None:
    run = {name: Stored(tuple(value.shape), value.dtype) for name, value in places.items()}
    differing = sorted(name for name in run.keys() | stored.keys() if run.get(name) != stored.get(name))
    if not differing:
        return
    first = differing[0]
    found, wanted = (
        f"{tuple(side[first].shape)} {side[first].dtype}" if first in side else "nothing"
        for side in (stored, run)
    )
    raise TrainingError(
        f"{path} belongs to another recipe: {len(differing)} tensors differ, first {first} (checkpoint "
        f"{found}, this run {wanted}). Resume with the recipe of that run, or start in another folder"
    )


def inventory(path: Path) -> dict[str, Stored]:
    """The tensors in the files of `path`. Raises TrainingError unless each is there as a whole."""
    try:
        metadata = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"the files in {path} cannot be read: {error}") from error
    stored = {}
    for name, tensor in cast("dict[str, TensorStorageMetadata]", metadata).items():
        held = sum(chunk.sizes.numel() for chunk in tensor.chunks)
        if held != tensor.size.numel():
            raise TrainingError(f"{path} has {held} of the {tensor.size.numel()} values of {name}")
        stored[name] = Stored(tuple(tensor.size), tensor.properties.dtype)
    return stored


def _reasons(error: CheckpointException) -> str:
    return "; ".join(f"process {rank}: {found[0]}" for rank, found in error.failures.items())
