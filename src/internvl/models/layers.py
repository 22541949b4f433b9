"""Layers shared by the vision tower, the projector and the decoder.

Knows shapes and arithmetic only. Shape letters: T packed tokens, C width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internvl.config import Activation, NormKind
from internvl.models.packed_layers import packed_mlp
from internvl.ops.linear import linear
from internvl.ops.rms_norm import rms_norm
from internvl.ops.swiglu import swiglu

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Linear(nn.Linear):
    """A linear layer on the fastest exact product of the device (see `ops.linear`)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def normal(*shape: int) -> Tensor:
    """Normal values. The meta device has none, and asking it imports torch.compile, which takes long."""
    values = torch.empty(*shape)
    return values if values.is_meta else values.normal_()


class Embedding(nn.Embedding):
    """A table of vectors, drawn as by `normal`."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in float32, result in the input's dtype, weight only."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def make_norm(kind: NormKind, width: int, eps: float) -> nn.Module:
    return RMSNorm(width, eps) if kind == "rms" else nn.LayerNorm(width, eps)


class MLP(nn.Module):
    """Linear, activation, linear; both with bias."""

    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = Linear(width, mlp_width)
        self.fc2 = Linear(mlp_width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class GatedMLP(nn.Module):
    """SwiGLU: `down(silu(gate) * up)`, gate and up read by one matrix product."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * mlp_width, bias=False)
        self.down = Linear(mlp_width, width, bias=False)

    def forward(self, x_TC: Tensor) -> Tensor:
        if (fused_TC := packed_mlp(self.gate_up, self.down, x_TC)) is not None:
            return fused_TC
        out: Tensor = self.down(swiglu(self.gate_up(x_TC)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of whole samples while training, else the identity."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_NPC: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x_NPC
        keep = 1.0 - self.rate
        mask_N = x_NPC.new_empty(x_NPC.shape[0]).bernoulli_(keep)
        return x_NPC * (mask_N / keep).view(-1, *[1] * (x_NPC.dim() - 1))
