"""Low-rank adapters on the linear layers of a built model: added, switched off, merged.

The adapter of `llm.layers.0.attn.qkv` is its parameters `lora_down` (parts * R, I) and `lora_up` (O, R), with
DoRA also `lora_magnitude` (O); `weight` and `bias` keep their names, so a recipe that trains adapters
alone says `(".*\\.lora_.*", AdamW(...)), (".*", None)`. Knows no files (see `checkpoints.adapters`).
Shape letters: O rows and I columns of a weight, R rank. `parts` are the row counts of the products that a
layer fuses: each has factors of its own, as if query, key and value were three layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from internvl.adapt.qlora import Int8Linear
from internvl.adapt.targets import choose, linear_modules, replace_module
from internvl.errors import InputError
from internvl.models.layers import Linear
from internvl.ops.linear import linear

MAX_RANK = 1 << 16
"""No matrix of a model is wider; a typing error must not ask for terabytes."""
ALPHA_PER_RANK = 2
"""InternVL trains every adapter with alpha = 2 r, so the scale is 2 at any rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """A low-rank adapter (arXiv 2106.09685). `alpha` None is 2 x rank, as in every released recipe."""

    rank: int
    alpha: float | None = None
    dropout: float = 0.0
    rank_stabilized: bool = False
    """Scale alpha / sqrt(rank) in place of alpha / rank (rsLoRA, arXiv 2312.03732)."""
    magnitude: bool = False
    """Learn the length of every output row apart from its direction (DoRA, arXiv 2402.09353)."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK or not 0 <= self.dropout < 1:
            raise InputError(
                f"an adapter has a rank from 1 to {MAX_RANK} and a dropout in [0, 1), got {self.rank} and "
                f"{self.dropout}"
            )

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        alpha = ALPHA_PER_RANK * self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoRALinear(Linear):
    """`x W' + bias` with `W' = W + scale * up @ down`; its rows have learnt lengths with DoRA.

    Takes over the tensors of `base`, which is not to be used afterwards. The factors are float32
    whatever the weight is. A new adapter changes nothing: `lora_up` begins at zero, `lora_down` as in PEFT.
    """

    lora_magnitude: Tensor | None

    def __init__(
        self, base: Linear, lora: LoRA, parts: Sequence[int], generator: torch.Generator | None = None
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear would allocate a weight
        for name, parameter in base._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in base.named_buffers():
            self.register_buffer(name, buffer)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora, self.parts, self.is_on = lora, tuple(parts), True
        self.dtype = base.dtype if isinstance(base, Int8Linear) else base.weight.dtype
        down = torch.empty(len(self.parts) * lora.rank, self.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        device = next(iter(base.state_dict().values())).device
        self.lora_down = nn.Parameter(down.to(device))
        self.lora_up = nn.Parameter(torch.zeros(self.out_features, lora.rank, device=device))
        self.register_parameter("lora_magnitude", None)
        if lora.magnitude:
            self.lora_magnitude = nn.Parameter(self.direction().norm(dim=1))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not self.is_on:
            return out
        rate = self.lora.dropout if self.training else 0.0
        dropped = dropout(x, rate) if rate else x
        delta = self._delta(dropped.to(self.lora_down.dtype))
        if self.lora_magnitude is None:
            return out + delta.to(out.dtype)
        plain = super().forward(dropped) if rate else out
        plain = plain if self.bias is None else plain - self.bias
        ratio_O = self.lora_magnitude / _lengths(self.direction())
        scaled: Tensor = out + (ratio_O - 1) * plain + ratio_O * delta
        return scaled.to(out.dtype)

    def _delta(self, x: Tensor) -> Tensor:
        """What the factors add for x (..., I), without the lengths of DoRA: (..., O)."""
        inner = linear(x, self.lora_down) * self.lora.scale
        if len(self.parts) == 1:
            return linear(inner, self.lora_up)
        pieces = zip(inner.split(self.lora.rank, -1), self.lora_up.split(self.parts), strict=True)
        return torch.cat([linear(piece, up) for piece, up in pieces], -1)

    @torch.no_grad()
    def direction(self) -> Tensor:
        """`W + scale * up @ down` in float32; DoRA takes its rows' lengths for constants."""
        rows = self.dense_weight().split(self.parts)
        factors = zip(rows, self.lora_down.split(self.lora.rank), self.lora_up.split(self.parts), strict=True)
        out: Tensor = torch.cat([merge(weight, down, up, self.lora.scale) for weight, down, up in factors])
        return out

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one weight that answers like weight and adapter, in the weight's dtype."""
        merged_OI = self.direction()
        if self.lora_magnitude is not None:
            merged_OI *= (self.lora_magnitude / _lengths(merged_OI))[:, None]
        return merged_OI.to(self.dtype)

    def dense_weight(self) -> Tensor:
        """The weight without adapter as float32 (O, I)."""
        return self.weight.float()


