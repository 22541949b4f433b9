"""Which linear modules of a built model may be adapted or quantised, and how one is replaced.

Knows where our models fuse several products into one. Knows no adapters and no number formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from internvl.adapt.patterns import match
from internvl.models.decoder import Attention
from internvl.models.layers import GatedMLP, Linear

T = TypeVar("T")


def linear_modules(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The linear modules by name, each with the row counts of the products that it fuses.

    Query, key and value of the language model are three products, gate and up of its MLP two; the
    tower's are one, as in the released code.
    """
    parts: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            parts[f"{name}.qkv"] = tuple(heads * module.head_dim for heads in module.heads)
        elif isinstance(module, GatedMLP):
            parts[f"{name}.gate_up"] = (module.gate_up.out_features // 2,) * 2
        elif isinstance(module, Linear):
            parts.setdefault(name, (module.out_features,))
    return parts


def choose(model: nn.Module, rules: Sequence[tuple[str, T]]) -> dict[str, T]:
    """The linear modules that some rule names, with its value.

    Raises:
        InputError: a rule that names no linear module.
    """
    return match(rules, linear_modules(model))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one called `name`."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
