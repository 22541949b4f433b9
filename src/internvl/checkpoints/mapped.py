"""A packed checkpoint becomes a model without being read: its tensors are the file, mapped.

Pages are fetched when a kernel first touches them, and processes that load the same file share them. The file
must not be changed in place while it is in use; `internvl quantize` replaces directories as a whole. Knows
no layouts: tensors have our names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from internvl.adapt.quantize import packed_buffers, place_packed
from internvl.adapt.targets import linear_modules
from internvl.checkpoints.lazy import Lazy
from internvl.checkpoints.packing import Packing
from internvl.checkpoints.resolve import Checkpoint, check_shapes
from internvl.checkpoints.shards import ALIGNMENT, num_bytes
from internvl.checkpoints.weight_files import SafeTensor
from internvl.errors import ConfigError, WeightsError
from internvl.models.layers import Linear

Form = tuple[torch.dtype, tuple[int, ...]]

LARGE = 1 << 20
"""Bytes: float tensors above are not looked through for NaN, which would read the file after all."""


def map_packed(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Gives a model built on the meta device the tensors of a packed checkpoint, as they lie in the file.

    Scales, norms and biases are looked through for NaN and infinity, panels of floats and tables are not.

    Raises:
        ConfigError: config.json packs layers that the model does not have.
        WeightsError: tensors that do not fit the model or are not finite; files other than safetensors.
    """
    packing = checkpoint.description.packing
    assert packing is not None
    forms = _forms(model, packing, checkpoint.path)
    check_shapes(checkpoint, {name: shape for name, (_, shape) in forms.items()})
    for name, (dtype, _) in forms.items():
        if (found := checkpoint.tensors[name].dtype) != dtype:
            raise WeightsError(f"{name} in {checkpoint.path} is {found}, packed weights need {dtype}")
    left = map_tensors(checkpoint.tensors)
    for name, tensor in left.items():
        if tensor.is_floating_point() and tensor.nbytes <= LARGE and not tensor.isfinite().all():
            raise WeightsError(f"{name} in {checkpoint.path} holds NaN or infinite values: it is damaged")
    for name, scheme in packing.layers.items():
        buffers = packed_buffers(_linear(model, name), scheme)
        place_packed(model, name, scheme, {leaf: left.pop(f"{name}.{leaf}") for leaf in buffers})
    model.load_state_dict(left, assign=True, strict=False)  # `check_shapes` has seen that all are there
    model.requires_grad_(False)


def map_tensors(tensors: Mapping[str, Lazy]) -> dict[str, Tensor]:
    """Tensors of safetensors files, mapped; what is not aligned to ALIGNMENT bytes, small things, is copied.

    Pages are private: writing to a tensor copies its page and leaves the file alone.

    Raises:
        WeightsError: another kind of file, or one that has become shorter.
    """
    files: dict[Path, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    for name, lazy in tensors.items():
        if not isinstance(lazy, SafeTensor):
            raise WeightsError(f"{name} is not in a safetensors file: packed weights are mapped from those")
        if lazy.path not in files:
            files[lazy.path] = _map_file(lazy.path)
        part = files[lazy.path][lazy.offset : lazy.offset + num_bytes(lazy)]
        if part.numel() != num_bytes(lazy):
            raise WeightsError(f"{lazy.path} ended before {name}: it changed on disk")
        part = part if part.data_ptr() % ALIGNMENT == 0 else part.clone()
        mapped[name] = part.view(lazy.dtype).view(lazy.shape)
    return mapped


def _map_file(path: Path) -> Tensor:
    """Its bytes."""
    size = path.stat().st_size
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise WeightsError(f"cannot map {path} ({size} bytes): {str(error).splitlines()[0]}") from error


def _forms(model: nn.Module, packing: Packing, path: Path) -> dict[str, Form]:
    """dtype and shape of every tensor that the packed model has; what is not packed is float32."""
    known = linear_modules(model)
    if strange := [name for name in packing.layers if name not in known]:
        raise ConfigError(
            f"config.json of {path} packs {len(strange)} layers that its model does not have, first "
            f"{strange[0]}"
        )
    forms: dict[str, Form] = {
        name: (torch.float32, tuple(value.shape)) for name, value in model.state_dict().items()
    }
    for name, scheme in packing.layers.items():
        layer = _linear(model, name)
        for leaf in layer.state_dict():
            del forms[f"{name}.{leaf}"]
        forms |= {f"{name}.{leaf}": form for leaf, form in packed_buffers(layer, scheme).items()}
    return forms


def _linear(model: nn.Module, name: str) -> Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer
