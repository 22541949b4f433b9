"""Frozen linear layers in int8 that gradients pass through: what trained adapters lie on.

QLoRA (arXiv 2305.14314) with a plainer number format, a scale an output row, dequantised for every product: a
quarter of the memory of float32, no speed. For fast inference see `adapt.quantize`. Knows no adapters, no
files.
Shape letters: O rows and I columns of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from internvl.adapt.targets import choose, replace_module
from internvl.errors import InputError
from internvl.models.layers import Linear
from internvl.ops.linear import linear

LARGEST = 127


class Int8Linear(Linear):
    """A linear layer whose weight is `weight_int8` (O, I) times `weight_scale` (O, 1).

    Both are buffers: they are not trained. Gradients go through to the input and to the bias.
    """

    weight_int8: Tensor
    weight_scale: Tensor

    def __init__(self, base: Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear would allocate a weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.dtype = base.weight.dtype
        weight_int8, weight_scale = quantize_rows(base.weight.detach())
        self.register_buffer("weight_int8", weight_int8)
        self.register_buffer("weight_scale", weight_scale)
        self.register_parameter("bias", base.bias)
        self.train(base.training)

    def dense_weight(self) -> Tensor:
        """The weight as float32 (O, I)."""
        return self.weight_int8.float() * self.weight_scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self.weight_int8, self.weight_scale)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """`x @ weight.T` that keeps the int8 weight, not a dequantised copy, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, scale_O1: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_O1)
        ctx.dtype = x.dtype
        product = linear(x, weight_OI.to(x.dtype))
        return product * scale_O1.squeeze(1).to(product.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight_OI, scale_O1 = ctx.saved_tensors
        scaled = gradients[0] * scale_O1.squeeze(1).to(gradients[0].dtype)
        out = linear(scaled, weight_OI.t().contiguous().to(scaled.dtype))
        return out.to(ctx.dtype), None, None


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values (O, I) and float32 scales (O, 1): the largest value of each row becomes 127."""
    values_OI = weight_OI.float()
    largest_O1 = values_OI.abs().amax(1, keepdim=True)
    scale_O1 = torch.where(largest_O1 > 0, largest_O1 / LARGEST, torch.ones_like(largest_O1))
    return (values_OI / scale_O1).round().to(torch.int8), scale_O1


def quantize_linears(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Keep the weights of the linear modules that some pattern names in int8; returns their names.

    Call it before adapters are added.

    Raises:
        InputError: a pattern without a match, or a module that carries an adapter or is int8 already.
    """
    names = list(choose(model, [(pattern, None) for pattern in patterns]))
    for name in names:
        module = model.get_submodule(name)
        if type(module) is not Linear:
            raise InputError(
                f"{name} is a {type(module).__name__}: int8 goes under adapters, so it comes first"
            )
        replace_module(model, name, Int8Linear(module))
    return names
