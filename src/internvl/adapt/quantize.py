"""Linear layers in the number formats of the kernels, made from any loaded model.

For inference on a CPU in float32. What a scheme means for a whole model is a list of rules like those of
adapters; a user may write another. Knows no files and no arithmetic (see `ops.packed`). Shape letters: O
outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internvl.adapt.patterns import match
from internvl.adapt.targets import linear_modules, replace_module
from internvl.errors import InputError
from internvl.models.layers import Linear
from internvl.ops.packed import PANEL, SCHEMES, PackedWeight, Scheme, pack, packed_linear, unpack

Rules = Sequence[tuple[str, Scheme]]

FIRST_BLOCK: tuple[str, Scheme] = (r"vit\.layers\.0\..*", "bfloat16")
"""What a tower's first block makes of the embeddings decides which tokens become outliers later on: in eight
bits it costs more accuracy than all other blocks together (docs/performance.md)."""

DEFAULTS: Mapping[Scheme, Rules] = {
    "float32": ((r".*", "float32"),),
    "bfloat16": ((r".*", "bfloat16"),),
    "int8": (FIRST_BLOCK, (r".*", "int8")),
    "int4": (FIRST_BLOCK, (r"(llm|qllama)\.layers\..*", "int4"), (r".*", "int8")),
}
"""The rules of a scheme's name: the first that matches a linear layer decides; those that match none are left
out."""


class PackedLinear(Linear):
    """A linear layer whose weight is packed; it has no gradients."""

    panels: Tensor
    scale_O: Tensor | None
    sum_O: Tensor | None
    padded_bias_O: Tensor | None

    def __init__(self, base: Linear, scheme: Scheme) -> None:
        nn.Module.__init__(self)  # nn.Linear would allocate a weight
        self.in_features, self.out_features, self.scheme = base.in_features, base.out_features, scheme
        packed = pack(base.weight, scheme)
        self.register_buffer("panels", packed.panels)
        self.register_buffer("scale_O", packed.scale_O)
        self.register_buffer("sum_O", packed.sum_O)
        bias = (
            None if base.bias is None else F.pad(base.bias.detach().float(), (0, -base.out_features % PANEL))
        )
        self.register_buffer("padded_bias_O", bias)
        self.train(base.training)

    @property
    def packed(self) -> PackedWeight:
        return PackedWeight(
            self.scheme, (self.out_features, self.in_features), self.panels, self.scale_O, self.sum_O
        )

    def dense_weight(self) -> Tensor:
        """The weight (O, I) that the values stand for, float32."""
        return unpack(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise InputError(
                "packed weights are for inference: train the model as it was loaded, or over int8 (QLoRA)"
            )
        return packed_linear(x.float(), self.packed, self.padded_bias_O)


def rules_of(scheme: str | Mapping[str, str], model: nn.Module) -> list[tuple[str, Scheme]]:
    """The rules of a scheme's name that concern a model, or those a user wrote, {pattern: scheme}.

    Raises:
        InputError: a scheme that does not exist.
    """
    if isinstance(scheme, str):
        names = list(linear_modules(model))
        rules = DEFAULTS[_known(scheme)]
        return [(pattern, value) for pattern, value in rules if _matches(pattern, value, names)]
    return [(pattern, _known(value)) for pattern, value in scheme.items()]


def quantize(model: nn.Module, rules: Rules) -> list[str]:
    """Packs the linear layers that some rule names (first match wins); returns their names.

    Everything else of the model becomes float32, which the kernels compute in.

    Raises:
        InputError: a pattern that names no linear layer; one that carries an adapter or is packed already.
    """
    chosen = match(rules, linear_modules(model))
    for name, scheme in chosen.items():
        module = model.get_submodule(name)
        if type(module) is not Linear:
            raise InputError(f"{name} is a {type(module).__name__}: merge adapters first, and pack only once")
        replace_module(model, name, PackedLinear(module, scheme))
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(False)
    return list(chosen)


def _matches(pattern: str, scheme: Scheme, names: Sequence[str]) -> bool:
    try:
        return bool(match([(pattern, scheme)], names))
    except InputError:
        return False


def _known(scheme: str) -> Scheme:
    for known in SCHEMES:
        if scheme == known:
            return known
    raise InputError(
        f"there is no scheme {scheme!r}: quantize is one of {', '.join(SCHEMES)}, or a table of patterns"
    )
