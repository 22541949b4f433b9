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
from internvl.errors import InputError, WeightsError
from internvl.models.layers import Linear
from internvl.ops.packed import (
    PANEL,
    SCHEMES,
    PackedWeight,
    Scheme,
    layout_digest,
    pack,
    packed_form,
    packed_linear,
    unpack,
)

Rules = Sequence[tuple[str, Scheme]]

FIRST_MLP: tuple[str, Scheme] = (r"(vit\.)?layers\.0\.mlp\..*", "bfloat16")
"""What the MLP of a tower's first block makes of the embeddings decides which tokens become outliers later:
in eight bits it costs more accuracy than all other layers together (docs/performance.md). A tower that is
loaded alone has no prefix; a language model never is."""

DEFAULTS: Mapping[Scheme, Rules] = {
    "float32": ((r".*", "float32"),),
    "bfloat16": ((r".*", "bfloat16"),),
    "int8": (FIRST_MLP, (r".*", "int8")),
    "int4": (FIRST_MLP, (r"(llm|qllama)\.layers\..*", "int4"), (r".*", "int8")),
}
"""The rules of a scheme's name: the first that matches a linear layer decides; those that match none are left
out."""


class PackedLinear(Linear):
    """A linear layer whose weight is packed; it has no gradients."""

    panels: Tensor
    scale_O: Tensor | None
    sum_O: Tensor | None
    padded_bias_O: Tensor | None

    def __init__(self, packed: PackedWeight, padded_bias_O: Tensor | None) -> None:
        nn.Module.__init__(self)  # nn.Linear would allocate a weight
        self.out_features, self.in_features = packed.shape
        self.scheme = packed.scheme
        self.register_buffer("panels", packed.panels)
        self.register_buffer("scale_O", packed.scale_O)
        self.register_buffer("sum_O", packed.sum_O)
        self.register_buffer("padded_bias_O", padded_bias_O)

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
        rules = DEFAULTS[known_scheme(scheme)]
        return [(pattern, value) for pattern, value in rules if _matches(pattern, value, names)]
    return [(pattern, known_scheme(value)) for pattern, value in scheme.items()]


def quantize(model: nn.Module, rules: Rules) -> list[str]:
    """Packs the linear layers that some rule names (first match wins); returns their names.

    Everything else of the model becomes float32, which the kernels compute in.

    Raises:
        InputError: a pattern that names no linear layer; one that carries an adapter or is packed already.
    """
    chosen = packable(model, rules)
    for name, scheme in chosen.items():
        pack_layer(model, name, scheme)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(False)
    return list(chosen)


def packable(model: nn.Module, rules: Rules) -> dict[str, Scheme]:
    """The linear layers that rules name, each with its scheme; errors as `quantize`."""
    chosen = match(rules, linear_modules(model))
    for name in chosen:
        if type(module := model.get_submodule(name)) is not Linear:
            raise InputError(f"{name} is a {type(module).__name__}: merge adapters first, and pack only once")
    return chosen


def pack_layer(model: nn.Module, name: str, scheme: Scheme) -> None:
    """Puts a packed layer in the place of a linear one."""
    base = model.get_submodule(name)
    assert isinstance(base, Linear)
    bias_O = None if base.bias is None else F.pad(base.bias.detach().float(), (0, -base.out_features % PANEL))
    _put(model, name, PackedLinear(pack(base.weight, scheme), bias_O))


def place_packed(model: nn.Module, name: str, scheme: str, buffers: Mapping[str, Tensor]) -> None:
    """Puts a packed layer whose buffers are at hand, as `packed_buffers` says, in the place of a linear one.

    Raises:
        WeightsError: scales that are not finite.
    """
    base = model.get_submodule(name)
    assert isinstance(base, Linear)
    shape = base.out_features, base.in_features
    packed = PackedWeight(
        known_scheme(scheme), shape, buffers["panels"], buffers.get("scale_O"), buffers.get("sum_O")
    )
    if not packed.has_finite_scales:
        raise WeightsError(f"{name} ({scheme}) has scales that are NaN or infinite: the file is damaged")
    _put(model, name, PackedLinear(packed, buffers.get("padded_bias_O")))


def packed_buffers(layer: Linear, scheme: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each buffer that a linear layer has once it is packed."""
    form = packed_form(known_scheme(scheme), (layer.out_features, layer.in_features))
    if layer.bias is not None:
        form["padded_bias_O"] = (torch.float32, (layer.out_features + -layer.out_features % PANEL,))
    return form


def digest_of(scheme: str) -> str:
    """Of the bytes that a weight is packed into (`ops.packed.layout_digest`). InputError: no such scheme."""
    return layout_digest(known_scheme(scheme))


def _put(model: nn.Module, name: str, layer: PackedLinear) -> None:
    layer.train(model.get_submodule(name).training)
    replace_module(model, name, layer)


def _matches(pattern: str, scheme: Scheme, names: Sequence[str]) -> bool:
    try:
        return bool(match([(pattern, scheme)], names))
    except InputError:
        return False


def known_scheme(scheme: str) -> Scheme:
    """A scheme by its name. Raises InputError for another."""
    for known in SCHEMES:
        if scheme == known:
            return known
    raise InputError(
        f"there is no scheme {scheme!r}: quantize is one of {', '.join(SCHEMES)}, or a table of patterns"
    )
