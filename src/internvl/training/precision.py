"""Which precision a device computes a recipe in.

A processor without arithmetic for bfloat16 takes every product apart: float32 is up to 40 times faster there
and more exact, so that is what it gets.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from internvl.training.recipe import Recipe

WIDENED = "this processor has no bfloat16 arithmetic: computing in float32"


def autocast(name: str | None, device: torch.device) -> torch.autocast:
    """Matrix products in the dtype of this name within the block; None leaves them as they are."""
    return torch.autocast(device.type, getattr(torch, name or "bfloat16"), enabled=name is not None)


def for_device(recipe: Recipe, device: torch.device) -> Recipe:
    """`recipe`, without autocast and narrow frozen weights where `device` is slower with them."""
    if recipe.execution.autocast is None or has_bfloat16(device):
        return recipe
    execution = replace(recipe.execution, autocast=None)
    return replace(recipe, execution=execution, model=replace(recipe.model, frozen_dtype=None))


def has_bfloat16(device: torch.device) -> bool:
    """Of a CPU what oneDNN says, which computes its products; accelerators have it."""
    if device.type != "cpu":
        return True
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
