"""What torch itself counts of a step: bytes kept for the backward pass, and operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """What autograd keeps for the backward pass of `forward`, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class Counter(TorchDispatchMode):
    """Operations of products and attention as torch's registry counts them; causal attention is half."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket
        if name in flop_registry:
            self.total += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        elif "flash_attention_for_cpu" in str(name):
            is_backward = "backward" in str(name)
            batch, heads, length, width = args[1 if is_backward else 0].shape
            is_causal = args[7 if is_backward else 4] if len(args) > (7 if is_backward else 4) else False
            products = 4 if is_backward else 2
            self.total += products * 2 * batch * heads * length**2 * width / (2 if is_causal else 1)
        return out
