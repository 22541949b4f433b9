"""Activation checkpointing: chosen modules keep their input only and run again in the backward pass.

Changes memory and time, never values: random numbers and autocast are those of the first run. Knows
modules by name only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from internvl.adapt.patterns import match


def recompute(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Makes the modules whose whole name matches a pattern recompute; returns the names, outermost only.

    Parameter names stay. To be called once, before the model is distributed. Raises InputError for a
    pattern that matches no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    chosen = match([(pattern, True) for pattern in patterns], names)
    outermost = [name for name in chosen if not any(parent in chosen for parent in _parents(name))]
    for name in outermost:
        module = model.get_submodule(name)
        module.forward = partial(_forward, module.forward)
    return outermost


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
