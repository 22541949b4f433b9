"""Weights packed for the kernels: float32, bfloat16, eight bits or four, and the product with each.

A weight lies in panels of 16 outputs (`csrc/matrix.h`). The formats:

    float32    as it is
    bfloat16   rounded to bfloat16, which published weights are already: then the product is that of float32
    int8       one scale an output, rows brought to bytes with a scale and a zero point each; both `spread`
    int4       a scale and a least value for each 64 inputs of an output, rows brought to signed bytes

Two neighbouring int8 weights add up to at most 128 in magnitude: two products with unsigned bytes then fit
16 bits, and all processors give the same integers. Shape letters: T rows, O outputs, I inputs, P panels,
G groups.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from internvl.ops.native import address, count, library, new

Scheme = Literal["float32", "bfloat16", "int8", "int4"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

PANEL = 16
"""Outputs of a panel."""
QUAD = 4
"""Inputs that eight-bit products take together."""
SPREAD = 16
"""Inputs that are spread over each other before they are rounded to eight bits."""
GROUP = 64
"""Inputs that share a scale in four bits."""
MOST, PAIR = 127, 128
"""Largest magnitude of an eight-bit weight, and of the sum of two neighbouring ones."""
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Ranges tried for a group of four-bit weights, as parts of the whole one: what errs least is taken."""


OUTPUTS_AT_ONCE = 4096
"""Of a weight that is packed: whole panels."""
PLAIN = len(SCHEMES)
"""The kernels' number of a float32 weight as PyTorch has it; those of the formats are places in `SCHEMES`."""


