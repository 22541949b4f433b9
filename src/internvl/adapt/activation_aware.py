"""A decoder's weights scaled for the inputs they see, before they are rounded to four bits.

Where some inputs of a layer are much larger than others, the errors of their weights cost most. So their
columns are multiplied by a scale, which makes them err less, and what feeds the layer is divided by it: a
norm, the values of attention, the upper half of the MLP. The model computes what it did (activation-aware
weight quantization: Lin et al. 2024, arXiv 2306.00978). Shape letters: T rows, O outputs, I inputs, C
channels of what feeds a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from internvl.adapt.targets import linear_modules
from internvl.models.decoder import Block
from internvl.models.layers import Linear, RMSNorm
from internvl.ops.packed import pack, unpack

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of an input's mean size, tried as its scale; what errs least is taken, and the first changes nothing."""
SAMPLED_OUTPUTS = 512
"""Of a weight, evenly spread, on which powers are compared."""
LEAST_SIZE = 1e-4
"""Of an input, as a part of the largest: inputs that were never seen have a scale too."""


@dataclass(slots=True)
class Inputs:
    """Sums over the rows that came into a layer."""

    size_I: Tensor
    square_I: Tensor
    rows: int = 0

    def add(self, x: Tensor) -> None:
        x_TI = x.detach().flatten(0, -2).float()
        self.size_I += x_TI.abs().sum(0)
        self.square_I += x_TI.square().sum(0)
        self.rows += len(x_TI)


@contextmanager
def observe(model: nn.Module) -> Iterator[dict[str, Inputs]]:
    """What comes into the linear layers of decoder blocks while the context is open, by their names."""
    found: dict[str, Inputs] = {}
    handles = []
    layers = linear_modules(model)
    for prefix, _ in _blocks(model):
        for name in (one for one in layers if one.startswith(f"{prefix}.")):
            layer = model.get_submodule(name)
            if type(layer) is not Linear:  # with an adapter, or packed
                continue
            zeros_I = torch.zeros(layer.in_features, device=layer.weight.device)
            found[name] = Inputs(zeros_I, zeros_I.clone())
            handles.append(layer.register_forward_pre_hook(_adder(found[name])))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def balance(model: nn.Module, inputs: Mapping[str, Inputs], names: Collection[str]) -> list[str]:
    """Scales the named linear layers of decoder blocks for what `observe` saw; returns those that changed."""
    changed = []
    for prefix, block in _blocks(model):
        for link in _links(block):
            name = f"{prefix}.{link.layer}"
            seen = inputs.get(name)
            if name in names and seen is not None and seen.rows and _scale(block, link, seen):
                changed.append(name)
    return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """A layer of a block and what feeds it: `divide` takes scales of its C channels, of which the layer's
    inputs have `copies` by groups of `width`."""

    layer: str
    divide: Callable[[Tensor], None]
    width: int = 1
    copies: int = 1

    def shared(self, x_I: Tensor) -> Tensor:
        """Means over the copies of a channel: (C,)."""
        return x_I.view(-1, self.copies, self.width).mean(1).flatten()

    def spread(self, x_C: Tensor) -> Tensor:
        """A value for every input: (I,)."""
        x_CD = x_C.view(-1, 1, self.width)
        return x_CD.expand(-1, self.copies, -1).flatten()


def _links(block: Block) -> tuple[_Link, ...]:
    attn, mlp = block.attn, block.mlp
    heads, kv_heads, _ = attn.heads

    def divide_norm(norm: RMSNorm, scale_C: Tensor) -> None:
        norm.weight.div_(scale_C)

    def divide_values(scale_C: Tensor) -> None:
        attn.qkv.weight[-len(scale_C) :] /= scale_C[:, None]
        if attn.qkv.bias is not None:
            attn.qkv.bias[-len(scale_C) :] /= scale_C

    def divide_up(scale_C: Tensor) -> None:
        mlp.gate_up.weight[len(scale_C) :] /= scale_C[:, None]

    return (
        _Link(layer="attn.qkv", divide=partial(divide_norm, block.norm1)),
        _Link(layer="attn.out", divide=divide_values, width=attn.head_dim, copies=heads // kv_heads),
        _Link(layer="mlp.gate_up", divide=partial(divide_norm, block.norm2)),
        _Link(layer="mlp.down", divide=divide_up),
    )


def _scale(block: Block, link: _Link, seen: Inputs) -> bool:
    layer = block.get_submodule(link.layer)
    assert isinstance(layer, Linear)
    size_C = link.shared(seen.size_I)
    size_C = size_C.clamp(min=LEAST_SIZE * float(size_C.max()))
    if not float(size_C.min()) > 0:
        return False
    step = max(len(layer.weight) // SAMPLED_OUTPUTS, 1)
    sample_OI = layer.weight[::step].float()
    scales = [_centred(size_C**power) for power in POWERS]
    errors = [_error(sample_OI, link.spread(scale_C), seen.square_I) for scale_C in scales]
    best = min(range(len(POWERS)), key=errors.__getitem__)
    if best == 0:
        return False
    layer.weight *= link.spread(scales[best])
    link.divide(scales[best])
    return True


def _centred(scale_C: Tensor) -> Tensor:
    """The same proportions around 1."""
    return scale_C / (scale_C.min() * scale_C.max()).sqrt()


def _error(weight_OI: Tensor, scale_I: Tensor, square_I: Tensor) -> float:
    """What rounding costs in the layer's outputs, if errors of different inputs are independent."""
    rounded_OI = unpack(pack(weight_OI * scale_I, "int4")) / scale_I
    return float(((rounded_OI - weight_OI).square() * square_I).sum())


def _blocks(model: nn.Module) -> Iterator[tuple[str, Block]]:
    for name, part in model.named_modules():
        if type(part) is Block:
            yield name, part


def _adder(inputs: Inputs) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, arguments: inputs.add(arguments[0])
