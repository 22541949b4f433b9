"""A model on the meta device gets the tensors of a checkpoint, one at a time, as they are or packed.

Memory stays at one copy of the weights in the form they end up in. Knows no layouts: tensors have our names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from internvl.adapt.quantize import pack_layer, packable, rules_of
from internvl.checkpoints.lazy import Lazy, pieces, section
from internvl.checkpoints.resolve import Checkpoint, check
from internvl.errors import WeightsError


def fill(
    model: nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    *,
    check_finite: bool = True,
) -> None:
    """Give a model built on the meta device the tensors of a checkpoint.

    Raises:
        WeightsError: the tensors do not fit the model, or hold NaN or infinity.
    """
    check(checkpoint, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    state = {
        name: place(tensor, dtype, device, check_finite=check_finite)
        for name, tensor in checkpoint.tensors.items()
    }
    model.load_state_dict(state, assign=True)


def fill_packed(
    model: nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    quantize: str | Mapping[str, str],
    *,
    check_finite: bool = True,
) -> None:
    """As `fill`, on the CPU, for a model whose linear layers are packed (`adapt.quantize`): each is read in
    `dtype` and packed before the next one. Everything else is float32.

    Raises InputError for a scheme or pattern that does not exist, and what `fill` raises.
    """
    check(checkpoint, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    cpu, left = torch.device("cpu"), dict(checkpoint.tensors)
    for name, scheme in packable(model, rules_of(quantize, model)).items():
        layer = model.get_submodule(name)
        own = {leaf: left.pop(f"{name}.{leaf}") for leaf in layer.state_dict()}
        read = {leaf: place(lazy, dtype, cpu, check_finite=check_finite) for leaf, lazy in own.items()}
        layer.load_state_dict(read, assign=True)
        pack_layer(model, name, scheme)
    state = {name: place(lazy, torch.float32, cpu, check_finite=check_finite) for name, lazy in left.items()}
    model.load_state_dict(state, assign=True, strict=False)  # `check` has seen that all are there
    model.requires_grad_(False)


def place(lazy: Lazy, dtype: torch.dtype, device: torch.device, *, check_finite: bool = True) -> Tensor:
    """One tensor, read piece by piece into its final dtype and device.

    Raises:
        WeightsError: it holds NaN or infinity, or overflows the dtype.
    """
    out = torch.empty(lazy.shape, dtype=dtype, device=device)
    for start, stop in pieces(lazy, dtype):
        target = section(out, start, stop)
        piece = target if device.type == "cpu" else torch.empty(target.shape, dtype=dtype)
        lazy.rows(piece, start)
        if check_finite and piece.numel() and not _is_finite(piece):
            raise WeightsError(
                f"{lazy.origin} holds NaN or infinite values as {dtype} (rows {start} to {stop - 1}): "
                "the file is damaged, or its training diverged, or the dtype is too narrow"
            )
        if piece is not target:
            target.copy_(piece)
    return out


def _is_finite(values: Tensor) -> bool:
    """One pass without temporaries: NaN and infinity both survive in the extremes."""
    low, high = values.aminmax()
    return bool(low.isfinite() & high.isfinite())