class Matrix(ctypes.Structure):
    """`Matrix` of `csrc/matrix.h`."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("padded", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight of `shape` (outputs, inputs).

    `panels`: float32 (P, I, 16), bfloat16 (P, I, 16), int8 (P, I / 4, 16, 4) with `scale_O` and `sum_O`
    (int32, of an output's values), or uint8 (P, G, 576). Outputs are padded to whole panels, inputs of the
    integer formats to whole quads or groups.
    """

    scheme: Scheme
    shape: tuple[int, int]
    panels: Tensor
    scale_O: Tensor | None = None
    sum_O: Tensor | None = None

    @property
    def padded(self) -> int:
        """Inputs with their padding."""
        return _padded(self.scheme, self.shape[1])

    @property
    def is_integer(self) -> bool:
        """Whether rows are rounded to eight bits."""
        return self.scheme in ("int8", "int4")

    @property
    def has_finite_scales(self) -> bool:
        """False for a damaged weight: a scale, or a least value of four bits, that is NaN or infinite."""
        scales = self.scale_O
        if self.scheme == "int4":
            scales = self.panels[..., GROUP * PANEL // 2 :].contiguous().view(torch.float16)
        return scales is None or bool(scales.isfinite().all())

    def matrix(self, bias_O: Tensor | None = None) -> Matrix:
        """The kernels' view; `bias_O` is padded to whole panels. Valid as long as the tensors live."""
        return Matrix(
            SCHEMES.index(self.scheme),
            *self.shape,
            self.padded,
            *(None if x is None else address(x) for x in (self.panels, self.scale_O, self.sum_O, bias_O)),
        )


def packed_form(scheme: Scheme, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of the tensors that a weight (outputs, inputs) is packed in, by their names."""
    panels, padded = -(-shape[0] // PANEL), _padded(scheme, shape[1])
    if scheme == "int8":
        per_output = (panels * PANEL,)
        return {
            "panels": (torch.int8, (panels, padded // QUAD, PANEL, QUAD)),
            "scale_O": (torch.float32, per_output),
            "sum_O": (torch.int32, per_output),
        }
    if scheme == "int4":
        return {"panels": (torch.uint8, (panels, padded // GROUP, (GROUP // 2 + 4) * PANEL))}
    dtype = torch.float32 if scheme == "float32" else torch.bfloat16
    return {"panels": (dtype, (panels, padded, PANEL))}


def layout_digest(scheme: Scheme) -> str:
    """Changes when a weight of the scheme would be packed into other bytes: how files know their layout.

    Of a small weight of whole numbers, which every processor rounds alike.
    """
    outputs, inputs = PANEL + 1, GROUP + (SPREAD if scheme == "int8" else QUAD)  # what can be spread is
    weight_OI = (torch.arange(outputs)[:, None] * 3 + torch.arange(inputs) * 7) % 16
    packed = pack(weight_OI.float(), scheme)
    digest = hashlib.sha256()
    for tensor in (packed.panels, packed.scale_O, packed.sum_O):
        if tensor is not None:
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def plain_matrix(weight_OI: Tensor, bias_O: Tensor | None) -> Matrix:
    """The kernels' view of a float32 weight as it is."""
    outputs, inputs = weight_OI.shape
    bias = None if bias_O is None else address(bias_O)
    return Matrix(PLAIN, outputs, inputs, inputs, address(weight_OI), None, None, bias)


def pack(weight_OI: Tensor, scheme: Scheme) -> PackedWeight:
    """A weight in a format; float32 is exact, the others round.

    A few thousand outputs at a time: what is needed in between would be several times the weight.
    """
    parts = [_FORMATS[scheme](part_OI.float()) for part_OI in weight_OI.detach().split(OUTPUTS_AT_ONCE)]
    tensors = [torch.cat(same) for same in zip(*parts, strict=True)]
    return PackedWeight(scheme, (weight_OI.shape[0], weight_OI.shape[1]), *tensors)


def unpack(weight: PackedWeight) -> Tensor:
    """The weight (O, I) that the values stand for, float32."""
    outputs, inputs = weight.shape
    if weight.scheme == "int4":
        return _unpack_int4(weight)
    if weight.scheme == "int8":
        values_OI = weight.panels.transpose(1, 2).reshape(-1, weight.padded)
        assert weight.scale_O is not None
        return spread((values_OI.float() * weight.scale_O[:, None])[:outputs, :inputs])
    return weight.panels.transpose(1, 2).reshape(-1, inputs)[:outputs].float()


def packed_linear(x: Tensor, weight: PackedWeight, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for float32 x (..., I) on the CPU; `bias_O` is padded to whole panels."""
    outputs, inputs = weight.shape
    x_TI = x.reshape(-1, inputs).contiguous()
    native = library()
    if native is None:
        out_TO = F.linear(round_rows(x_TI, weight.scheme), unpack(weight))
        out_TO = out_TO if bias_O is None else out_TO + bias_O[:outputs]
    else:
        out_TO = new(len(x_TI), outputs)
        matrix = weight.matrix(bias_O)
        native.linear(ctypes.byref(matrix), address(x_TI), count(len(x_TI)), address(out_TO), count(0))
    return out_TO.view(*x.shape[:-1], outputs)


def round_rows(x_TI: Tensor, scheme: Scheme) -> Tensor:
    """What a format makes of the rows it is multiplied with; NaN or infinity taint their whole row."""
    if scheme not in ("int8", "int4"):
        return x_TI
    if scheme == "int8":
        x_TI = spread(x_TI)
    low_T1, high_T1 = x_TI.amin(1, keepdim=True).clamp(max=0), x_TI.amax(1, keepdim=True).clamp(min=0)
    step_T1 = (high_T1 - low_T1) / 255 if scheme == "int8" else torch.maximum(high_T1, -low_T1) / 127
    step_T1 = torch.where(step_T1 > 0, step_T1, torch.ones_like(step_T1))
    inverse_T1 = (
        1 / step_T1
    )  # multiplied with, as the kernels do: a quotient would round some halves otherwise
    zero_T1 = (-low_T1 * inverse_T1).round() if scheme == "int8" else torch.zeros_like(step_T1)
    least, most = (0, 255) if scheme == "int8" else (-127, 127)
    values_TI = ((x_TI * inverse_T1).round() + zero_T1).clamp(least, most) - zero_T1
    rows_TI = values_TI * (step_T1 + (x_TI * 0).sum(1, keepdim=True))
    return spread(rows_TI) if scheme == "int8" else rows_TI


def spread(x: Tensor) -> Tensor:
    """A quarter of the sums and differences, in all sixteen ways, of values a sixteenth of a row apart.

    A Hadamard transform: its own inverse, and if both factors are spread their product stays as it is. What
    is large alone is shared among sixteen, and no longer sets the step to which all others are rounded
    (QuaRot, Ashkboos et al. 2024). Rows (..., I) whose width is no multiple of sixteen stay as they are.
    """
    if x.shape[-1] % SPREAD:
        return x
    parts = x.unflatten(-1, (2, 2, 2, 2, -1)) / 4
    for dim in (-2, -3, -4, -5):  # in the order of the kernel, to the last bit
        left, right = parts.unbind(dim)
        parts = torch.stack((left + right, left - right), dim)
    out: Tensor = parts.flatten(-5)
    return out


def _padded(scheme: Scheme, inputs: int) -> int:
    whole = {"int8": QUAD, "int4": GROUP}.get(scheme, 1)
    return -(-inputs // whole) * whole


def _pack_floats(weight_OI: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
    outputs, inputs = weight_OI.shape
    padded_OI = F.pad(weight_OI, (0, 0, 0, -outputs % PANEL))
    return (padded_OI.view(-1, PANEL, inputs).transpose(1, 2).to(dtype).contiguous(),)


def _pack_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    outputs, inputs = weight_OI.shape
    padded_OI = F.pad(spread(weight_OI), (0, -inputs % QUAD, 0, -outputs % PANEL))
    pairs_O = padded_OI.unflatten(1, (-1, 2)).sum(2).abs().amax(1)
    size_O = padded_OI.abs().amax(1)
    scale_O = torch.maximum(size_O / MOST, pairs_O / (PAIR - 1))  # rounding may add 1 to a pair
    scale_O = torch.where(scale_O > 0, scale_O, torch.ones_like(scale_O))
    values_OI = (padded_OI / scale_O[:, None]).round().to(torch.int8)
    panels_PQOI = values_OI.view(-1, PANEL, values_OI.shape[1] // QUAD, QUAD).transpose(1, 2).contiguous()
    return panels_PQOI, scale_O, values_OI.sum(1, dtype=torch.int32)


def _pack_int4(weight_OI: Tensor) -> tuple[Tensor]:
    outputs, inputs = weight_OI.shape
    padded_OI = F.pad(weight_OI, (0, -inputs % GROUP, 0, -outputs % PANEL))
    values_OGI, scale_OG, least_OG = _round_groups(padded_OI.unflatten(1, (-1, GROUP)))
    # (P, G, quads, 2 sides of 8 outputs, 8, 4) with one side in the low half of each byte.
    values = values_OGI.view(-1, 2, PANEL // 2, values_OGI.shape[1], GROUP // QUAD, QUAD)
    low, high = values.permute(0, 3, 4, 1, 2, 5).unbind(3)
    bytes_PGB = (low | high << 4).flatten(2)
    sides_PGO = [x.view(-1, PANEL, x.shape[1]).transpose(1, 2).contiguous() for x in (scale_OG, least_OG)]
    tails_PGB = [x.view(torch.uint8) for x in sides_PGO]
    return (torch.cat((bytes_PGB, *tails_PGB), 2).contiguous(),)


def _round_groups(groups_OGI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values 0 to 15 (uint8), and the scale and least value (float16) under which they err least."""
    low_OG1, high_OG1 = groups_OGI.amin(2, keepdim=True), groups_OGI.amax(2, keepdim=True)
    best = torch.full_like(low_OG1, torch.inf)
    found: list[Tensor] = [torch.zeros_like(groups_OGI), torch.zeros_like(low_OG1), torch.zeros_like(low_OG1)]
    for shrink in SHRINKS:
        least = (low_OG1 * shrink).half().float()
        scale = ((high_OG1 - low_OG1) * shrink / 15).half().float()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        values = ((groups_OGI - least) / scale).round().clamp(0, 15)
        error = (values * scale + least - groups_OGI).square().sum(2, keepdim=True)
        is_better = error < best
        best = torch.where(is_better, error, best)
        found = [
            torch.where(is_better, new, old) for new, old in zip((values, scale, least), found, strict=True)
        ]
    values, scale, least = found
    return values.to(torch.uint8), scale[..., 0].half(), least[..., 0].half()


def _unpack_int4(weight: PackedWeight) -> Tensor:
    outputs, inputs = weight.shape
    bytes_PGB, tails_PGB = weight.panels.split((GROUP * PANEL // 2, 4 * PANEL), 2)
    sides = torch.stack((bytes_PGB & 15, bytes_PGB >> 4), 3)  # (P, G, quad x 8 outputs x 4 inputs, side)
    values = sides.view(*sides.shape[:2], GROUP // QUAD, PANEL // 2, QUAD, 2).permute(0, 5, 3, 1, 2, 4)
    values_OGI = values.reshape(-1, bytes_PGB.shape[1], GROUP).float()
    scale_OG1, least_OG1 = (
        x.contiguous().view(torch.float16).transpose(1, 2).reshape(len(values_OGI), -1, 1).float()
        for x in tails_PGB.split(2 * PANEL, 2)
    )
    dense_OI: Tensor = (values_OGI * scale_OG1 + least_OG1).flatten(1)[:outputs, :inputs]
    return dense_OI


_FORMATS: Mapping[Scheme, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "float32": partial(_pack_floats, dtype=torch.float32),
    "bfloat16": partial(_pack_floats, dtype=torch.bfloat16),
    "int8": _pack_int8,
    "int4": _pack_int4,
}
