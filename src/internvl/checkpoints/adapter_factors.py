"""One adapter, between our matrices, which fuse several parts, and those of a layout.

Reads and writes nothing (see `checkpoints.adapters`).
Shape letters: O rows and I columns of a weight, P parts, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from internvl.adapt.lora import LoRA, LoRALinear, add_adapter
from internvl.checkpoints.adapter_config import AdapterConfig
from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.naming import Naming
from internvl.checkpoints.peft_names import Role
from internvl.checkpoints.rules import original_names
from internvl.errors import WeightsError
from internvl.models.layers import Linear


class Factors(NamedTuple):
    """The adapter of one matrix of a layout."""

    down_RI: Tensor
    up_OR: Tensor
    magnitude_O: Tensor | None
    scale: float


def stored_factors(naming: Naming, name: str, module: LoRALinear) -> list[tuple[str, Factors]]:
    """The adapter of one of our modules as the layout's modules have it."""
    weight, rank = f"{name}.weight", module.lora.rank
    down, up = module.lora_down.detach(), module.lora_up.detach()
    num_stored = len(original_names(weight, naming.rules))
    if num_stored == 1 and len(module.parts) > 1:
        up = torch.block_diag(*up.split(module.parts))
    downs = down.split(rank) if num_stored == len(module.parts) else (down,) * num_stored
    ups = {key: fetch(value) for key, value in naming.split(weight, up).items()}
    lengths: Mapping[str, Lazy] = {}
    if module.lora_magnitude is not None:
        lengths = naming.split(weight, module.lora_magnitude.detach())
    return [
        (
            key.removesuffix(".weight"),
            Factors(own_down, ups[key], fetch(lengths[key]) if lengths else None, module.lora.scale),
        )
        for key, own_down in zip(ups, downs, strict=True)
    ]


class Plan(NamedTuple):
    """An adapter of ours, ready to be put on."""

    name: str
    lora: LoRA
    parts: tuple[int, ...]
    down: Tensor
    up: Tensor
    magnitude_O: Tensor | None

    def apply(self, model: nn.Module) -> None:
        module = add_adapter(model, self.name, self.lora, self.parts)
        with torch.no_grad():
            module.lora_down.copy_(self.down)
            module.lora_up.copy_(self.up)
            if self.magnitude_O is not None and module.lora_magnitude is not None:
                kept_O = module.lora_magnitude.detach()
                module.lora_magnitude.copy_(torch.where(self.magnitude_O.isnan(), kept_O, self.magnitude_O))


def plan_adapter(
    naming: Naming, name: str, module: Linear, found: Mapping[str, Mapping[Role, Lazy]], config: AdapterConfig
) -> Plan | None:
    """Our adapter of the factors that a file has for the parts of one matrix of ours; None without any.

    Parts of smaller or no rank are padded with zeros, which training leaves at zero.

    Raises:
        WeightsError: factors that are incomplete, not finite, or do not fit.
    """
    weight = f"{name}.weight"
    rows = {
        key.removesuffix(".weight"): piece.shape[0]
        for key, piece in naming.split(weight, torch.empty(module.out_features, 0)).items()
    }
    columns = module.in_features
    given = {
        key: _factors(key, found[key], config, (count, columns))
        for key, count in rows.items()
        if key in found
    }
    if not given:
        return None
    rank = max(len(factors.down_RI) for factors in given.values())
    scale = next(iter(given.values())).scale
    down, up = _fused(naming, weight, rows, given, rank, scale)
    return Plan(
        name=name,
        lora=LoRA(
            rank=rank,
            alpha=scale * (rank**0.5 if config.rank_stabilized else rank),
            dropout=config.dropout,
            rank_stabilized=config.rank_stabilized,
            magnitude=config.magnitude,
        ),
        parts=tuple(rows.values()),
        down=down,
        up=up,
        magnitude_O=_lengths(naming, weight, rows, given) if config.magnitude else None,
    )


def _fused(
    naming: Naming,
    weight: str,
    rows: Mapping[str, int],
    given: Mapping[str, Factors],
    rank: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The factors of all parts as ours, (parts * R, I) and (O, R), at one rank and scale."""
    columns = next(iter(given.values())).down_RI.shape[1]
    down_PRI = torch.zeros(len(rows), rank, columns)
    ups: dict[str, Lazy] = {}
    for part, (key, count) in enumerate(rows.items()):
        up_OR = torch.zeros(count, rank)
        if key in given:
            own, own_rank = given[key], len(given[key].down_RI)
            down_PRI[part, :own_rank] = own.down_RI
            up_OR[:, :own_rank] = own.up_OR * (own.scale / scale)
        ups[f"{key}.weight"] = Held(up_OR)
    return down_PRI.flatten(0, 1), naming.join(ups)[weight]


def _factors(key: str, given: Mapping[Role, Lazy], config: AdapterConfig, shape: tuple[int, int]) -> Factors:
    """The adapter of one of their modules, checked to be whole, finite and for a weight of this shape."""
    wanted = {"down", "up", "magnitude"} if config.magnitude else {"down", "up"}
    if set(given) != wanted:
        raise WeightsError(
            f"{key} has {', '.join(sorted(given))}; it should have {', '.join(sorted(wanted))} "
            "(lora_A, lora_B and, with DoRA, lora_magnitude_vector)"
        )
    values = {name: fetch(tensor, torch.float32) for name, tensor in given.items()}
    down_RI, up_OR, magnitude = values["down"], values["up"], values.get("magnitude")
    if down_RI.dim() != 2 or up_OR.dim() != 2 or down_RI.shape[0] != up_OR.shape[1] or not len(down_RI):
        raise WeightsError(f"{key}: factors {_shapes(down_RI, up_OR)} have no rank in common")
    if (len(up_OR), down_RI.shape[1]) != shape:
        raise WeightsError(
            f"{key}: factors {_shapes(down_RI, up_OR)} for {shape[0]} rows of {shape[1]} values"
        )
    if magnitude is not None and magnitude.numel() != len(up_OR):
        raise WeightsError(f"{key}: {magnitude.numel()} magnitudes for {len(up_OR)} rows")
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise WeightsError(f"the adapter of {key} holds NaN or infinite values: its training diverged")
    lengths = None if magnitude is None else magnitude.flatten()
    return Factors(down_RI, up_OR, lengths, config.scale(key, len(down_RI)))


def _lengths(naming: Naming, weight: str, rows: Mapping[str, int], given: Mapping[str, Factors]) -> Tensor:
    """The magnitudes (O) of DoRA; NaN for rows that the file does not adapt."""
    lengths: dict[str, Lazy] = {}
    for key, count in rows.items():
        known = given[key].magnitude_O if key in given else None
        lengths[f"{key}.weight"] = Held(torch.full((count,), torch.nan) if known is None else known)
    return naming.join(lengths)[weight]


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
