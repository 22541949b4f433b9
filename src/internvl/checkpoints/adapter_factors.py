"""One adapter, between our matrices, which fuse several parts, and those of a layout.

Reads and writes nothing (see `checkpoints.adapters`).
Shape letters: O rows and I columns of a weight, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from internvl.adapt.lora import LoRA, LoRALinear, add_adapter
from internvl.checkpoints.adapter_config import AdapterConfig
from internvl.checkpoints.adapter_names import Naming
from internvl.checkpoints.lazy import Held, Lazy, fetch
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
    downs = down.split(rank) if num_stored == len(module.parts) else [down] * num_stored
    ups = {key: fetch(value) for key, value in naming.split(weight, up).items()}
    lengths: Mapping[str, Lazy] = {}
    if module.lora_magnitude is not None:
        lengths = naming.split(weight, module.lora_magnitude.detach())
    return [
        (
            key.removesuffix(".weight"),
            Factors(down, ups[key], fetch(lengths[key]) if lengths else None, module.lora.scale),
        )
        for key, down in zip(ups, downs, strict=True)
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
    given = {key: _factors(key, found[key], config) for key in rows if key in found}
    if not given:
        return None
    rank = max(len(factors.down_RI) for factors in given.values())
    scale = next(iter(given.values())).scale
    columns = module.in_features
    downs, ups = [], {}
    for key, count in rows.items():
        empty = Factors(torch.zeros(0, columns), torch.zeros(count, 0), None, scale)
        down_RI, up_OR, _, own_scale = given.get(key, empty)
        if up_OR.shape[0] != count or down_RI.shape[1] != columns:
            raise WeightsError(
                f"{key}: factors {_shapes(down_RI, up_OR)} for {count} rows of {columns} values"
            )
        downs.append(pad(down_RI, (0, 0, 0, rank - len(down_RI))))
        ups[f"{key}.weight"] = Held(pad(up_OR * (own_scale / scale), (0, rank - up_OR.shape[1])))
    alpha = scale * (rank**0.5 if config.rank_stabilized else rank)
    lora = LoRA(
        rank=rank,
        alpha=alpha,
        dropout=config.dropout,
        rank_stabilized=config.rank_stabilized,
        magnitude=config.magnitude,
    )
    return Plan(
        name,
        lora,
        tuple(rows.values()),
        torch.cat(downs),
        naming.join(ups)[weight],
        _lengths(naming, weight, rows, given) if config.magnitude else None,
    )


def _factors(key: str, given: Mapping[Role, Lazy], config: AdapterConfig) -> Factors:
    """The adapter of one of their modules, checked for being whole and finite."""
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