class LoRAInt8Linear(LoRALinear, Int8Linear):
    """A trained adapter over a frozen int8 weight (QLoRA)."""

    def dense_weight(self) -> Tensor:
        return Int8Linear.dense_weight(self)


def _lengths(weight_OI: Tensor) -> Tensor:
    """Of the rows; those of zeros, which stay zero, get the least one that can be divided by."""
    lengths_O: Tensor = weight_OI.norm(dim=1)
    return lengths_O.clamp_min(torch.finfo(weight_OI.dtype).tiny)


def add_adapters(
    model: nn.Module, rules: Sequence[tuple[str, LoRA]], generator: torch.Generator | None = None
) -> list[str]:
    """Give the linear modules that some rule names (first match wins) adapters; returns their names.

    The answers stay the same until the adapters are trained. Weights and their `requires_grad` stay
    as they are: what is trained is said by the rules over parameters.

    Args:
        model: a built model, changed in place.
        rules: patterns over names of linear modules, such as `llm\\.layers\\..*`, and what they get.
        generator: source of the random factors, on the CPU.

    Raises:
        InputError: a pattern that names no linear module, or a module that has an adapter.
    """
    parts, chosen = linear_modules(model), choose(model, rules)
    for name, lora in chosen.items():
        add_adapter(model, name, lora, parts[name], generator)
    return list(chosen)


def add_adapter(
    model: nn.Module, name: str, lora: LoRA, parts: Sequence[int], generator: torch.Generator | None = None
) -> LoRALinear:
    """Give one linear module an adapter of as many parts as there are row counts.

    Raises:
        InputError: it has one already.
    """
    base = model.get_submodule(name)
    if not isinstance(base, Linear) or type(base) not in (Linear, Int8Linear):
        raise InputError(
            f"{name} is a {type(base).__name__} and takes no adapter: merge the one it has first, and pack "
            "weights afterwards"
        )
    kind = LoRAInt8Linear if isinstance(base, Int8Linear) else LoRALinear
    adapted = kind(base, lora, parts, generator)
    replace_module(model, name, adapted)
    return adapted


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The linear modules with adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block the model answers as if it had no adapters: the reference of preference training."""
    was_on = [(module, module.is_on) for module in adapters(model).values()]
    for module, _ in was_on:
        module.is_on = False
    try:
        yield
    finally:
        for module, is_on in was_on:
            module.is_on = is_on


def merge_adapters(model: nn.Module) -> list[str]:
    """Replace every adapted module by a plain one with the merged weight; returns their names.

    A weight kept in int8 comes out dense, in the dtype it had before.
    """
    found = adapters(model)
    for name, module in found.items():
        with torch.device("meta"):
            plain = Linear(module.in_features, module.out_features, bias=module.bias is not None)
        is_trained = not isinstance(module, Int8Linear) and module.weight.requires_grad
        plain.weight = nn.Parameter(module.merged_weight(), requires_grad=is_trained)
        plain.bias = module.bias
        replace_module(model, name, plain.train(module.training))
    return list(found)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model that `merge_adapters` would make, which is left as it is."""
    found = adapters(model)
    state = {
        name: value
        for name, value in model.state_dict().items()
        if name.rpartition(".")[0] not in found or name.endswith(".bias")
    }
    return state | {f"{name}.weight": module.merged_weight() for name, module in found.items()}


def merge(weight_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """`weight + scale * up @ down` in the dtype of `weight`, computed in float32."""
    merged_OI = weight_OI.float().addmm(up_OR.float(), down_RI.float(), alpha=scale)
    return merged_OI.to(weight_OI.dtype)
