"""What was trained, apart from the public weights it belongs to: small files that a package can carry.

Under our names they hold whole tensors, which replace or complete those of the base, and for an adapted
matrix `M.lora_down` and `M.lora_up`, to be added to `M.weight` as `lora_up @ lora_down` (their scale is in
`lora_up`). Knows no place where the base comes from (see `checkpoints.nano`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from internvl.adapt.lora import adapters, merge
from internvl.adapt.targets import linear_modules
from internvl.checkpoints.lazy import Held
from internvl.checkpoints.shards import divide, write_safetensors
from internvl.errors import CheckpointError, ConfigError, WeightsError

DOWN, UP = ".lora_down", ".lora_up"
MAX_FILE_BYTES = 4e6
"""Of one file: small ones survive every way of copying a repository, and a change touches few of them."""


def read_deltas(contents: Iterable[bytes]) -> dict[str, Tensor]:
    """The tensors of several safetensors files. Raises WeightsError for a broken file or a name twice."""
    deltas: dict[str, Tensor] = {}
    for data in contents:
        try:
            found = load_safetensors(data)
        except SafetensorError as error:
            raise WeightsError(f"a file of trained weights cannot be read ({error})") from error
        if twice := deltas.keys() & found.keys():
            raise WeightsError(f"{min(twice)} is in two files of trained weights")
        deltas |= found
    return deltas


def apply_deltas(
    base: Mapping[str, Tensor], deltas: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """The weights of `model`, which may be on the meta device, from those of a base and what was trained.

    Sums are computed in float32 and have the base's dtype.

    Raises:
        WeightsError: tensors that the model does not have, lacks or has in other shapes, factors without
            their pair, NaN or infinite values.
    """
    for name, value in deltas.items():
        if not value.isfinite().all():
            raise WeightsError(f"{name} holds NaN or infinite values: its training diverged")
    factors = {name: value for name, value in deltas.items() if name.endswith((DOWN, UP))}
    tensors = {**base, **{name: value for name, value in deltas.items() if name not in factors}}
    _check_whole(tensors, model)
    modules = linear_modules(model)
    for name in sorted({name.removesuffix(DOWN).removesuffix(UP) for name in factors}):
        if name not in modules or {name + DOWN, name + UP} - factors.keys():
            raise WeightsError(f"{name} has {DOWN} or {UP} without the other, or is no linear module")
        weight = f"{name}.weight"
        tensors[weight] = _add(tensors[weight], factors[name + DOWN], factors[name + UP], modules[name], name)
    return tensors


def write_deltas(model: nn.Module, whole: Sequence[str], directory: Path, dtype: torch.dtype) -> int:
    """Write the adapters of a model and the parameters that a pattern of `whole` names; returns the bytes.

    Raises:
        ConfigError: a pattern that names nothing; adapters with learnt lengths (DoRA), which are no sum.
        CheckpointError: the directory holds files or cannot be written.
    """
    return store_deltas(_deltas(model, whole), directory, dtype)


def store_deltas(found: Mapping[str, Tensor], directory: Path, dtype: torch.dtype) -> int:
    """Write deltas at hand; returns the bytes.

    Files are called by the part of the model and numbered; the directory must be empty or absent, else a
    CheckpointError.
    """
    parts: dict[str, list[tuple[str, Held]]] = {}
    for name, value in found.items():
        parts.setdefault(name.split(".")[0], []).append((name, Held(value.to(dtype), name)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise CheckpointError(f"{directory} is not empty; choose another directory")
        for part, tensors in sorted(parts.items()):
            for number, shard in enumerate(divide(dict(tensors), MAX_FILE_BYTES), 1):
                partial = directory / f"{part}-{number:02d}.partial"
                write_safetensors(shard, partial)
                partial.replace(partial.with_suffix(".safetensors"))
    except OSError as error:
        raise CheckpointError(f"cannot write to {directory}: {error.strerror or error}") from error
    return sum(path.stat().st_size for path in directory.iterdir())


def _deltas(model: nn.Module, whole: Sequence[str]) -> dict[str, Tensor]:
    names = [name for name in model.state_dict() if ".lora_" not in name]
    found: dict[str, Tensor] = {}
    for pattern in whole:
        matched = [name for name in names if re.fullmatch(pattern, name)]
        if not matched:
            raise ConfigError(f"{pattern!r} names no parameter of the model")
        found |= {name: model.state_dict()[name] for name in matched}
    for name, module in adapters(model).items():
        if module.lora_magnitude is not None:
            raise ConfigError(f"{name} has an adapter with learnt lengths (DoRA): it is no sum to be added")
        found[name + DOWN] = module.lora_down.detach()
        found[name + UP] = module.lora_up.detach() * module.lora.scale
    return found


def _add(weight_OI: Tensor, down: Tensor, up_OR: Tensor, parts: Sequence[int], name: str) -> Tensor:
    """`parts` are the row counts of the products that the matrix fuses; each has factors of its own."""
    rows, columns = weight_OI.shape
    rank = up_OR.shape[-1]
    if up_OR.shape != (rows, rank) or down.shape != (len(parts) * rank, columns):
        raise WeightsError(
            f"{name}: factors {tuple(down.shape)} and {tuple(up_OR.shape)} for {len(parts)} products "
            f"in {rows} rows of {columns} values"
        )
    pieces = zip(weight_OI.split(parts), down.split(rank), up_OR.split(parts), strict=True)
    return torch.cat([merge(weight, factor, up, 1.0) for weight, factor, up in pieces])


def _check_whole(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if shapes.keys() != tensors.keys():
        lacking = sorted(shapes.keys() - tensors.keys())[:5]
        further = sorted(tensors.keys() - shapes.keys())[:5]
        raise WeightsError(f"the weights lack {lacking} and have {further}, which the model does not")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise WeightsError(f"{name} is {tuple(tensors[name].shape)}, the model has {shape}")
